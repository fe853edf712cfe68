// Tensor side of hidden_mse on a GPU: chunks of tokens through the kernel and the library's two products.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "../common/cuda/reductions_cuda.h"
#include "../common/tensor/cuda_tensors.h"
#include "../common/tensor/loss_scale.h"
#include "hidden_mse_cuda.h"

namespace bertxfer {
namespace {

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // loss, d student, d weight, d bias, grad_scale

// Tokens at a time where there is a weight: the difference to the teacher, 25 MB for 768 columns of 16-bit numbers,
// stays in the second-level cache of an H100 (50 MB) until both products have read it.
constexpr int64_t kChunk = 128 * cuda::kHiddenRows;

Tensor rows_of(const Tensor& tensor, int64_t first, int64_t rows) {
  Tensor part = tensor;
  return torch::stable::narrow(part, 0, first, rows);
}

// float16 takes its two products of the direction in float32: the direction may pass 65504 where the gradients do not.
Tensor operand(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Half ? torch::stable::to(tensor, ScalarType::Float) : tensor;
}

// grad_weight (+)= direction^T student.
void add_weight_gradient(const Tensor& grad_weight, Tensor direction, const Tensor& student, bool accumulate,
                         void* stream) {
  const Tensor transposed = torch::stable::transpose(direction, 0, 1);
  if (student.scalar_type() == ScalarType::Float && !accumulate) return matmul_out(grad_weight, transposed, student);
  const Tensor product = empty_on(student, {grad_weight.size(0), grad_weight.size(1)}, student.scalar_type());
  matmul_out(product, transposed, student);
  cuda::add(product.data_ptr(), dtype_of(product, "product"), floats(grad_weight), product.numel(), accumulate, stream);
}

Result hidden_mse_cuda(Tensor student,                // [T, Ds]
                       Tensor teacher,                // [T, Dt]
                       std::optional<Tensor> weight,  // [Dt, Ds]
                       std::optional<Tensor> bias,    // [Dt]
                       std::string reduction, bool need_grad) {
  const OnDevice device(student, "student");
  STD_TORCH_CHECK(student.dim() == 2 && teacher.dim() == 2 && student.size(0) == teacher.size(0), "student: got ",
                  described(student), ", want [T, Ds] beside teacher ", described(teacher));
  check_device(teacher, student, "teacher");
  const int64_t tokens = teacher.size(0), width = teacher.size(1), depth = student.size(1);
  const ScalarType dtype = student.scalar_type();
  student = weight ? for_products(student) : rows_contiguous(student);
  teacher = rows_contiguous(teacher);
  STD_TORCH_CHECK(width <= INT32_MAX && depth <= INT32_MAX, "student: got ", described(student),
                  ", want widths below 2^31");
  STD_TORCH_CHECK(weight || depth == width, "weight: got none, want one for widths ", depth, " and ", width);
  if (weight) {
    check_device(*weight, student, "weight");
    STD_TORCH_CHECK(
        weight->dim() == 2 && weight->size(0) == width && weight->size(1) == depth && weight->scalar_type() == dtype,
        "weight: got ", described(*weight), ", want [", width, ", ", depth, "] in the dtype of student, ",
        described(student));
    weight = for_products(*weight);
  }
  if (bias) {
    check_device(*bias, student, "bias");
    STD_TORCH_CHECK(bias->numel() == width && bias->scalar_type() == dtype, "bias: got ", described(*bias), ", want [",
                    width, "] in the dtype of student, ", described(student));
    bias = torch::stable::contiguous(*bias);
  }

  const double terms = static_cast<double>(tokens) * static_cast<double>(width);
  const double normaliser = loss_scale_of(reduction, terms);
  const int64_t row_tiles = (tokens + cuda::kHiddenRows - 1) / cuda::kHiddenRows;
  const int64_t column_tiles = (width + cuda::kHiddenColumns - 1) / cuda::kHiddenColumns;
  const bool need_weight = need_grad && weight, need_bias = need_grad && bias;
  const int64_t chunk = weight ? std::min(kChunk, std::max<int64_t>(tokens, 1)) : tokens;
  const ScalarType grad_dtype = stored_dtype(dtype);
  Tensor grad_student = need_grad ? empty_on(student, {tokens, depth}, grad_dtype) : empty_on(student, {0}, grad_dtype);
  Tensor grad_weight =
      need_weight ? empty_on(student, {width, depth}, ScalarType::Float) : empty_on(student, {0}, ScalarType::Float);
  Tensor grad_bias = empty_on(student, {need_bias ? width : 0}, ScalarType::Float);
  const Tensor buffer = need_weight ? empty_on(student, {chunk, width}, grad_dtype) : grad_student;
  const Tensor sums = empty_on(student, {row_tiles, column_tiles}, ScalarType::Float);
  const Tensor column_sums = empty_on(student, {need_bias ? row_tiles : 0, width}, ScalarType::Float);

  const Tensor weight_operand = need_weight ? operand(*weight) : student;

  cuda::HiddenMse p{};
  p.dtype = dtype_of(student, "student");
  p.student_stride = student.stride(0);
  if (weight) p.weight = weight->data_ptr();
  if (weight) p.weight_stride = weight->stride(0);
  if (bias) p.bias = bias->data_ptr();
  p.teacher_dtype = dtype_of(teacher, "teacher");
  p.teacher_stride = teacher.stride(0);
  p.width = width;
  p.depth = depth;
  p.scale = static_cast<float>(2.0 * normaliser);
  p.direction_dtype = dtype_of(buffer, "direction");
  for (int64_t first = 0; first < tokens; first += chunk) {
    p.rows = std::min(chunk, tokens - first);
    const Tensor student_rows = rows_of(student, first, p.rows), teacher_rows = rows_of(teacher, first, p.rows);
    p.student = student_rows.data_ptr();
    p.teacher = teacher_rows.data_ptr();
    p.direction = need_grad ? buffer.data_ptr() : nullptr;
    p.sums = floats(sums) + first / cuda::kHiddenRows * column_tiles;
    p.column_sums = need_bias ? floats(column_sums) + first / cuda::kHiddenRows * width : nullptr;
    cuda::hidden_mse(p, device.stream());
    if (!need_weight) continue;
    const Tensor direction = rows_of(buffer, 0, p.rows);
    matmul_out(rows_of(grad_student, first, p.rows), direction, weight_operand);
    add_weight_gradient(grad_weight, direction, operand(student_rows), first > 0, device.stream());
  }
  if (need_weight && tokens == 0) torch::stable::zero_(grad_weight);

  Tensor loss = empty_on(student, {}, ScalarType::Float), grad_scale = empty_on(student, {}, ScalarType::Float);
  cuda::HiddenMseSums result{};
  result.sums = floats(sums);
  result.column_sums = floats(column_sums);
  result.tiles = sums.numel();
  result.row_tiles = row_tiles;
  result.width = width;
  result.normaliser = normaliser;
  result.loss = floats(loss);
  result.grad_scale = floats(grad_scale);
  result.grad_bias = need_bias ? floats(grad_bias) : nullptr;
  cuda::finish_hidden_mse(result, device.stream());
  return {loss, grad_student, grad_weight, grad_bias, grad_scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, BERTXFER_CUDA_KEY, m) {
  m.impl("hidden_mse.cuda", TORCH_BOX(&hidden_mse_cuda));
}

}  // namespace bertxfer
