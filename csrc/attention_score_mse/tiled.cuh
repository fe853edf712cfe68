// The tiled route: some rows of D = ss Qs Ks^T - st Qt Kt^T at a time, 16 of them a warp, over all columns. See
// attention_score_mse_cuda.h. For the gradient every tile is made twice: once of D, and once of D^T, where q and k have
// changed places. As many blocks as fit the device share all tiles, so that none is launched for a pair that takes
// none.
#pragma once

#include "gram.cuh"

namespace bertxfer {

// Some rows of the scores of one head, or of their transpose.
struct ScoreRows {
  Tile tile;
  int head;
  bool transposed;
};

// The sum of `value` over this thread and those before it, into sums[thread]. Called by all threads of the block.
template <int kThreads>
__device__ __forceinline__ void block_scan(int value, int (&sums)[kThreads]) {
  __shared__ int warp_sums[kThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int before = __shfl_up_sync(kAllLanes, value, offset);
    if (lane >= offset) value += before;
  }
  if (lane == 31) warp_sums[warp] = value;
  __syncthreads();
  for (int w = 0; w < warp; ++w) value += warp_sums[w];
  sums[threadIdx.x] = value;
  __syncthreads();
}

// How many heads of a sequence take tiles.
__device__ __forceinline__ int tiled_heads(const ScoreMse& p, int sequence) {
  if (p.takes_tiles == nullptr) return p.heads;
  const int32_t* const takes_tiles = p.takes_tiles + static_cast<int64_t>(sequence) * p.heads;
  int heads = 0;
  for (int h = 0; h < p.heads; ++h) heads += takes_tiles[h];
  return heads;
}

// The head that comes as number `index` of those.
__device__ __forceinline__ int tiled_head(const ScoreMse& p, int sequence, int index) {
  if (p.takes_tiles == nullptr) return index;
  const int32_t* const takes_tiles = p.takes_tiles + static_cast<int64_t>(sequence) * p.heads;
  int head = 0;
  while (index >= takes_tiles[head]) index -= takes_tiles[head++];
  return head;
}

// Keeps float32 rows that become operands of T's products inside T's range, which only float16's is too small for: a
// row is divided by the largest entry it has had so far, and its sums with it.
template <class T>
struct OperandRange {
  template <int N, int M>
  __device__ __forceinline__ void fit(float (&)[N][4], float (&)[M][4]) {}
  template <int M>
  __device__ __forceinline__ void restore(float (&)[M][4]) const {}
};

template <>
struct OperandRange<__half> {
  float largest[2] = {1e-30f, 1e-30f};  // of rows group and group + 8

  template <int N, int M>
  __device__ __forceinline__ void fit(float (&rows)[N][4], float (&sums)[M][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float raised = largest[half];
#pragma unroll
      for (int n = 0; n < N; ++n) {
        raised = fmaxf(raised, fmaxf(fabsf(rows[n][2 * half]), fabsf(rows[n][2 * half + 1])));
      }
      raised = fmaxf(raised, __shfl_xor_sync(kAllLanes, raised, 1));
      raised = fmaxf(raised, __shfl_xor_sync(kAllLanes, raised, 2));
      const float inverse = 1.0f / raised, shrink = largest[half] * inverse;
      largest[half] = raised;
#pragma unroll
      for (int c = 2 * half; c < 2 * half + 2; ++c) {
#pragma unroll
        for (int n = 0; n < N; ++n) rows[n][c] *= inverse;
#pragma unroll
        for (int m = 0; m < M; ++m) sums[m][c] *= shrink;
      }
    }
  }

  template <int M>
  __device__ __forceinline__ void restore(float (&sums)[M][4]) const {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][i] *= largest[i >> 1];
    }
  }
};

