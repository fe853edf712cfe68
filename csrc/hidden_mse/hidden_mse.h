// Mean squared error of (projected) hidden states, forward and gradient.
//
// Math, X [T, ds] student, Y [T, dt] teacher, W [dt, ds], b [dt] (TinyBERT, Jiao et al. 2020):
//
//   R = X W^T + b - Y    loss += ||R||^2    dX = 2 R W    dW = 2 R^T X    db = 2 R^T 1
//
// The three products are library products (at::mm through torch's C shim) on chunks of kChunk tokens: at these
// widths they run at the speed of the machine and a hand-written one would not be faster. What is fused is everything
// between them: bias, difference, square, sum, scale and the column sums for db, in one pass over a chunk that is still
// in the cache. Without a weight that pass is the whole operator.
//
// Bytes, T = 4096, 312 -> 768, float32: X 5.1 MB, Y 12.6 MB read, dX 5.1 MB written; the [kChunk, dt] residual is
// reused. Operations: 3 T ds dt = 2.9 G multiply-adds; the pass in between 4 T dt.
#pragma once

#include <cstdint>

#include "../common/isa.h"
#include "../common/types.h"

namespace bertxfer {

// Rows that one partial sum covers: fixed, so that results do not depend on the number of threads.
constexpr int64_t kResidualRows = 32;

struct Residual {
  const void* student;  // [rows, dt] or, after a projection, its result; row stride below
  Dtype student_dtype;
  int64_t student_stride;
  const void* teacher;  // [rows, dt]
  Dtype teacher_dtype;
  int64_t teacher_stride;
  const void* bias;  // [dt] or null
  Dtype bias_dtype;
  int64_t rows, width;  // width = dt
  float factor;         // direction = factor * residual
  void* direction;      // [rows, dt] contiguous, dtype of student (may be `student` itself); null: not wanted
  double* sums;         // [ceil(rows / kResidualRows)] sums of squares
  float* column_sums;   // [ceil(rows / kResidualRows), dt] column sums of direction; null: not wanted
};

BERTXFER_KERNEL(residual, const Residual&)

}  // namespace bertxfer
