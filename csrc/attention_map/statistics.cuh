// What both kernels of attention maps share: softmaxes of rows, and how their statistics are stored.
//
// Scores are in units of log 2: a row's probabilities are 2^(score - row_max - log_sum), row_max its highest score and
// log_sum the log2 of the sum of exponentials below it. float32 keeps the two apart, as their sum would round away what
// distinguishes maps that almost agree. In half precision one number, and one multiply-add, is enough.
#pragma once

#include "../common/cuda/score_tiles.cuh"

namespace bertxfer {

struct MapProblem : PairProblem {  // the scales with log2(e); partial_losses: [slots, H]
  float grad_scale;                // of the student's scores, times 2 for MSE
  bool mse, symmetric;
  float* statistics;  // [map_statistics, H, T] or null: a plane for each member of RowStatistics
};

// Entries of maps are small: times this they are normal numbers of float16, where they multiply keys and queries.
constexpr float kLift = 256.0f;

// A score beyond the sequence: its exponential is zero, and differences of two of them are.
constexpr float kMasked = -1e30f;

// The highest score of a row, and the sum of exponentials below it: of this lane's columns, until sum_of_lanes.
struct OnlineSum {
  float row_max = -INFINITY, row_sum = 0.0f;

  // Scores of the row are in places 2 * half and 2 * half + 1 of each accumulator, still to be scaled.
  template <int N>
  __device__ __forceinline__ void add(const float (&scores)[N][4], int half, float scale) {
    const int i = 2 * half;
    float most = scores[0][i];
    if (scale >= 0.0f) {
#pragma unroll
      for (int n = 0; n < N; ++n) most = fmaxf(most, fmaxf(scores[n][i], scores[n][i + 1]));
    } else {
#pragma unroll
      for (int n = 0; n < N; ++n) most = fminf(most, fminf(scores[n][i], scores[n][i + 1]));
    }
    most = fmaxf(row_max, most * scale);
    most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
    most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
    row_sum *= ptx::exp2_approx(row_max - most);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      row_sum +=
          ptx::exp2_approx(fmaf(scores[n][i], scale, -most)) + ptx::exp2_approx(fmaf(scores[n][i + 1], scale, -most));
    }
    row_max = most;
  }

  // The sum over a row's four lanes, in every one of them.
  __device__ static __forceinline__ float sum_of_lanes(float value) {
    value += __shfl_xor_sync(kAllLanes, value, 1);
    return value + __shfl_xor_sync(kAllLanes, value, 2);
  }
};

// What turns a row's scores into probabilities, half precision.
template <class T>
struct SoftmaxRow {
  static constexpr int kPlanes = 1;
  float softmax_lse;  // log2 of the sum of all exponentials

  SoftmaxRow() = default;
  __device__ __forceinline__ explicit SoftmaxRow(const OnlineSum& online)
      : softmax_lse(online.row_max + log2f(OnlineSum::sum_of_lanes(online.row_sum))) {}

  __device__ __forceinline__ float log2_probability(float score, float scale) const {
    return fmaf(score, scale, -softmax_lse);
  }
  __device__ __forceinline__ float probability(float score, float scale) const {
    return ptx::exp2_approx(log2_probability(score, scale));
  }
  __device__ __forceinline__ void store(float* place, int64_t) const { *place = softmax_lse; }
  __device__ __forceinline__ void load(const float* place, int64_t) { softmax_lse = *place; }
  // A row beyond the sequence: probabilities of zero.
  __device__ __forceinline__ void clear() { softmax_lse = INFINITY; }
};

template <>
struct SoftmaxRow<float> {
  static constexpr int kPlanes = 2;
  float row_max, log_sum;

  SoftmaxRow() = default;
  __device__ __forceinline__ explicit SoftmaxRow(const OnlineSum& online)
      : row_max(online.row_max), log_sum(log2f(OnlineSum::sum_of_lanes(online.row_sum))) {}

  __device__ __forceinline__ float log2_probability(float score, float scale) const {
    return fmaf(score, scale, -row_max) - log_sum;
  }
  __device__ __forceinline__ float probability(float score, float scale) const {
    return ptx::exp2_approx(log2_probability(score, scale));
  }
  __device__ __forceinline__ void store(float* place, int64_t plane) const {
    place[0] = row_max;
    place[plane] = log_sum;
  }
  __device__ __forceinline__ void load(const float* place, int64_t plane) {
    row_max = place[0];
    log_sum = place[plane];
  }
  __device__ __forceinline__ void clear() {
    row_max = INFINITY;
    log_sum = 0.0f;
  }
};

// A row of both maps.
template <class T>
struct RowStatistics {
  SoftmaxRow<T> student, teacher;
  float inner;  // MSE: sum_j P_ij (P_ij - R_ij)

  __device__ __forceinline__ void store(const MapProblem& p, const Tile& tile, int head, int row) const {
    float* const place = place_of(p, tile, head, row);
    const int64_t plane = plane_of(p);
    student.store(place, plane);
    teacher.store(place + SoftmaxRow<T>::kPlanes * plane, plane);
    if (p.mse) place[2 * SoftmaxRow<T>::kPlanes * plane] = inner;
  }

  static __device__ __forceinline__ RowStatistics load(const MapProblem& p, const Tile& tile, int head, int row) {
    RowStatistics result;
    result.inner = 0.0f;
    if (row >= tile.length) {
      result.student.clear();
      result.teacher.clear();
      return result;
    }
    const float* const place = place_of(p, tile, head, row);
    const int64_t plane = plane_of(p);
    result.student.load(place, plane);
    result.teacher.load(place + SoftmaxRow<T>::kPlanes * plane, plane);
    if (p.mse) result.inner = place[2 * SoftmaxRow<T>::kPlanes * plane];
    return result;
  }

 private:
  static __device__ __forceinline__ int64_t plane_of(const MapProblem& p) {
    return static_cast<int64_t>(p.heads) * p.tokens;
  }
  static __device__ __forceinline__ float* place_of(const MapProblem& p, const Tile& tile, int head, int row) {
    return p.statistics + static_cast<int64_t>(head) * p.tokens + tile.start + row;
  }
};

// A gradient of the block's rows, and zeros for those that do not count.
template <class T, int N>
__device__ __forceinline__ void store_map_grad(const float (&grad)[N][4], T* to, const MapProblem& p, const Tile& tile,
                                               int head, float loss_scale) {
  const int dim = p.q_student.dim, rows = blockDim.x / 32 * 16;
  const int64_t stride = static_cast<int64_t>(p.heads) * dim;
  to += static_cast<int64_t>(tile.start) * stride + static_cast<int64_t>(head) * dim;
  store_rows(grad, to, stride, tile.row + static_cast<int>(threadIdx.x) / 32 * 16, tile.length, 0, dim,
             p.grad_scale * loss_scale / kLift);
  const int whole = sequence_of(p.cu_seqlens, nullptr, p.tokens, tile.sequence).length;
  zero_rows(to, stride, max(tile.row, tile.length), min(tile.row + rows, whole), dim);
}

}  // namespace bertxfer
