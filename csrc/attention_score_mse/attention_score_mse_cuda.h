// attention_score_mse on CUDA: what the tensor side hands to the launcher. The math is in attention_score_mse.h.
//
// Two kernels, as on Triton. gram: one block a sequence and head makes the Gram matrices in one sweep over q and k, the
// loss, and the gradients in a second sweep, which is to find in the L2 cache what the first one read: 132 blocks of
// 196 KB (L = 512, 32/64) are 26 of its 50 MB. tiled: a block for 64 rows of S - T, and of its transpose. Which of the
// two a sequence and head takes is found on the device: tiles where it is at most `tiled_up_to` tokens long, or where
// the loss is below 1 % of the scores' squares, whose difference then has lost its digits.
//
// Bytes at 64/512/12/32/64 (B/L/H/ds/dt), bf16: q and k of both sides 151 MB once from memory, gradients 50 MB.
// Operations: 11 GFLOP for the Gram matrices, 10 for the gradients (twice 5: the matrices in two halves).
// Floor on an H100 at 3.0 TB/s: 67 us. Last measured: not yet measured.
#pragma once

#include <cstdint>

#include "../common/cuda/attention_pair.h"

namespace bertxfer {

struct AttentionScoreMseCuda : AttentionPairCuda {  // losses: [gram_losses + tile_losses], sums of squares
  int64_t max_seqlen;
  int64_t tiled_up_to;  // sequences longer than this take Gram matrices
  float* sums;          // [N, H, 3]: <S, S>, <S, T> and <T, T>; unused where every sequence takes tiles
};

// Widest head of either side whose Gram matrices fit a block.
constexpr int64_t kWidestGram = 64;

// How many numbers `losses` holds of each kernel.
int64_t gram_losses(const AttentionScoreMseCuda& p);
int64_t tile_losses(const AttentionScoreMseCuda& p);

void attention_score_mse_cuda(const AttentionScoreMseCuda& p, void* stream);

}  // namespace bertxfer
