// Tensor side shared by hidden_mse and hidden_cosine: loss(student W^T + b, teacher), chunk by chunk.
//
// Three library products per chunk of tokens, P = X W^T, dX = G W and dW += G^T X, and between them one pass of
// the operator's own over the chunk (`pass`), which turns P into G in place while it is in the cache. float16 is
// widened to float32 chunk by chunk: it ends at 65504, which sums over a chunk pass, and no scale suits both them and
// small residuals.
#pragma once

#include <algorithm>
#include <tuple>
#include <vector>

#include "../cpu/hidden_rows.h"
#include "products.h"

namespace bertxfer {

class ProjectedLoss {
 public:
  using Pass = void (*)(const HiddenRows&);
  using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // loss, d student, d weight, d bias, grad_scale

  ProjectedLoss(const Tensor& student, const Tensor& teacher, const std::optional<Tensor>& weight,
                const std::optional<Tensor>& bias, bool need_grad, Pass pass)
      : dtype_(student.scalar_type() == ScalarType::Half && weight ? ScalarType::Float : student.scalar_type()),
        student_(dense(student)),
        teacher_(rows_contiguous(teacher)),
        tokens_(teacher.size(0)),
        width_(teacher.size(1)),
        need_grad_(need_grad),
        pass_(pass) {
    STD_TORCH_CHECK(student.dim() == 2 && teacher.dim() == 2 && student.size(0) == tokens_, "teacher: got ",
                    shown(teacher), ", want [T, Dt] with T of student, ", shown(student));
    if (bias) bias_ = torch::stable::contiguous(*bias);
    if (weight) {
      STD_TORCH_CHECK(weight->dim() == 2 && weight->size(0) == width_ && weight->size(1) == student.size(1) &&
                          weight->scalar_type() == student.scalar_type(),
                      "weight: got ", shown(*weight), ", want [Dt, Ds] in the dtype of student, ", shown(student));
      weight_ = dense(in_dtype(*weight));
    }
    STD_TORCH_CHECK(weight || student.size(1) == width_, "weight: got none with widths ", student.size(1), " and ",
                    width_, ", want [Dt, Ds]");
    STD_TORCH_CHECK(!bias || bias->numel() == width_, "bias: got ", shown(*bias), ", want [Dt]");
    const int64_t ds = student.size(1);
    grad_student_ = need_grad ? empty({tokens_, ds}, student.scalar_type()) : empty({0}, student.scalar_type());
    grad_weight_ = need_grad && weight ? empty({width_, ds}, ScalarType::Float) : empty({0}, ScalarType::Float);
    grad_bias_ = need_grad && bias ? empty({width_}, ScalarType::Float) : empty({0}, ScalarType::Float);
  }

  // `terms`: what the mean is over. `slope`: the gradient of the sum is this times the pass's direction.
  Result run(const std::string& reduction, double terms, double slope) {
    const double normaliser = normaliser_of(reduction, terms);
    scale_ = stored_scale(student_.scalar_type(), slope * normaliser, 1.0);
    if (tokens_ == 0) clear(grad_weight_);
    clear(grad_bias_);
    const double total = weight_ ? projected() : run_pass(student_, 0, tokens_, grad_student_);
    return {scalar(total * normaliser), grad_student_, grad_weight_, grad_bias_,
            grad_scale(slope * normaliser, scale_)};
  }

 private:
  Tensor in_dtype(const Tensor& tensor) const {
    return tensor.scalar_type() == dtype_ ? tensor : torch::stable::to(tensor, dtype_);
  }

  // A chunk's rows are still in the second-level caches when the pass and the next products come to them. The library's
  // bfloat16 products want more rows at a time (docs/kernels.md).
  static constexpr int64_t kChunk = 2048, kBf16Chunk = 4096;

  double projected() {
    const Tensor weight_t = torch::stable::transpose(*weight_, 0, 1);
    const int64_t most = dtype_ == ScalarType::BFloat16 ? kBf16Chunk : kChunk;
    const int64_t chunk = std::min(most, std::max<int64_t>(tokens_, 1));
    const Tensor buffer = empty({chunk, width_}, dtype_);
    const bool widened = dtype_ != student_.scalar_type();
    Tensor wide_grad = empty({widened ? chunk : 0, student_.size(1)}, dtype_);
    double total = 0.0;
    for (int64_t first = 0; first < tokens_; first += chunk) {
      const int64_t rows = std::min(chunk, tokens_ - first);
      const Tensor student = in_dtype(rows_of(student_, first, rows));
      Tensor direction = rows_of(buffer, 0, rows);
      matmul_out(direction, student, weight_t);
      total += run_pass(direction, first, rows, direction);
      if (!need_grad_) continue;
      Tensor grad_student = rows_of(grad_student_, first, rows);
      Tensor product = widened ? rows_of(wide_grad, 0, rows) : grad_student;
      matmul_out(product, direction, *weight_);
      if (widened) torch::stable::copy_(grad_student, product);
      matmul_add(grad_weight_, torch::stable::transpose(direction, 0, 1), student, first > 0);
    }
    return total;
  }

  // The operator's pass over `rows` tokens from `first` on; adds to the bias gradient.
  double run_pass(const Tensor& student, int64_t first, int64_t rows, const Tensor& direction) {
    const int64_t blocks = (rows + kRowBlock - 1) / kRowBlock;
    const bool need_bias = need_grad_ && bias_;
    std::vector<double> sums(blocks);
    std::vector<float> column_sums(need_bias ? blocks * width_ : 0);
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
    p.scale = scale_;
    p.direction = need_grad_ ? direction.data_ptr() : nullptr;
    p.sums = sums.data();
    p.column_sums = need_bias ? column_sums.data() : nullptr;
    pass_(p);

    if (need_bias) {
      float* grad_bias = static_cast<float*>(grad_bias_.data_ptr());
      for (int64_t block = 0; block < blocks; ++block) {
        for (int64_t d = 0; d < width_; ++d) grad_bias[d] += column_sums[block * width_ + d];
      }
    }
    return total_of(sums);
  }

  const ScalarType dtype_;  // of the products
  const Tensor student_, teacher_;
  std::optional<Tensor> weight_, bias_;
  const int64_t tokens_, width_;
  const bool need_grad_;
  const Pass pass_;
  float scale_ = 1.0f;
  Tensor grad_student_, grad_weight_, grad_bias_;
};

}  // namespace bertxfer
