// The first kernel: loss, statistics and grad_q of some rows of both maps. See attention_map_cuda.h.
#pragma once

#include "statistics.cuh"

namespace bertxfer {

// A term of KL(R || P) from log2-probabilities and probabilities: r d + p - r with d = log r - log p. The last two add
// up to nothing in a row, and with them roundings of the rows' sums cancel. In float32 a series keeps the digits of r
// (d
// + exp(-d) - 1) near d = 0; half precision has lost them in its inputs.
template <class T>
__device__ __forceinline__ float divergence(float log_p, float log_r, float p, float r) {
  const float d = (log_r - log_p) * 0.6931471805599453f;
  const float term = r * d + (p - r);
  if constexpr (sizeof(T) == 2) return term;
  const float series =
      0.5f * d * d * (1.0f + d * (-1.0f / 3.0f + d * (1.0f / 12.0f + d * (-1.0f / 60.0f + d * (1.0f / 360.0f)))));
  return fabsf(d) < 0.25f ? r * series : term;
}

template <class T, int BS>
__global__ void __launch_bounds__(ScoreTile<T, BS>::kThreads, ScoreTile<T, BS>::kBlocks)
    map_rows_kernel(const __grid_constant__ MapProblem p) {
  using Block = ScoreTile<T, BS>;
  BERTXFER_DYNAMIC_SHARED(T, shared);
  const int head = blockIdx.x % p.heads, slot = blockIdx.x / p.heads;
  const Tile tile = find_tile(p.cu_seqlens, p.seqused, p.tokens, p.sequences, slot, Block::kRows);
  const Sides x{p.q_student, p.q_teacher}, y{p.k_student, p.k_teacher};
  const Widths<T> widths(x);
  T* buffers = shared + Block::kRows * widths.stride;
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, thread = threadIdx.x % 4;
  const T* own = shared + 16 * warp * widths.stride;
  const bool need_grad = p.grad_k != nullptr && !p.symmetric;

  float loss = 0.0f, loss_scale = 0.0f;
  float grad[BS / 8][4] = {};
  if (tile.row < tile.length) {
    copy_sides(shared, widths, x, tile.start + tile.row, head, Block::kRows, tile.length - tile.row);
    if (need_grad) loss_scale = loss_scale_of(p);  // while the rows are on their way
    // Calls work(student's scores, its scale, teacher's, its scale, keys) for all tiles of columns. Where a tile ends
    // beyond the sequence the scale is in the scores already.
    const auto sweep = [&](auto&& work) {
      for_columns<Block>(buffers, widths, y, tile, head, [&](const T* keys, int column) {
        float student[Block::kTiles][4] = {}, teacher[Block::kTiles][4] = {};
        scores<T>(student, own, keys, widths.stride, widths.student);
        scores<T>(teacher, own + widths.student, keys + widths.student, widths.stride, widths.teacher);
        float scale_student = p.scale_student, scale_teacher = p.scale_teacher;
        if (column + Block::kColumns > tile.length) {
#pragma unroll
          for (int n = 0; n < Block::kTiles; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const bool valid = column + 8 * n + 2 * thread + (i & 1) < tile.length;
              student[n][i] = valid ? student[n][i] * scale_student : kMasked;
              teacher[n][i] = valid ? teacher[n][i] * scale_teacher : kMasked;
            }
          }
          scale_student = scale_teacher = 1.0f;
        }
        work(student, scale_student, teacher, scale_teacher, keys);
      });
    };

    OnlineSum student_sum[2], teacher_sum[2];  // of rows group and group + 8
    sweep([&](float (&student)[Block::kTiles][4], float scale_student, float (&teacher)[Block::kTiles][4],
              float scale_teacher, const T*) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        student_sum[half].add(student, half, scale_student);
        teacher_sum[half].add(teacher, half, scale_teacher);
      }
    });
    RowStatistics<T> rows[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      rows[half].student = SoftmaxRow<T>(student_sum[half]);
      rows[half].teacher = SoftmaxRow<T>(teacher_sum[half]);
      rows[half].inner = 0.0f;
    }

    sweep([&](float (&student)[Block::kTiles][4], float scale_student, float (&teacher)[Block::kTiles][4],
              float scale_teacher, const T* keys) {
#pragma unroll
      for (int n = 0; n < Block::kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int half = i >> 1;
          const float log_p = rows[half].student.log2_probability(student[n][i], scale_student);
          const float log_r = rows[half].teacher.log2_probability(teacher[n][i], scale_teacher);
          const float probability = ptx::exp2_approx(log_p), target = ptx::exp2_approx(log_r);
          const float difference = probability - target;
          const float term = p.mse ? difference * difference : divergence<T>(log_p, log_r, probability, target);
          if (tile.row + 16 * warp + group + 8 * half < tile.length) loss += term;
          if (p.mse) rows[half].inner += probability * difference;
          student[n][i] = kLift * difference;
        }
      }
      if (need_grad && !p.mse) add_direction<T>(grad, student, keys, widths.stride, widths.student);
    });
#pragma unroll
    for (int half = 0; half < 2; ++half) rows[half].inner = OnlineSum::sum_of_lanes(rows[half].inner);

    if (p.mse && need_grad) {
      sweep([&](float (&student)[Block::kTiles][4], float scale_student, float (&teacher)[Block::kTiles][4],
                float scale_teacher, const T* keys) {
#pragma unroll
        for (int n = 0; n < Block::kTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const RowStatistics<T>& row = rows[i >> 1];
            const float probability = row.student.probability(student[n][i], scale_student);
            const float target = row.teacher.probability(teacher[n][i], scale_teacher);
            student[n][i] = kLift * probability * (probability - target - row.inner);
          }
        }
        add_direction<T>(grad, student, keys, widths.stride, widths.student);
      });
    }
    if (p.statistics != nullptr && thread == 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = tile.row + 16 * warp + group + 8 * half;
        if (row < tile.length) rows[half].store(p, tile, head, row);
      }
    }
  }
  loss = block_sum(loss);
  if (threadIdx.x == 0) p.partial_losses[blockIdx.x] = loss;
  if (need_grad) store_map_grad(grad, static_cast<Grad<T>*>(p.grad_q), p, tile, head, loss_scale);
}

}  // namespace bertxfer
