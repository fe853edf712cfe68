// Mean squared error of pre-softmax attention scores, forward and gradient.
//
// Math, for one sequence of L tokens and one head (TinyBERT, Jiao et al. 2020):
//
//   S = ss Qs Ks^T    T = st Qt Kt^T    loss += ||S - T||^2    dQs = 2 ss (S - T) Ks    dKs = 2 ss (S - T)^T Qs
//
// tiled: S - T in tiles of one product, [Qs Qt] [ss Ks, -st Kt]^T, each used for the loss and both gradients while it
// is in the cache. L^2 (D + 2 ds) multiply-adds, D = ds + dt.
//
// gram: with A = [ss Qs, -st Qt] and B = [Ks, Kt] (L x D), S - T = A B^T, so
//
//   ||S - T||^2 = trace(B A^T A B^T) = <A^T A, B^T B>
//   dQs = 2 ss A (B^T B)[:, :ds]        dKs = 2 B (A^T A)[:, :ds] * sign and scale of A's student columns
//
// L D^2 (two symmetric halves) + 2 L D ds multiply-adds: linear in L. The scales stay out of the matrices: raw
// [Qs, Qt] and [Ks, Kt] are multiplied, and sigma = (ss.., -st..) is applied to the D x D results in float64.
//
// bfloat16 tensors go through the processor's bfloat16 units where it has them (bf16_gram.h).
//
// Cancellation: where ||S - T||^2 is tiny beside ||S||^2 + ||T||^2 (a diagonal-block sum of the same products), the
// float32 Gram matrices do not hold its digits. Below kCancellation of it they are computed again in float64, still
// linear in L; products of two float32 are exact there, so the loss keeps its digits down to 1e-14 of ||S||^2.
//
// Bytes: q and k of both models once (tiled: once per 256 keys), the gradients once. Reference shape 8/512/12/26/64
// (B/L/H/ds/dt), gram: 35 MB of float32 read, 10 MB written, 0.63 G multiply-adds.
//
// The products are common/cpu/gemm.h's and common/cpu/bf16_gemm.h's; docs/kernels.md has what was measured.
#pragma once

#include <cstdint>

#include "../common/cpu/isa.h"
#include "../common/types.h"

namespace bertxfer {

struct AttentionScoreMse {
  enum class Method { automatic, gram, tiled };

  PackedView q_student, k_student;  // [T, H, ds]
  PackedView q_teacher, k_teacher;  // [T, H, dt]
  Packing packing;
  int64_t heads;
  double scale_student, scale_teacher;
  Method method;
  float grad_scale;  // the stored gradients are d(sum of squares) times this
  Dtype grad_dtype;
  void* grad_q;    // [T, H, ds] contiguous; null: no gradient wanted
  void* grad_k;    // [T, H, ds] as grad_q
  double* losses;  // [N, H], each sequence and head's sum of squares
};

BERTXFER_KERNEL(attention_score_mse, const AttentionScoreMse&)

}  // namespace bertxfer
