// KL divergence or MSE of softmaxed attention maps, forward and gradient; relation_kl is its case q = k.
//
// Math, for one sequence of L tokens and one head, rows i (MiniLM, Wang et al. 2020; TextBrewer, Yang et al. 2020):
//
//   S = ss Qs Ks^T, P = softmax(S)    T = st Qt Kt^T, R = softmax(T)
//   kl:  loss += sum_ij R_ij (log R_ij - log P_ij)    G = P - R
//   mse: loss += ||P - R||^2                          G = 2 P . (P - R - rowsum((P - R) . P))
//   dQs = ss G Ks    dKs = ss G^T Qs
//
// Strips of a few dozen whole rows of S and T fit the second-level cache, so softmax, loss and G are computed in place
// while the strip is there: no score is computed twice, as an online softmax would, and memory is linear in L.
//
// bfloat16 tensors go through the processor's bfloat16 units where it has them (bf16_strips.h): scores, softmax and
// loss stay float32, exponentials are good to 3e-6, and G is rounded to bfloat16 for its two products. The divergence
// of a row, exact when it is tiny, is common/cpu/softmax_rows.h's.
//
// Bytes: q and k of both models once, the gradients once. Operations per head: L^2 (3 ds + dt) multiply-adds and two
// exps a pair.
//
// The products are common/cpu/gemm.h's and common/cpu/bf16_gemm.h's; docs/kernels.md has what was measured.
#pragma once

#include <cstdint>

#include "../common/cpu/isa.h"
#include "../common/types.h"

namespace bertxfer {

struct AttentionMap {
  enum class Kind { kl, mse };

  PackedView q_student, k_student;  // [T, H, ds]
  PackedView q_teacher, k_teacher;  // [T, H, dt]
  Packing packing;
  int64_t heads;
  float scale_student, scale_teacher;
  Kind kind;
  float grad_scale;  // the stored gradients are d(sum of losses) times this
  bool need_grad;
  Dtype grad_dtype;
  void* grad_q;    // [T, H, ds] contiguous
  void* grad_k;    // [T, H, ds]; null where q_student is k_student: then grad_q receives both
  double* losses;  // [N, H], each sequence and head's loss
};

BERTXFER_KERNEL(attention_map, const AttentionMap&)

}  // namespace bertxfer
