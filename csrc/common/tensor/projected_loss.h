// Tensor side shared by hidden_mse and hidden_cosine: loss(student W^T + b, teacher), chunk by chunk.
//
// A chunk of tokens takes three library products, P = X W^T, dX = G W and dW += G^T X, and between them one pass of the
// operator's own (`pass`), which turns P into G in place while it is in the cache. float16 is widened to float32 chunk
// by chunk, because P and sums over a chunk pass its 65504 where the gradient does not.
#pragma once

#include <algorithm>
#include <tuple>
#include <vector>

#include "../cpu/hidden_rows.h"
#include "loss_scale.h"
#include "products.h"

namespace bertxfer {

class ProjectedLoss {
 public:
  using Pass = void (*)(const HiddenRows&);
  using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // loss, d student, d weight, d bias, grad_scale

  ProjectedLoss(const Tensor& student, const Tensor& teacher, const std::optional<Tensor>& weight,
                const std::optional<Tensor>& bias, bool need_grad, Pass pass)
      : dtype_(student.scalar_type() == ScalarType::Half && weight ? ScalarType::Float : student.scalar_type()),
        student_(matmul_operand(student)),
        teacher_(rows_contiguous(teacher)),
        tokens_(teacher.size(0)),
        width_(teacher.size(1)),
        need_grad_(need_grad),
        pass_(pass) {
    STD_TORCH_CHECK(student.dim() == 2 && teacher.dim() == 2 && student.size(0) == tokens_, "student: got ",
                    described(student), ", want [T, Ds] beside teacher ", described(teacher));
    if (bias) bias_ = torch::stable::contiguous(*bias);
    if (weight) {
      STD_TORCH_CHECK(weight->dim() == 2 && weight->size(0) == width_ && weight->size(1) == student.size(1) &&
                          weight->scalar_type() == student.scalar_type(),
                      "weight: got ", described(*weight), ", want [", width_, ", ", student.size(1),
                      "] in the dtype of student");
      weight_ = matmul_operand(in_dtype(*weight));
    }
    STD_TORCH_CHECK(weight || student.size(1) == width_, "weight: got none, want one for widths ", student.size(1),
                    " and ", width_);
    STD_TORCH_CHECK(!bias || bias->numel() == width_, "bias: got ", described(*bias), ", want [", width_, "]");
    const int64_t ds = student.size(1);
    const ScalarType grad_dtype = stored_dtype(student.scalar_type());
    grad_student_ = need_grad ? empty({tokens_, ds}, grad_dtype) : empty({0}, grad_dtype);
    grad_weight_ = need_grad && weight ? empty({width_, ds}, ScalarType::Float) : empty({0}, ScalarType::Float);
    grad_bias_ = need_grad && bias ? empty({width_}, ScalarType::Float) : empty({0}, ScalarType::Float);
  }

  // `terms`: what the mean is over. `slope`: d(sum) is this times the gradient that the pass makes with grad_scale 1.
  Result run(const std::string& reduction, double terms, double slope) {
    const double loss_scale = loss_scale_of(reduction, terms);
    grad_scale_ = static_cast<float>(slope * loss_scale);
    if (tokens_ == 0) clear(grad_weight_);
    clear(grad_bias_);
    const double total = weight_ ? projected() : run_pass(student_, 0, tokens_, grad_student_);
    return {scalar(total * loss_scale), grad_student_, grad_weight_, grad_bias_, scalar(1.0)};
  }

 private:
  Tensor in_dtype(const Tensor& tensor) const {
    return tensor.scalar_type() == dtype_ ? tensor : torch::stable::to(tensor, dtype_);
  }

  // Chunks whose rows stay in the second-level caches until the pass and the next products read them
  // (docs/kernels.md).
  static constexpr int64_t kChunk = 2048, kBf16Chunk = 4096;

  double projected() {
    const Tensor weight_t = torch::stable::transpose(*weight_, 0, 1);
    const int64_t max_chunk = dtype_ == ScalarType::BFloat16 ? kBf16Chunk : kChunk;
    const int64_t chunk = std::min(max_chunk, std::max<int64_t>(tokens_, 1));
    const Tensor buffer = empty({chunk, width_}, dtype_);
    double total = 0.0;
    for (int64_t first = 0; first < tokens_; first += chunk) {
      const int64_t rows = std::min(chunk, tokens_ - first);
      const Tensor student = in_dtype(rows_of(student_, first, rows));
      Tensor grad = rows_of(buffer, 0, rows);
      matmul_out(grad, student, weight_t);
      total += run_pass(grad, first, rows, grad);
      if (!need_grad_) continue;
      Tensor grad_student = rows_of(grad_student_, first, rows);
      matmul_out(grad_student, grad, *weight_);
      matmul_add(grad_weight_, torch::stable::transpose(grad, 0, 1), student, first > 0);
    }
    return total;
  }

  // The operator's pass over `rows` tokens from `first` on; adds to the bias gradient.
  double run_pass(const Tensor& student, int64_t first, int64_t rows, const Tensor& grad) {
    const bool need_bias = need_grad_ && bias_;
    const Tensor teacher = rows_of(teacher_, first, rows);
    HiddenRows p{};
    p.student = student.data_ptr();
    p.student_dtype = dtype_of(student, "student");
    p.student_stride = student.stride(0);
    p.teacher = teacher.data_ptr();
    p.teacher_dtype = dtype_of(teacher, "teacher");
    p.teacher_stride = teacher.stride(0);
    if (bias_) {
      p.bias = bias_->data_ptr();
      p.bias_dtype = dtype_of(*bias_, "bias");
    }
    p.rows = rows;
    p.width = width_;
    std::vector<double> losses(p.blocks());
    std::vector<float> column_sums(need_bias ? p.blocks() * width_ : 0);
    p.grad_scale = grad_scale_;
    p.grad = need_grad_ ? grad.data_ptr() : nullptr;
    p.grad_dtype = dtype_of(grad, "grad");
    p.losses = losses.data();
    p.column_sums = need_bias ? column_sums.data() : nullptr;
    pass_(p);

    if (need_bias) {
      float* grad_bias = static_cast<float*>(grad_bias_.data_ptr());
      for (int64_t block = 0; block < p.blocks(); ++block) {
        for (int64_t d = 0; d < width_; ++d) grad_bias[d] += column_sums[block * width_ + d];
      }
    }
    return sum_of(losses);
  }

  const ScalarType dtype_;  // of the products
  const Tensor student_, teacher_;
  std::optional<Tensor> weight_, bias_;
  const int64_t tokens_, width_;
  const bool need_grad_;
  const Pass pass_;
  float grad_scale_ = 1.0f;
  Tensor grad_student_, grad_weight_, grad_bias_;
};

}  // namespace bertxfer
