// How the losses on queries and keys end, inside their own kernels: the normaliser, found from lengths that only the
// device knows, and the sum of all blocks' partial losses.
#pragma once

#include "attention_pair.h"
#include "tiles.cuh"

namespace bertxfer {

// What every kernel sees of a problem.
struct PairProblem {
  RowSource q_student, k_student, q_teacher, k_teacher;
  const int32_t* cu_seqlens;  // [N + 1]
  const int32_t* seqused;     // [N] or null
  int tokens, sequences, heads;
  float scale_student, scale_teacher;
  LossReduction reduction;
  void* grad_q;           // [T, H, ds] or null
  void* grad_k;           // [T, H, ds] or null
  float* partial_losses;  // see the kernels

  explicit PairProblem(const AttentionPairCuda& p)
      : q_student(row_source(p.q_student)),
        k_student(row_source(p.k_student)),
        q_teacher(row_source(p.q_teacher)),
        k_teacher(row_source(p.k_teacher)),
        cu_seqlens(p.packing.cu_seqlens),
        seqused(p.packing.seqused),
        tokens(static_cast<int>(p.tokens)),
        sequences(static_cast<int>(p.packing.sequences)),
        heads(static_cast<int>(p.heads)),
        scale_student(p.scale_student),
        scale_teacher(p.scale_teacher),
        reduction(p.reduction),
        grad_q(p.grad_q),
        grad_k(p.grad_k),
        partial_losses(p.partial_losses) {}
};

// What the loss and its gradients are multiplied by. Every block finds it for itself: reading all lengths takes less
// time than the launch of another kernel. Called by all threads of the block.
__device__ __forceinline__ float loss_scale_of(const PairProblem& p) {
  const LossReduction& reduction = p.reduction;
  if (!reduction.mean) return 1.0f;
  long long terms = 0;
  for (int n = threadIdx.x; n < p.sequences; n += blockDim.x) {
    const long long used = sequence_of(p.cu_seqlens, p.seqused, p.tokens, n).length;
    terms += reduction.squared_lengths ? used * used : used;
  }
  terms = block_sum(terms) * p.heads;
  return terms > 0 ? static_cast<float>(1.0 / static_cast<double>(terms)) : 0.0f;
}

// The loss, of `count` partial losses that other blocks or kernels have written: a sum in float64 and in a fixed order.
// Called by all threads of one block.
__device__ __forceinline__ void finish_loss(const PairProblem& p, float loss_scale, int64_t count) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += static_cast<double>(p.partial_losses[i]);
  sum = block_sum(sum);
  if (threadIdx.x != 0) return;
  *p.reduction.loss = static_cast<float>(sum * static_cast<double>(loss_scale));
  *p.reduction.grad_scale = 1.0f;
}

}  // namespace bertxfer
