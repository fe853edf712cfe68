// Softmax attention over packed sequences, forward and backward; what teacher and student of a stream run on.
//
// Math, for one sequence of L tokens and one head:
//
//   S = scale Q K^T    P = softmax(S)    O = (P . M) V
//   dV = (P . M)^T dO    dP = (dO V^T) . M    dS = P . (dP - rowsum(dO . O))    dQ = scale dS K    dK = scale dS^T Q
//
// M is the dropout mask divided by 1 - p, all ones without dropout.
//
// Forward: online softmax over key tiles; only O and the log-sum-exp of each row are stored. Backward: the tiles of P
// are computed again from the log-sum-exps, and M from a counter (Dao et al., "FlashAttention", 2022).
//
// Bytes: q, k, v, o once each way plus the gradients; the map's L^2 entries never. Operations, multiply-adds per head:
// forward 2 L^2 d, backward 5 L^2 d, plus one exp per entry each way.
//
// The products are common/cpu/gemm.h's and common/cpu/bf16_gemm.h's; docs/kernels.md has what was measured.
#pragma once

#include <cstdint>

#include "../common/cpu/isa.h"
#include "../common/types.h"

namespace bertxfer {

struct VarlenAttention {
  PackedView q, k, v;  // [T, H, D]
  Packing packing;
  int64_t tokens, heads;
  float scale;
  float dropout_p;
  uint64_t seed;  // read when dropout_p > 0
  void* out;      // [T, H, D] contiguous, dtype of q; read by the backward pass
  float* lse;     // [H, T] softmax_lse, the log-sum-exp of every row of S
};

struct VarlenAttentionBackward {
  VarlenAttention forward;
  PackedView grad;                 // [T, H, D]
  void *grad_q, *grad_k, *grad_v;  // [T, H, D] contiguous, dtype of q
};

BERTXFER_KERNEL(varlen_attention, const VarlenAttention&)
BERTXFER_KERNEL(varlen_attention_backward, const VarlenAttentionBackward&)

}  // namespace bertxfer
