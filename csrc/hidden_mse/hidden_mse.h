// Mean squared error of (projected) hidden states, forward and gradient.
//
// Math, X [T, ds] student, Y [T, dt] teacher, W [dt, ds], b [dt] (TinyBERT, Jiao et al. 2020):
//
//   R = X W^T + b - Y    loss += ||R||^2    dX = 2 R W    dW = 2 R^T X    db = 2 R^T 1
//
// The products are the library's (common/tensor/projected_loss.h, docs/kernels.md). Bias, difference, square, sum,
// scale and the column sums for db are fused into one pass over a chunk that is still in the cache. Without a weight
// that pass is the whole operator.
//
// Bytes, T = 4096, 312 -> 768, float32: X 5.1 MB, Y 12.6 MB read, dX 5.1 MB written; the [2048, dt] residual is reused.
// Operations: 3 T ds dt = 2.9 G multiply-adds; the pass in between 4 T dt.
#pragma once

#include "../common/cpu/hidden_rows.h"
#include "../common/cpu/isa.h"

namespace bertxfer {

BERTXFER_KERNEL(hidden_mse, const HiddenRows&)

}  // namespace bertxfer
