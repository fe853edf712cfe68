// The tiled route: a block for some rows of D = ss Qs Ks^T - st Qt Kt^T, 16 of them a warp, over all columns. See
// attention_score_mse_cuda.h. Blocks come in pairs: the second of a pair takes D^T, where q and k have changed places.
#pragma once

#include "gram.cuh"

namespace bertxfer {

template <class T, int BS>
__global__ void __launch_bounds__(ScoreTile<T, BS>::kThreads, ScoreTile<T, BS>::kBlocks) tiled_kernel(ScoreMse p) {
  using Block = ScoreTile<T, BS>;
  BERTXFER_DYNAMIC_SHARED(T, shared);
  const bool need_grad = p.grad_q != nullptr;
  const int head = blockIdx.x % p.heads, both = blockIdx.x / p.heads;
  const int slot = need_grad ? both / 2 : both;
  const bool transposed = need_grad && both % 2 == 1;
  const Tile tile = find_tile(p.cu_seqlens, p.seqused, p.tokens, p.sequences, slot, Block::kRows);
  const int pair = tile.sequence * p.heads + head;
  bool works = tile.row < tile.length;
  if (works && tile.length > p.tiled_up_to) {
    const float* sums = p.sums + 3 * pair;
    works = sums[0] - 2.0f * sums[1] + sums[2] < kGuard * (sums[0] + sums[2]);
  }

  const Sides x = transposed ? Sides{p.k_student, p.k_teacher} : Sides{p.q_student, p.q_teacher};
  const Sides y = transposed ? Sides{p.q_student, p.q_teacher} : Sides{p.k_student, p.k_teacher};
  const Widths<T> widths(x);
  const int warp = threadIdx.x / 32;
  const T* own = shared + 16 * warp * widths.stride;

  float squares = 0.0f;
  float grad[BS / 8][4] = {};
  if (works) {
    copy_sides(shared, widths, x, tile.start + tile.row, head, Block::kRows, tile.length - tile.row);
    for_columns<Block>(shared + Block::kRows * widths.stride, widths, y, tile, head, [&](const T* columns, int) {
      // Rows and columns beyond the sequence are zeros on both sides, and so is their difference.
      float difference[Block::kTiles][4] = {}, theirs[Block::kTiles][4] = {};
      scores<T>(difference, own, columns, widths.stride, widths.student);
      scores<T>(theirs, own + widths.student, columns + widths.student, widths.stride, widths.teacher);
#pragma unroll
      for (int n = 0; n < Block::kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          difference[n][i] = p.scale_student * difference[n][i] - p.scale_teacher * theirs[n][i];
          squares += difference[n][i] * difference[n][i];
        }
      }
      if (need_grad) add_direction<T>(grad, difference, columns, widths.stride, widths.student);
    });
  }
  squares = block_sum(squares);
  if (threadIdx.x == 0 && !transposed) p.losses[slot * p.heads + head] = squares;
  if (!need_grad) return;

  // The tokens that do not count get their zeros here, whichever route the others take.
  const int dim = p.q_student.dim;
  const int64_t stride = static_cast<int64_t>(p.heads) * dim;
  T* to = static_cast<T*>(transposed ? p.grad_k : p.grad_q) + static_cast<int64_t>(tile.start) * stride +
          static_cast<int64_t>(head) * dim;
  if (works) {
    store_rows(grad, to, stride, tile.row + 16 * warp, tile.length, 0, dim, 2.0f * p.scale_student * p.numbers[1]);
  }
  const int whole = sequence_of(p.cu_seqlens, nullptr, p.tokens, tile.sequence).length;
  zero_rows(to, stride, max(tile.row, tile.length), min(tile.row + Block::kRows, whole), dim);
}

}  // namespace bertxfer
