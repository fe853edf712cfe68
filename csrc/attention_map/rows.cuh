// The first kernel: loss, statistics and grad_q of some rows of both maps. See attention_map_cuda.h.
//
// Scores are in units of log 2. The statistics of a row are, for student and teacher, its highest score and log2 of the
// sum of exponentials below it, and for MSE sum_j P_ij (P_ij - R_ij). Highest score and sum stay two numbers: their sum
// would round away what distinguishes maps that almost agree.
#pragma once

#include "../common/cuda/score_tiles.cuh"

namespace bertxfer {

struct MapProblem : PairProblem {  // the scales with log2(e)
  float grad_scale;                // of the student's scores, times 2 for MSE
  bool mse, symmetric;
  float* statistics;
};

// Entries of maps are small: times this they are normal numbers of float16, where they multiply keys and queries.
constexpr float kLift = 256.0f;

// Highest score of a row, and the sum of exponentials below it: of this lane's columns until `finish`.
struct OnlineSum {
  float highest = -INFINITY, sum = 0.0f;

  __device__ __forceinline__ void add(const float* scores, int count, int stride) {
    float most = highest;
#pragma unroll
    for (int n = 0; n < count; ++n) most = fmaxf(most, fmaxf(scores[n * stride], scores[n * stride + 1]));
    most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
    most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
    sum *= ptx::exp2_approx(highest - most);
#pragma unroll
    for (int n = 0; n < count; ++n) {
      sum += ptx::exp2_approx(scores[n * stride] - most) + ptx::exp2_approx(scores[n * stride + 1] - most);
    }
    highest = most;
  }

  // log2 of the sum over all columns, in every lane of the row.
  __device__ __forceinline__ void finish() { sum = log2f(row_sum(sum)); }

  __device__ static __forceinline__ float row_sum(float value) {
    value += __shfl_xor_sync(kAllLanes, value, 1);
    return value + __shfl_xor_sync(kAllLanes, value, 2);
  }
};

// A term of KL(R || P) from log2-probabilities and probabilities: r d + p - r with d = log r - log p. The last two add
// up to nothing in a row, and with them no term is negative; near d = 0 a series keeps the digits of r (d + exp(-d) -
// 1).
__device__ __forceinline__ float divergence(float student, float teacher, float p, float r) {
  const float d = (teacher - student) * 0.6931471805599453f;
  const float series =
      0.5f * d * d * (1.0f + d * (-1.0f / 3.0f + d * (1.0f / 12.0f + d * (-1.0f / 60.0f + d * (1.0f / 360.0f)))));
  return fabsf(d) < 0.25f ? r * series : r * d + (p - r);
}

template <class T, int BS>
__global__ void __launch_bounds__(ScoreTile<T, BS>::kThreads, ScoreTile<T, BS>::kBlocks) map_rows_kernel(MapProblem p) {
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

  float loss = 0.0f;
  float grad[BS / 8][4] = {};
  if (tile.row < tile.length) {
    copy_sides(shared, widths, x, tile.start + tile.row, head, Block::kRows, tile.length - tile.row);
    // Calls work(column, student's scores, teacher's scores, keys) for all tiles of columns.
    const auto sweep = [&](auto&& work) {
      for_columns<Block>(buffers, widths, y, tile, head, [&](const T* keys, int column) {
        float student[Block::kTiles][4] = {}, teacher[Block::kTiles][4] = {};
        scores<T>(student, own, keys, widths.stride, widths.student);
        scores<T>(teacher, own + widths.student, keys + widths.student, widths.stride, widths.teacher);
#pragma unroll
        for (int n = 0; n < Block::kTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const bool valid = column + 8 * n + 2 * thread + (i & 1) < tile.length;
            student[n][i] = valid ? student[n][i] * p.scale_student : -INFINITY;
            teacher[n][i] = valid ? teacher[n][i] * p.scale_teacher : -INFINITY;
          }
        }
        work(student, teacher, keys);
      });
    };

    OnlineSum mine[2], theirs[2];  // of rows group and group + 8
    sweep([&](float (&student)[Block::kTiles][4], float (&teacher)[Block::kTiles][4], const T*) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        mine[half].add(&student[0][2 * half], Block::kTiles, 4);
        theirs[half].add(&teacher[0][2 * half], Block::kTiles, 4);
      }
    });
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      mine[half].finish();
      theirs[half].finish();
    }

    float inner[2] = {};
    sweep([&](float (&student)[Block::kTiles][4], float (&teacher)[Block::kTiles][4], const T* keys) {
#pragma unroll
      for (int n = 0; n < Block::kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int half = i >> 1;
          const float log_p = student[n][i] - mine[half].highest - mine[half].sum;
          const float log_r = teacher[n][i] - theirs[half].highest - theirs[half].sum;
          const float probability = ptx::exp2_approx(log_p), target = ptx::exp2_approx(log_r);
          const float difference = probability - target;
          float term = difference * difference;
          if (!p.mse) term = log_p == -INFINITY ? 0.0f : divergence(log_p, log_r, probability, target);
          if (tile.row + 16 * warp + group + 8 * half < tile.length) loss += term;
          inner[half] += probability * difference;
          student[n][i] = kLift * difference;
        }
      }
      if (need_grad && !p.mse) add_direction<T>(grad, student, keys, widths.stride, widths.student);
    });
