// Cosine distance of (projected) hidden states, forward and gradient (DistilBERT, Sanh et al. 2019).
//
// Math, rows p of X W^T + b and y of the teacher, u = p / |p|, v = y / |y|:
//
//   loss += 1 - <u, v>    d loss / dp = -(v - <u, v> u) / |p|
//
// 1 - <u, v> is computed as |u - v|^2 / 2 and v - <u, v> u as (v - u) + loss u, which keep their digits where student
// and teacher agree. Norms are at least 1e-8; the loss of a zero row is 1. Products as in hidden_mse: see
// common/tensor/projected_loss.h.
//
// Bytes: as hidden_mse. Operations of the pass: about 10 per element.
#pragma once

#include "../common/cpu/hidden_rows.h"
#include "../common/cpu/isa.h"

namespace bertxfer {

BERTXFER_KERNEL(hidden_cosine, const HiddenRows&)

}  // namespace bertxfer
