// attention_score_mse on CUDA: what the tensor side hands to the launcher. The math is in attention_score_mse.h.
//
// Two kernels. gram: one block a sequence and head makes the Gram matrices in one sweep over q and k, the loss, and the
// gradients in a second sweep, which is to find in the L2 cache what the first one read: 132 blocks of 196 KB (L = 512,
// 32/64) are 26 of its 50 MB. It also decides, and stores, which pairs of a sequence and a head take tiles instead:
// where the sequence is at most `tiled_up_to` tokens long, or the loss is below 1 % of the scores' squares, whose
// difference then has lost its digits. tiled: as many blocks as the device runs at once take 64 rows of S - T at a
// time, and of its transpose, of those pairs; the last block to end sums up the loss.
//
// Bytes at 64/512/12/32/64 (B/L/H/ds/dt), bf16: q and k of both sides 151 MB once from memory, gradients 50 MB.
// Operations: 11 GFLOP for the Gram matrices, 10 for the gradients (twice 5: the matrices in two halves).
// Floor on an H100 at 3.0 TB/s: 67 us.
#pragma once

#include <cstdint>

#include "../common/cuda/attention_pair.h"

namespace bertxfer {

struct AttentionScoreMseCuda : AttentionPairCuda {  // partial_losses: [score_losses]
  int64_t max_seqlen;
  int64_t tiled_up_to;   // sequences longer than this take Gram matrices
  int32_t* takes_tiles;  // [N, H] workspace: whether a sequence and head takes tiles
  unsigned* ticket;      // [1] workspace: how many blocks have ended
};

// An upper limit of partial losses on the current device. Reads the sizes of its argument, and whether grad_q is null.
int64_t score_losses(const AttentionScoreMseCuda& p);

void attention_score_mse_cuda(const AttentionScoreMseCuda& p, void* stream);

}  // namespace bertxfer
