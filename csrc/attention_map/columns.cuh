// The second kernel: grad_k of some columns of both maps, over all rows. See attention_map_cuda.h.
#pragma once

#include "rows.cuh"

namespace bertxfer {

// A row's statistics, told apart.
struct MapStatistics {
  float highest_student, sum_student, highest_teacher, sum_teacher, inner;

  // Beyond the sequence: probabilities of zero.
  static __device__ __forceinline__ MapStatistics load(const MapProblem& p, const Tile& tile, int head, int row) {
    if (row >= tile.length) return {INFINITY, 0.0f, INFINITY, 0.0f, 0.0f};
    const int64_t plane = static_cast<int64_t>(p.heads) * p.tokens;
    const float* place = p.statistics + static_cast<int64_t>(head) * p.tokens + tile.start + row;
    return {place[0], place[plane], place[2 * plane], place[3 * plane], p.mse ? place[4 * plane] : 0.0f};
  }

  __device__ __forceinline__ float probability(float score) const {
    return ptx::exp2_approx(score - highest_student - sum_student);
  }
  __device__ __forceinline__ float target(float score) const {
    return ptx::exp2_approx(score - highest_teacher - sum_teacher);
  }
};

template <class T, int BS>
__global__ void __launch_bounds__(ScoreTile<T, BS>::kThreads, ScoreTile<T, BS>::kBlocks)
    map_columns_kernel(MapProblem p) {
  using Block = ScoreTile<T, BS>;
  BERTXFER_DYNAMIC_SHARED(T, shared);
  __shared__ MapStatistics statistics[2][Block::kColumns];
  const int head = blockIdx.x % p.heads, slot = blockIdx.x / p.heads;
  const Tile tile = find_tile(p.cu_seqlens, p.seqused, p.tokens, p.sequences, slot, Block::kRows);
  const Sides x{p.k_student, p.k_teacher}, y{p.q_student, p.q_teacher};
  const Widths<T> widths(x);
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, thread = threadIdx.x % 4;
  const T* own = shared + 16 * warp * widths.stride;

  float grad[BS / 8][4] = {};
  if (tile.row < tile.length) {
    copy_sides(shared, widths, x, tile.start + tile.row, head, Block::kRows, tile.length - tile.row);
    MapStatistics mirrored[2];  // of the rows of the map that are this lane's columns, as x is q and k
    if (p.symmetric) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        mirrored[half] = MapStatistics::load(p, tile, head, tile.row + 16 * warp + group + 8 * half);
      }
    }
    const auto fetch_statistics = [&](int row, int buffer) {
      for (int i = threadIdx.x; i < Block::kColumns; i += Block::kThreads) {
        statistics[buffer][i] = MapStatistics::load(p, tile, head, row + i);
      }
    };
    const auto work = [&](const T* queries, int row, int buffer) {
      float student[Block::kTiles][4] = {}, teacher[Block::kTiles][4] = {};
      scores<T>(student, own, queries, widths.stride, widths.student);
      scores<T>(teacher, own + widths.student, queries + widths.student, widths.stride, widths.teacher);
#pragma unroll
      for (int n = 0; n < Block::kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int query = 8 * n + 2 * thread + (i & 1);
          const MapStatistics& its = statistics[buffer][query];
          const float score = student[n][i] * p.scale_student, other = teacher[n][i] * p.scale_teacher;
          const float probability = its.probability(score);
          float direction = probability - its.target(other);
          if (p.mse) direction = probability * (direction - its.inner);
          if (p.symmetric && row + query < tile.length) {
            direction += mirrored[i >> 1].probability(score) - mirrored[i >> 1].target(other);
          }
          student[n][i] = kLift * direction;
        }
      }
      add_direction<T>(grad, student, queries, widths.stride, widths.student);
    };
    for_columns<Block>(shared + Block::kRows * widths.stride, widths, y, tile, head, work, fetch_statistics);
  }
  store_map_grad(grad, static_cast<T*>(p.grad_k), p, tile, head);
}

}  // namespace bertxfer
