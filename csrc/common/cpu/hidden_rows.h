// What the row passes of hidden_mse and hidden_cosine read and write: rows of (projected) student states beside rows of
// the teacher's.
#pragma once

#include <cstdint>

#include "../types.h"

namespace bertxfer {

// Rows that one partial sum covers: fixed, so that results do not depend on the number of threads.
constexpr int64_t kRowBlock = 32;

struct HiddenRows {
  const void* student;  // [rows, width], before the bias; row stride below
  Dtype student_dtype;
  int64_t student_stride;
  const void* teacher;  // [rows, width], row stride below
  Dtype teacher_dtype;
  int64_t teacher_stride;
  const void* bias;  // [width] or null
  Dtype bias_dtype;
  int64_t rows, width;
  float grad_scale;    // the stored gradient is the pass's own times this
  void* grad;          // [rows, width] contiguous (may be `student`, if of its dtype); null: not wanted
  Dtype grad_dtype;    // of student, or f32 for f16
  double* losses;      // [blocks], blocks = ceil(rows / kRowBlock)
  float* column_sums;  // [blocks, width] column sums of grad; null: not wanted

  int64_t blocks() const { return (rows + kRowBlock - 1) / kRowBlock; }
};

}  // namespace bertxfer