// Calls work(rows) for this block's share of all tiles, with all threads: every gridDim.x-th, heads of the same tokens
// one after the other.
template <class Block, class Work>
__device__ __forceinline__ void for_tiles(const ScoreMse& p, Work&& work) {
  __shared__ int ends[Block::kThreads];  // how many tiles there are up to and with a sequence
  __shared__ ScoreRows shared_rows;
  const int directions = p.grad_q != nullptr ? 2 : 1;
  int next = blockIdx.x;  // counted from the first tile of these sequences
  for (int first = 0; first < p.sequences; first += Block::kThreads) {
    const int n = first + threadIdx.x;
    int tiles = 0;
    if (n < p.sequences) {
      const Span span = sequence_of(p.cu_seqlens, p.seqused, p.tokens, n);
      tiles = ceil_div(span.length, Block::kRows) * directions * tiled_heads(p, n);
    }
    block_scan(tiles, ends);
    const int all = ends[Block::kThreads - 1];
    for (; next < all; next += gridDim.x) {
      const int begin = threadIdx.x == 0 ? 0 : ends[threadIdx.x - 1];
      if (begin <= next && next < ends[threadIdx.x]) {  // in this thread's sequence
        const Span span = sequence_of(p.cu_seqlens, p.seqused, p.tokens, n);
        const int heads = tiled_heads(p, n), index = next - begin, both = index / heads;
        shared_rows.tile = {n, span.start, span.length, both / directions * Block::kRows};
        shared_rows.head = tiled_head(p, n, index % heads);
        shared_rows.transposed = both % directions == 1;
      }
      __syncthreads();
      const ScoreRows rows = shared_rows;
      work(rows);
    }
    next -= all;
    __syncthreads();  // `ends` has been read by all
  }
}

template <class T, int BS>
__global__ void __launch_bounds__(ScoreTile<T, BS>::kThreads, ScoreTile<T, BS>::kBlocks)
    tiled_kernel(const __grid_constant__ ScoreMse p) {
  using Block = ScoreTile<T, BS>;
  BERTXFER_DYNAMIC_SHARED(T, shared);
  const bool need_grad = p.grad_q != nullptr;
  const float loss_scale = loss_scale_of(p);
  const int dim = p.q_student.dim, warp = threadIdx.x / 32;
  const int64_t stride = static_cast<int64_t>(p.heads) * dim;

  double squares = 0.0;
  for_tiles<Block>(p, [&](const ScoreRows& rows) {
    const Tile& tile = rows.tile;
    const Sides x = rows.transposed ? Sides{p.k_student, p.k_teacher} : Sides{p.q_student, p.q_teacher};
    const Sides y = rows.transposed ? Sides{p.q_student, p.q_teacher} : Sides{p.k_student, p.k_teacher};
    const Widths<T> widths(x);
    const T* own = shared + 16 * warp * widths.stride;
    OperandRange<T> range;
    float tile_squares = 0.0f;
    float grad[BS / 8][4] = {};
    copy_sides(shared, widths, x, tile.start + tile.row, rows.head, Block::kRows, tile.length - tile.row);
    for_columns<Block>(shared + Block::kRows * widths.stride, widths, y, tile, rows.head, [&](const T* columns, int) {
      // Rows and columns beyond the sequence are zeros on both sides, and so is their difference.
      float difference[Block::kTiles][4] = {}, teacher[Block::kTiles][4] = {};
      scores<T>(difference, own, columns, widths.stride, widths.student);
      scores<T>(teacher, own + widths.student, columns + widths.student, widths.stride, widths.teacher);
#pragma unroll
      for (int n = 0; n < Block::kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          difference[n][i] = p.scale_student * difference[n][i] - p.scale_teacher * teacher[n][i];
          tile_squares += difference[n][i] * difference[n][i];
        }
      }
      if (!need_grad) return;
      range.fit(difference, grad);
      add_direction<T>(grad, difference, columns, widths.stride, widths.student);
    });
    if (!rows.transposed) squares += static_cast<double>(tile_squares);
    if (!need_grad) return;
    range.restore(grad);
    Grad<T>* const to = static_cast<Grad<T>*>(rows.transposed ? p.grad_k : p.grad_q) + tile.start * stride +
                        static_cast<int64_t>(rows.head) * dim;
    store_rows(grad, to, stride, tile.row + 16 * warp, tile.length, 0, dim, 2.0f * p.scale_student * loss_scale);
  });

  // Whichever route the others take, tokens that do not count get their zeros here.
  if (need_grad) {
    zero_unused_tokens(static_cast<Grad<T>*>(p.grad_q), p.cu_seqlens, p.seqused, p.tokens, p.sequences, stride);
    zero_unused_tokens(static_cast<Grad<T>*>(p.grad_k), p.cu_seqlens, p.seqused, p.tokens, p.sequences, stride);
  }
  const int64_t grams = p.takes_tiles == nullptr ? 0 : static_cast<int64_t>(p.sequences) * p.heads;
  squares = block_sum(squares);
  if (threadIdx.x == 0) p.partial_losses[grams + blockIdx.x] = static_cast<float>(squares);
  if (is_last_block(p.ticket)) finish_loss(p, loss_scale, grams + gridDim.x);
}

}  // namespace bertxfer
