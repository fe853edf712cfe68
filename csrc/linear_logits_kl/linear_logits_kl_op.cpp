// linear_logits_kl: logits_kl of X W^T + b, a chunk of tokens at a time (Hinton et al. 2015).
//
//   S = Xs Ws^T + bs    T = Xt Wt^T + bt    loss, G = logits_kl(S, T)    dXs = G Ws    dWs = G^T Xs    dbs = G^T 1
//
// The library does the four products; between them logits_kl's kernel adds the biases and turns S into G in place. Two
// chunks of logits of at most kChunkElements each are all the memory it needs beside its results. float16 is widened to
// float32, because logits and sums over a chunk pass its 65504 where the gradient does not.
//
// Bytes: hidden states once, both weights once a chunk, dWs once a chunk. Operations: T V (3 ds + dt) multiply-adds.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../common/tensor/loss_scale.h"
#include "../common/tensor/products.h"
#include "../logits_kl/logits_kl.h"

namespace bertxfer {
namespace {

constexpr int64_t kChunkElements = 8 << 20;
constexpr int64_t kMinChunk = 32;

class LinearLogitsKl {
 public:
  LinearLogitsKl(const Tensor& student, const Tensor& weight_student, const std::optional<Tensor>& bias_student,
                 const Tensor& teacher, const Tensor& weight_teacher, const std::optional<Tensor>& bias_teacher)
      : student_(matmul_operand(widened(student))),
        weight_student_(matmul_operand(widened(weight_student))),
        teacher_(matmul_operand(widened(teacher))),
        weight_teacher_(matmul_operand(widened(weight_teacher))),
        tokens_(student.size(0)),
        classes_(weight_student.size(0)) {
    STD_TORCH_CHECK(student.dim() == 2 && teacher.dim() == 2 && teacher.size(0) == tokens_, "student: got ",
                    described(student), ", want [T, Ds] beside teacher ", described(teacher));
    STD_TORCH_CHECK(weight_student.dim() == 2 && weight_student.size(1) == student.size(1) &&
                        weight_student.scalar_type() == student.scalar_type(),
                    "weight_student: got ", described(weight_student), ", want [V, Ds] in the dtype of student ",
                    described(student));
    STD_TORCH_CHECK(weight_teacher.dim() == 2 && weight_teacher.size(0) == classes_ &&
                        weight_teacher.size(1) == teacher.size(1) &&
                        weight_teacher.scalar_type() == teacher.scalar_type(),
                    "weight_teacher: got ", described(weight_teacher), ", want [", classes_,
                    ", Dt] in the dtype of teacher ", described(teacher));
    bias_student_ = checked_bias(bias_student, student, "bias_student");
    bias_teacher_ = checked_bias(bias_teacher, teacher, "bias_teacher");
  }

  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> run(double temperature, const std::string& reduction,
                                                         bool need_grad) {
    STD_TORCH_CHECK(temperature > 0, "temperature: got ", temperature, ", want a positive number");
    const ScalarType dtype = student_.scalar_type();
    const int64_t ds = student_.size(1);
    Tensor grad_student = need_grad ? empty({tokens_, ds}, dtype) : empty({0}, dtype);
    Tensor grad_weight = need_grad ? empty({classes_, ds}, ScalarType::Float) : empty({0}, ScalarType::Float);
    const bool need_bias = need_grad && bias_student_;
    Tensor grad_bias = need_bias ? empty({classes_}, ScalarType::Float) : empty({0}, ScalarType::Float);
    if (tokens_ == 0) {
      clear(grad_weight);
      clear(grad_bias);
    }
    const int64_t max_chunk = std::max(kMinChunk, kChunkElements / std::max<int64_t>(classes_, 1));
    const int64_t chunk = std::min(max_chunk, std::max<int64_t>(tokens_, 1));
    const Tensor logits_student = empty({chunk, classes_}, dtype);
    const Tensor logits_teacher = empty({chunk, classes_}, teacher_.scalar_type());
    const Tensor ones = torch::stable::full({int64_t{1}, chunk}, 1.0, dtype);
    Tensor bias_row = torch::stable::view(grad_bias, {int64_t{1}, grad_bias.numel()});
    std::vector<double> losses(tokens_);
    for (int64_t first = 0; first < tokens_; first += chunk) {
      const int64_t rows = std::min(chunk, tokens_ - first);
      const Tensor student = rows_of(student_, first, rows);
      Tensor grad_logits = rows_of(logits_student, 0, rows), target = rows_of(logits_teacher, 0, rows);
      matmul_out(grad_logits, student, torch::stable::transpose(weight_student_, 0, 1));
      matmul_out(target, rows_of(teacher_, first, rows), torch::stable::transpose(weight_teacher_, 0, 1));
      differentiate(grad_logits, target, temperature, need_grad, losses.data() + first);
      if (!need_grad) continue;
      Tensor grad_rows = rows_of(grad_student, first, rows);
      matmul_out(grad_rows, grad_logits, weight_student_);
      matmul_add(grad_weight, torch::stable::transpose(grad_logits, 0, 1), student, first > 0);
      if (need_bias)
        matmul_add(bias_row, torch::stable::narrow(const_cast<Tensor&>(ones), 1, 0, rows), grad_logits, first > 0);
    }
    const double loss_scale = loss_scale_of(reduction, static_cast<double>(tokens_), "batchmean");
    return {scalar(sum_of(losses) * temperature * temperature * loss_scale), grad_student, grad_weight, grad_bias,
            scalar(temperature * loss_scale)};
  }