#pragma unroll
    for (int half = 0; half < 2; ++half) inner[half] = OnlineSum::row_sum(inner[half]);

    if (p.mse && need_grad) {
      sweep([&](float (&student)[Block::kTiles][4], float (&teacher)[Block::kTiles][4], const T* keys) {
#pragma unroll
        for (int n = 0; n < Block::kTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int half = i >> 1;
            const float probability = ptx::exp2_approx(student[n][i] - mine[half].highest - mine[half].sum);
            const float target = ptx::exp2_approx(teacher[n][i] - theirs[half].highest - theirs[half].sum);
            student[n][i] = kLift * probability * (probability - target - inner[half]);
          }
        }
        add_direction<T>(grad, student, keys, widths.stride, widths.student);
      });
    }

    if (p.statistics != nullptr && thread == 0) {
      const int64_t plane = static_cast<int64_t>(p.heads) * p.tokens;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = tile.row + 16 * warp + group + 8 * half;
        if (row >= tile.length) continue;
        float* place = p.statistics + static_cast<int64_t>(head) * p.tokens + tile.start + row;
        place[0] = mine[half].highest;
        place[plane] = mine[half].sum;
        place[2 * plane] = theirs[half].highest;
        place[3 * plane] = theirs[half].sum;
        if (p.mse) place[4 * plane] = inner[half];
      }
    }
  }
  loss = block_sum(loss);
  if (threadIdx.x == 0) p.losses[blockIdx.x] = loss;
  if (need_grad) store_map_grad(grad, static_cast<T*>(p.grad_q), p, tile, head);
}

// A gradient of the block's rows, and zeros for those that do not count.
template <class T, int N>
__device__ __forceinline__ void store_map_grad(const float (&grad)[N][4], T* to, const MapProblem& p, const Tile& tile,
                                               int head) {
  const int dim = p.q_student.dim, rows = blockDim.x / 32 * 16;
  const int64_t stride = static_cast<int64_t>(p.heads) * dim;
  to += static_cast<int64_t>(tile.start) * stride + static_cast<int64_t>(head) * dim;
  const float size = p.grad_scale * p.numbers[1] / kLift;
  store_rows(grad, to, stride, tile.row + static_cast<int>(threadIdx.x) / 32 * 16, tile.length, 0, dim, size);
  const int whole = sequence_of(p.cu_seqlens, nullptr, p.tokens, tile.sequence).length;
  zero_rows(to, stride, max(tile.row, tile.length), min(tile.row + rows, whole), dim);
}

}  // namespace bertxfer
