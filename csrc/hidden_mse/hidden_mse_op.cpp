// Tensor side of hidden_mse: checks, the products, and the residual pass between them.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../common/checks.h"
#include "hidden_mse.h"

namespace bertxfer {
namespace {

constexpr int64_t kChunk = 1024;  // tokens whose residual is kept at a time

void matmul_out(Tensor& out, const Tensor& a, const Tensor& b) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

// out = a b + (accumulate ? out : 0). Half precision accumulates across chunks in float32 `out` all the same.
void matmul_add(Tensor& out, const Tensor& a, const Tensor& b, bool accumulate) {
  if (a.scalar_type() == out.scalar_type()) {
    if (!accumulate) return matmul_out(out, a, b);
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
    return;
  }
  Tensor product = empty({out.size(0), out.size(1)}, a.scalar_type());
  matmul_out(product, a, b);
  const int64_t size = out.numel();
  float* sum = static_cast<float*>(out.data_ptr());
  Tensor widened = torch::stable::to(product, ScalarType::Float);
  const float* terms = static_cast<const float*>(widened.data_ptr());
  for (int64_t i = 0; i < size; ++i) sum[i] = accumulate ? sum[i] + terms[i] : terms[i];
}

class HiddenMse {
 public:
  HiddenMse(const Tensor& student, const Tensor& teacher, const std::optional<Tensor>& weight,
            const std::optional<Tensor>& bias, bool need_grad)
      : student_(rows_contiguous(student)),
        teacher_(rows_contiguous(teacher)),
        tokens_(teacher.size(0)),
        width_(teacher.size(1)),
        need_grad_(need_grad) {
    STD_TORCH_CHECK(student.dim() == 2 && teacher.dim() == 2 && student.size(0) == tokens_, "want [T, Ds] and [T, Dt]");
    if (bias) bias_ = torch::stable::contiguous(*bias);
    if (weight) {
      STD_TORCH_CHECK(weight->dim() == 2 && weight->size(0) == width_ && weight->size(1) == student.size(1) &&
                          weight->scalar_type() == student.scalar_type(),
                      "weight: want [Dt, Ds] in the dtype of student");
      weight_ = *weight;
    }
    STD_TORCH_CHECK(weight || student.size(1) == width_, "weight: wanted where the widths differ");
    STD_TORCH_CHECK(!bias || bias->numel() == width_, "bias: want [Dt]");
    const int64_t ds = student.size(1);
    grad_student_ = need_grad ? empty({tokens_, ds}, student.scalar_type()) : empty({0}, student.scalar_type());
    grad_weight_ = need_grad && weight ? empty({width_, ds}, ScalarType::Float) : empty({0}, ScalarType::Float);
    grad_bias_ = need_grad && bias ? empty({width_}, ScalarType::Float) : empty({0}, ScalarType::Float);
  }

  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> run(const std::string& reduction) {
    clear(grad_weight_);  // T may be 0
    clear(grad_bias_);
    const double total = weight_ ? projected() : residual(student_, 0, tokens_, grad_student_);
    const double count = static_cast<double>(tokens_) * static_cast<double>(width_);
    const double normaliser = reduction == "sum" ? 1.0 : count > 0 ? 1.0 / count : 0.0;
    return {scalar(total * normaliser), grad_student_, grad_weight_, grad_bias_, scalar(normaliser * stored_width())};
  }

 private:
  // The stored gradients are those of the sum of squares over this width.
  double stored_width() const { return static_cast<double>(std::max<int64_t>(width_, 1)); }

  static void clear(Tensor& tensor) {
    float* data = static_cast<float*>(tensor.data_ptr());
    std::fill(data, data + tensor.numel(), 0.0f);
  }

  double projected() {
    const Tensor weight_t = torch::stable::transpose(*weight_, 0, 1);
    const int64_t chunk = std::min(kChunk, std::max<int64_t>(tokens_, 1));
    Tensor buffer = empty({chunk, width_}, student_.scalar_type());
    double total = 0.0;
    for (int64_t first = 0; first < tokens_; first += chunk) {
      const int64_t rows = std::min(chunk, tokens_ - first);
      Tensor student = student_, residuals = buffer;
      student = torch::stable::narrow(student, 0, first, rows);
      residuals = torch::stable::narrow(residuals, 0, 0, rows);
      matmul_out(residuals, student, weight_t);
      total += residual(residuals, first, rows, residuals);
      if (!need_grad_) continue;
      Tensor grad_student = torch::stable::narrow(grad_student_, 0, first, rows);
      matmul_out(grad_student, residuals, *weight_);
      matmul_add(grad_weight_, torch::stable::transpose(residuals, 0, 1), student, first > 0);
    }
    return total;
  }

  // Residual of `rows` tokens from `first` on; leaves the direction in `direction`, adds to the bias gradient.
  double residual(const Tensor& student, int64_t first, int64_t rows, const Tensor& direction) {
    const int64_t blocks = (rows + kResidualRows - 1) / kResidualRows;
    const bool need_bias = need_grad_ && bias_;
    std::vector<double> sums(blocks);
    std::vector<float> column_sums(need_bias ? blocks * width_ : 0);
    Residual pass{};
    pass.student = student.data_ptr();
    pass.student_dtype = dtype_of(student, "student");
    pass.student_stride = student.stride(0);
    const PackedView teacher = packed_view(teacher_, "teacher");
    pass.teacher_dtype = teacher.dtype;
    pass.teacher_stride = teacher.token_stride;
    const int64_t size = teacher.dtype == Dtype::f32 ? 4 : 2;
    pass.teacher = static_cast<const char*>(teacher.data) + first * teacher.token_stride * size;
    if (bias_) {
      pass.bias = bias_->data_ptr();
      pass.bias_dtype = dtype_of(*bias_, "bias");
    }
    pass.rows = rows;
    pass.width = width_;
    pass.factor = static_cast<float>(2.0 / stored_width());
    pass.direction = need_grad_ ? direction.data_ptr() : nullptr;
    pass.sums = sums.data();
    pass.column_sums = need_bias ? column_sums.data() : nullptr;
    BERTXFER_DISPATCH(residual)(pass);

    double total = 0.0;
    for (double sum : sums) total += sum;
    if (need_bias) {
      float* grad_bias = static_cast<float*>(grad_bias_.data_ptr());
      for (int64_t block = 0; block < blocks; ++block) {
        for (int64_t d = 0; d < width_; ++d) grad_bias[d] += column_sums[block * width_ + d];
      }
    }
    return total;
  }

  const Tensor student_, teacher_;
  std::optional<Tensor> weight_, bias_;
  const int64_t tokens_, width_;
  const bool need_grad_;
  Tensor grad_student_, grad_weight_, grad_bias_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> hidden_mse_cpu(Tensor student,                // [T, Ds]
                                                                  Tensor teacher,                // [T, Dt]
                                                                  std::optional<Tensor> weight,  // [Dt, Ds]
                                                                  std::optional<Tensor> bias,    // [Dt]
                                                                  std::string reduction, bool need_grad) {
  return HiddenMse(student, teacher, weight, bias, need_grad).run(reduction);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, CPU, m) {
  m.impl("hidden_mse.cpp", TORCH_BOX(&hidden_mse_cpu));
}

}  // namespace bertxfer