 private:
  // In the dtype of the products.
  static Tensor widened(const Tensor& tensor) {
    return tensor.scalar_type() == ScalarType::Half ? torch::stable::to(tensor, ScalarType::Float) : tensor;
  }

  std::optional<Tensor> checked_bias(const std::optional<Tensor>& bias, const Tensor& side, const char* name) const {
    if (!bias) return std::nullopt;
    STD_TORCH_CHECK(bias->numel() == classes_ && bias->scalar_type() == side.scalar_type(), name, ": got ",
                    described(*bias), ", want [", classes_, "] in its side's dtype");
    return torch::stable::contiguous(widened(*bias));
  }

  void differentiate(const Tensor& student, const Tensor& teacher, double temperature, bool need_grad,
                     double* losses) const {
    LogitsKl problem{};
    problem.student = student.data_ptr();
    problem.student_dtype = dtype_of(student, "student");
    problem.student_stride = problem.teacher_stride = classes_;
    problem.teacher = teacher.data_ptr();
    problem.teacher_dtype = dtype_of(teacher, "teacher");
    problem.bias_student = bias_student_ ? bias_student_->data_ptr() : nullptr;
    problem.bias_teacher = bias_teacher_ ? bias_teacher_->data_ptr() : nullptr;
    problem.rows = student.size(0);
    problem.classes = classes_;
    problem.inverse_temperature = static_cast<float>(1.0 / temperature);
    problem.grad_scale = 1.0f;
    problem.grad = need_grad ? student.data_ptr() : nullptr;
    problem.losses = losses;
    BERTXFER_DISPATCH(logits_kl)(problem);
  }

  const Tensor student_, weight_student_, teacher_, weight_teacher_;
  const int64_t tokens_, classes_;
  std::optional<Tensor> bias_student_, bias_teacher_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> linear_logits_kl_cpu(Tensor student,                      // [T, Ds]
                                                                        Tensor weight_student,               // [V, Ds]
                                                                        std::optional<Tensor> bias_student,  // [V]
                                                                        Tensor teacher,                      // [T, Dt]
                                                                        Tensor weight_teacher,               // [V, Dt]
                                                                        std::optional<Tensor> bias_teacher,  // [V]
                                                                        double temperature, std::string reduction,
                                                                        bool need_grad) {
  LinearLogitsKl loss(student, weight_student, bias_student, teacher, weight_teacher, bias_teacher);
  return loss.run(temperature, reduction, need_grad);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, CPU, m) {
  m.impl("linear_logits_kl.cpp", TORCH_BOX(&linear_logits_kl_cpu));
}

}  // namespace bertxfer
