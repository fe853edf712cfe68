// Soft-label KL divergence of logits, forward and gradient (Hinton et al. 2015).
//
//   loss += KL(softmax(teacher / temperature) || softmax(student / temperature)) per row
//   d loss / d student = (softmax(student / temperature) - softmax(teacher / temperature)) / temperature
//
// The stored gradient is grad_scale (softmax - softmax); the tensor side puts the rest into its factor. A row is read
// once, processed in the cache (common/cpu/softmax_rows.h) and its gradient written once.
//
// Bytes: student and teacher once, the gradient once. Operations: two exps per class and row.
#pragma once

#include <cstdint>

#include "../common/cpu/isa.h"
#include "../common/types.h"

namespace bertxfer {

struct LogitsKl {
  const void* student;  // [rows, classes], row stride below
  Dtype student_dtype;
  int64_t student_stride;
  const void* teacher;  // [rows, classes], row stride below
  Dtype teacher_dtype;
  int64_t teacher_stride;
  const void *bias_student, *bias_teacher;  // [classes] in the dtype of their side, or null
  int64_t rows, classes;
  float inverse_temperature;
  float grad_scale;
  void* grad;      // [rows, classes] contiguous, dtype of student (may be `student` itself); null: not wanted
  double* losses;  // [rows] each row's divergence
};

BERTXFER_KERNEL(logits_kl, const LogitsKl&)

}  // namespace bertxfer
