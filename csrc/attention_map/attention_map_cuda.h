// attention_map_loss and relation_kl on CUDA: what the tensor side hands to the launcher. The math is in
// attention_map.h.
//
// Two kernels, as on Triton and in FlashAttention's backward pass. rows: a block for some rows of both maps, an online
// softmax over all columns first, then the columns again, now with each row's statistics known, for the loss and grad_q
// (MSE needs sum_j P_ij (P_ij - R_ij) before its gradient: once more). columns: a block for some columns over all rows,
// for grad_k. A relation of x with itself has symmetric scores: one sweep of the second kernel gives the gradient
// through both places of x.
//
// Operations at 64/512/12/32/64 (B/L/H/ds/dt), kl: six exponentials and 704 flops for each of 201 M pairs, 142 GFLOP.
// Bytes, bf16: q and k of both sides 151 MB, gradients 50 MB, statistics 3 MB. Floor on an H100: 330 us for the
// exponentials (132 x 16 a clock at 1.75 GHz), 180 for the products at 790 TFLOP/s, 67 for the bytes at 3.0 TB/s.
#pragma once

#include <cstdint>

#include "../common/cuda/attention_pair.h"

namespace bertxfer {

struct AttentionMapCuda : AttentionPairCuda {  // partial_losses: [map_losses]
  bool mse;
  bool symmetric;     // q is k on both sides, and kl: grad_k receives both gradients, grad_q none
  float* statistics;  // [map_statistics, H, T] workspace, see statistics.cuh; null: no gradient is wanted
};

int64_t map_losses(const AttentionMapCuda& p);

// How many float32 planes of [H, T] the second kernel reads: statistics of each row.
int64_t map_statistics(Dtype dtype, bool mse);

void attention_map_cuda(const AttentionMapCuda& p, void* stream);

}  // namespace bertxfer
