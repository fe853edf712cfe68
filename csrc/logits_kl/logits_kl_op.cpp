// Tensor side of logits_kl.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../common/tensor/loss_scale.h"
#include "logits_kl.h"

namespace bertxfer {
namespace {

std::tuple<Tensor, Tensor, Tensor> logits_kl_cpu(Tensor student,  // [T, V]
                                                 Tensor teacher,  // [T, V]
                                                 double temperature, std::string reduction, bool need_grad) {
  STD_TORCH_CHECK(student.dim() == 2 && teacher.dim() == 2 && student.size(0) == teacher.size(0) &&
                      student.size(1) == teacher.size(1),
                  "student: got ", described(student), ", want [T, V] as teacher ", described(teacher));
  STD_TORCH_CHECK(temperature > 0, "temperature: got ", temperature, ", want a positive number");
  student = rows_contiguous(student);
  teacher = rows_contiguous(teacher);
  const int64_t rows = student.size(0), classes = student.size(1);
  Tensor grad = need_grad ? empty({rows, classes}, student.scalar_type()) : empty({0}, student.scalar_type());
  std::vector<double> losses(rows);
  const PackedView s = packed_view(student, "student"), t = packed_view(teacher, "teacher");
  LogitsKl problem{};
  problem.student = s.data;
  problem.student_dtype = s.dtype;
  problem.student_stride = s.token_stride;
  problem.teacher = t.data;
  problem.teacher_dtype = t.dtype;
  problem.teacher_stride = t.token_stride;
  problem.rows = rows;
  problem.classes = classes;
  problem.inverse_temperature = static_cast<float>(1.0 / temperature);
  // Differences of probabilities are at most 1, and of many classes mostly far below what float16 holds.
  problem.grad_scale = s.dtype == Dtype::f16 ? 16384.0f : 1.0f;
  problem.grad = need_grad ? grad.data_ptr() : nullptr;
  problem.losses = losses.data();
  BERTXFER_DISPATCH(logits_kl)(problem);

  const double loss_scale = loss_scale_of(reduction, static_cast<double>(rows), "batchmean");
  return {scalar(sum_of(losses) * temperature * temperature * loss_scale), grad,
          scalar(temperature * loss_scale / problem.grad_scale)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, CPU, m) {
  m.impl("logits_kl.cpp", TORCH_BOX(&logits_kl_cpu));
}

}  // namespace bertxfer
