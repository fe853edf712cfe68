// The second kernel: grad_k of some columns of both maps, over all rows. See attention_map_cuda.h.
#pragma once

#include "statistics.cuh"

namespace bertxfer {

template <class T, int BS>
__global__ void __launch_bounds__(ScoreTile<T, BS>::kThreads, ScoreTile<T, BS>::kBlocks)
    map_columns_kernel(const __grid_constant__ MapProblem p) {
  using Block = ScoreTile<T, BS>;
  BERTXFER_DYNAMIC_SHARED(T, shared);
  __shared__ RowStatistics<T> statistics[2][Block::kColumns];
  const int head = blockIdx.x % p.heads, slot = blockIdx.x / p.heads;
  const Tile tile = find_tile(p.cu_seqlens, p.seqused, p.tokens, p.sequences, slot, Block::kRows);
  const Sides x{p.k_student, p.k_teacher}, y{p.q_student, p.q_teacher};
  const Widths<T> widths(x);
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, thread = threadIdx.x % 4;
  const T* own = shared + 16 * warp * widths.stride;

  float loss_scale = 0.0f;
  float grad[BS / 8][4] = {};
  if (tile.row < tile.length) {
    copy_sides(shared, widths, x, tile.start + tile.row, head, Block::kRows, tile.length - tile.row);
    loss_scale = loss_scale_of(p);  // while the columns are on their way
    RowStatistics<T> mirrored[2];   // of the rows of the map that are this lane's columns, as x is q and k
    if (p.symmetric) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        mirrored[half] = RowStatistics<T>::load(p, tile, head, tile.row + 16 * warp + group + 8 * half);
      }
    }
    const auto fetch_statistics = [&](int row, int buffer) {
      for (int i = threadIdx.x; i < Block::kColumns; i += Block::kThreads) {
        statistics[buffer][i] = RowStatistics<T>::load(p, tile, head, row + i);
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
          const RowStatistics<T>& its = statistics[buffer][query];
          const float probability = its.student.probability(student[n][i], p.scale_student);
          float direction = probability - its.teacher.probability(teacher[n][i], p.scale_teacher);
          if (p.mse) direction = probability * (direction - its.inner);
          if (p.symmetric && row + query < tile.length) {
            direction += mirrored[i >> 1].student.probability(student[n][i], p.scale_student) -
                         mirrored[i >> 1].teacher.probability(teacher[n][i], p.scale_teacher);
          }
          student[n][i] = kLift * direction;
        }
      }
      add_direction<T>(grad, student, queries, widths.stride, widths.student);
    };
    for_columns<Block>(shared + Block::kRows * widths.stride, widths, y, tile, head, work, fetch_statistics);
  }
  store_map_grad(grad, static_cast<Grad<T>*>(p.grad_k), p, tile, head, loss_scale);
  // The first kernel has left a partial loss for each of its blocks, and they are as many as there are here.
  if (blockIdx.x == 0) finish_loss(p, loss_scale_of(p), gridDim.x);
}

}  // namespace bertxfer
