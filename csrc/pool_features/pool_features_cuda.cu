// CUDA kernels of pool_features, see pool_features_cuda.h.
//
// Forward: a block sums (or takes the maxima of) 64 rows of a sequence in 32 * 16 bytes of columns, all layers; its
// eight warps take every eighth row. A second kernel adds each sequence's tiles in their order, scales and normalises.
// Backward: one kernel undoes the normalisation, [N, D]; one writes the gradient of every row of every layer.
//
// Bytes, N = 64, L = 512, D = 768, 4 layers, bf16: forward 201 MB read, 1.8 MB of partial sums written and read;
// backward 201 MB written, and as much read where layer_weights want a gradient. Operations: 2 per element, 0.2 G.
// Floor on an H100 (3.0 TB/s): 67 us each, 134 us backward with layer_weights.
#include "../common/cuda/cuda.cuh"
#include "../common/cuda/reductions_cuda.h"
#include "pool_features_cuda.h"

namespace bertxfer {
namespace cuda {
namespace {

using Mode = PoolFeatures::Mode;

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kRows = static_cast<int>(kPoolRows);
constexpr int kAtOnce = 4;  // rows that a warp has under way
constexpr float kEpsilon = 1e-12f;

struct Problem {
  const void* hidden[kPoolLayers];  // [T, D] each
  int64_t stride[kPoolLayers];
  void* grad_hidden[kPoolLayers];  // [T, D] each
  const float* layer_weights;      // [layers]
  const int32_t* cu_seqlens;       // [N + 1]
  const int32_t* seqused;          // [N] or null
  int tokens, sequences, layers, width, chunks;
  Mode mode;
  bool normalize;
  void* pooled;           // [N, D]
  int32_t* argmax;        // [N, D]
  float* norm;            // [N]
  float* partials;        // [slots, D]
  int32_t* partial_rows;  // [slots, D]
  const void* grad;       // [N, D]
  float* grad_pooled;     // [N, D]
  float* weight_shares;   // [layers, pool_weight_shares] or null
  float* grad_weights;    // [layers]
};
static_assert(kPoolLayers <= kThreads, "a thread for each layer's weight");

__device__ float token_scale(Mode mode, int used) {
  const float n = static_cast<float>(used);
  return mode == Mode::mean ? 1.0f / n : mode == Mode::mean_sqrt ? 1.0f / sqrtf(n) : 1.0f;
}

// Whether a beats b: the larger, of equal ones the earlier row. A NaN beats all: it must reach the result.
__device__ bool beats(float a, int row_a, float b, int row_b) {
  const bool nan_a = a != a, nan_b = b != b;
  if (nan_a || nan_b) return nan_a && (!nan_b || row_a < row_b);
  return a > b || (a == b && row_a < row_b);
}

template <class T, int N>
__device__ Run<T, N> load(const void* rows, int64_t row, int64_t stride, int column) {
  return *reinterpret_cast<const Run<T, N>*>(static_cast<const T*>(rows) + row * stride + column);
}

// The sums, or the maxima and their rows, of a tile and 32 * N columns.
template <class T, int N, bool kMax>
__global__ void __launch_bounds__(kThreads, 2) tiles_kernel(const __grid_constant__ Problem p) {
  __shared__ float values[kWarps][32 * N];
  __shared__ int rows_of[kMax ? kWarps : 1][kMax ? 32 * N : 1];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int slot = blockIdx.x / p.chunks, first_column = blockIdx.x % p.chunks * (32 * N);
  const Tile tile = find_tile(p.cu_seqlens, p.seqused, p.tokens, p.sequences, slot, kRows);
  const int rows = min(kRows, tile.length - tile.row), column = first_column + lane * N;
  if (rows <= 0) return;
  const int64_t first = tile.start + tile.row;

  float result[N];
  int result_rows[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    result[i] = kMax ? -INFINITY : 0.0f;
    result_rows[i] = INT32_MAX;
  }
  for (int row = warp; row < rows && column < p.width; row += kWarps * kAtOnce) {
    float mixed[kAtOnce][N] = {};
    for (int l = 0; l < p.layers; ++l) {
      const float weight = p.layer_weights[l];
      Run<T, N> loaded[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {  // beyond the last row: the last one again
        const int r = min(row + j * kWarps, rows - 1);
        loaded[j] = load<T, N>(p.hidden[l], first + r, p.stride[l], column);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
#pragma unroll
        for (int i = 0; i < N; ++i) mixed[j][i] += weight * to_float(loaded[j].values[i]);
      }
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int r = row + j * kWarps;
      if (r >= rows) break;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (!kMax) {
          result[i] += mixed[j][i];
        } else if (beats(mixed[j][i], r, result[i], result_rows[i])) {
          result[i] = mixed[j][i];
          result_rows[i] = r;
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    values[warp][lane * N + i] = result[i];
    if (kMax) rows_of[warp][lane * N + i] = result_rows[i];
  }
  __syncthreads();
  for (int c = threadIdx.x; c < 32 * N && first_column + c < p.width; c += kThreads) {
    float value = values[0][c];
    int row = kMax ? rows_of[0][c] : 0;
    for (int w = 1; w < kWarps; ++w) {
      if (!kMax) {
        value += values[w][c];
      } else if (beats(values[w][c], rows_of[w][c], value, row)) {
        value = values[w][c];
        row = rows_of[w][c];
      }
    }
    const int64_t place = static_cast<int64_t>(slot) * p.width + first_column + c;
    p.partials[place] = value;
    if (kMax) p.partial_rows[place] = static_cast<int>(first) + row;
  }
}

// One column of a sequence's pooled row before normalisation; writes its argmax.
template <class T>
__device__ float pooled_value(const Problem& p, int n, Span span, int column) {
  if (span.length == 0) {
    if (p.mode == Mode::max) p.argmax[static_cast<int64_t>(n) * p.width + column] = 0;
    return 0.0f;
  }
  float value = 0.0f;
  if (p.mode == Mode::cls) {
    for (int l = 0; l < p.layers; ++l) {
      value += p.layer_weights[l] * to_float(load<T, 1>(p.hidden[l], span.start, p.stride[l], column).values[0]);
    }
    return value;
  }
  int64_t place = static_cast<int64_t>(span.start / kRows + n) * p.width + column;
  const int tiles = ceil_div(span.length, kRows);
  if (p.mode != Mode::max) {
    for (int i = 0; i < tiles; ++i, place += p.width) value += p.partials[place];
    return value * token_scale(p.mode, span.length);
  }
  value = p.partials[place];
  int row = p.partial_rows[place];
  for (int i = 1; i < tiles; ++i) {
    place += p.width;
    if (beats(p.partials[place], p.partial_rows[place], value, row)) {
      value = p.partials[place];
      row = p.partial_rows[place];
    }
  }
  p.argmax[static_cast<int64_t>(n) * p.width + column] = row;
  return value;
}

// One block a sequence.
template <class T>
__global__ void __launch_bounds__(kThreads) finish_kernel(const __grid_constant__ Problem p) {
  const int n = blockIdx.x;
  const Span span = sequence_of(p.cu_seqlens, p.seqused, p.tokens, n);
  float norm = 1.0f;
  if (p.normalize) {
    double square = 0.0;
    for (int d = threadIdx.x; d < p.width; d += kThreads) {
      const double value = static_cast<double>(pooled_value<T>(p, n, span, d));
      square += value * value;
    }
    const float root = static_cast<float>(sqrt(block_sum(square)));
    norm = root < kEpsilon ? kEpsilon : root;
    if (threadIdx.x == 0) p.norm[n] = norm;
  }
  T* const pooled = static_cast<T*>(p.pooled) + static_cast<int64_t>(n) * p.width;
  for (int d = threadIdx.x; d < p.width; d += kThreads) {
    from_float(pooled_value<T>(p, n, span, d) / norm, pooled[d]);
  }
}

// The gradient before normalisation, and where one row has all of a column's gradient, the shares of layer_weights.
template <class T>
__global__ void __launch_bounds__(kThreads) gradient_kernel(const __grid_constant__ Problem p) {
  const int n = blockIdx.x;
  const int64_t base = static_cast<int64_t>(n) * p.width;
  const T* const grad = static_cast<const T*>(p.grad) + base;
  const T* const unit = static_cast<const T*>(p.pooled) + base;
  float grad_dot_unit = 0.0f, norm = 1.0f;
  if (p.normalize) {
    double sum = 0.0;
    for (int d = threadIdx.x; d < p.width; d += kThreads) {
      sum += static_cast<double>(to_float(grad[d])) * static_cast<double>(to_float(unit[d]));
    }
    grad_dot_unit = static_cast<float>(block_sum(sum));
    norm = p.norm[n];
  }
  for (int d = threadIdx.x; d < p.width; d += kThreads) {
    const float g = to_float(grad[d]);
    p.grad_pooled[base + d] = p.normalize ? (g - to_float(unit[d]) * grad_dot_unit) / norm : g;
  }
  if (p.weight_shares == nullptr) {
    if (n == 0 && threadIdx.x < p.layers) p.grad_weights[threadIdx.x] = 0.0f;
    return;
  }
  if (p.mode == Mode::mean || p.mode == Mode::mean_sqrt) return;  // all rows share the gradient: see spread_kernel
  const Span span = sequence_of(p.cu_seqlens, p.seqused, p.tokens, n);
  for (int l = 0; l < p.layers; ++l) {
    double share = 0.0;
    for (int d = threadIdx.x; d < p.width && span.length > 0; d += kThreads) {
      const int row = p.mode == Mode::cls ? span.start : p.argmax[base + d];
      const int inside = min(max(row, span.start), span.start + span.length - 1);
      const float h = to_float(load<T, 1>(p.hidden[l], inside, p.stride[l], d).values[0]);
      share += static_cast<double>(p.grad_pooled[base + d]) * static_cast<double>(h);
    }
    share = block_sum(share);
    if (threadIdx.x == 0) p.weight_shares[static_cast<int64_t>(l) * p.sequences + n] = static_cast<float>(share);
  }
}

// The gradient of a tile's rows, those that do not count included, in 32 * N columns of every layer.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) spread_kernel(const __grid_constant__ Problem p) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int slot = blockIdx.x / p.chunks, column = blockIdx.x % p.chunks * (32 * N) + lane * N;
  const Tile tile = find_tile(p.cu_seqlens, nullptr, p.tokens, p.sequences, slot, kRows);
  const int rows = min(kRows, tile.length - tile.row);
  const bool wants_shares = p.weight_shares != nullptr && (p.mode == Mode::mean || p.mode == Mode::mean_sqrt);
  if (rows <= 0) {
    for (int l = threadIdx.x; wants_shares && l < p.layers; l += kThreads) {
      p.weight_shares[static_cast<int64_t>(l) * gridDim.x + blockIdx.x] = 0.0f;
    }
    return;
  }
  const int used = sequence_of(p.cu_seqlens, p.seqused, p.tokens, tile.sequence).length;
  const int counted = p.mode == Mode::cls ? min(used, 1) : used;  // rows of the sequence with a gradient
  const int64_t first = tile.start + tile.row, base = static_cast<int64_t>(tile.sequence) * p.width + column;
  float grad[N] = {};
  int argmax[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    argmax[i] = -1;
    if (column >= p.width || counted == 0) continue;
    grad[i] = p.grad_pooled[base + i] * token_scale(p.mode, used);
    if (p.mode == Mode::max) argmax[i] = p.argmax[base + i] - tile.start - tile.row;  // row in the tile
  }
  for (int l = 0; l < p.layers; ++l) {
    const float weight = p.layer_weights[l];
    T* const target = static_cast<T*>(p.grad_hidden[l]) + first * p.width + column;
    Run<T, N> value, zero;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      from_float(weight * grad[i], value.values[i]);
      from_float(0.0f, zero.values[i]);
    }
    float share = 0.0f;
#pragma unroll 4
    for (int r = warp; r < rows && column < p.width; r += kWarps) {
      const bool counts = tile.row + r < counted;
      Run<T, N> written = counts ? value : zero;
      if (p.mode == Mode::max) {
#pragma unroll
        for (int i = 0; i < N; ++i) written.values[i] = argmax[i] == r ? written.values[i] : zero.values[i];
      }
      *reinterpret_cast<Run<T, N>*>(target + static_cast<int64_t>(r) * p.width) = written;
      if (wants_shares && counts) {
        const Run<T, N> h = load<T, N>(p.hidden[l], first + r, p.stride[l], column);
#pragma unroll
        for (int i = 0; i < N; ++i) share += grad[i] * to_float(h.values[i]);
      }
    }
    if (wants_shares) {
      share = block_sum(share);
      if (threadIdx.x == 0) p.weight_shares[static_cast<int64_t>(l) * gridDim.x + blockIdx.x] = share;
    }
  }
}

int64_t columns_of(Dtype dtype, bool vectors) {
  return 32 * (vectors ? dtype == Dtype::f32 ? 4 : 8 : 1);
}

// Whether every row of every layer begins at a multiple of 16 bytes and ends at one.
bool is_aligned(const PoolFeatures& p) {
  const int64_t size = p.dtype == Dtype::f32 ? 4 : 2;
  bool aligned = p.width * size % 16 == 0;
  for (int64_t l = 0; l < p.layers; ++l) {
    aligned = aligned && is_aligned_16(p.hidden[l].data) && p.hidden[l].token_stride * size % 16 == 0;
  }
  return aligned;
}

Problem problem_of(const PoolFeatures& p, int64_t tokens) {
  Problem problem{};
  for (int64_t l = 0; l < p.layers; ++l) {
    problem.hidden[l] = p.hidden[l].data;
    problem.stride[l] = p.hidden[l].token_stride;
  }
  problem.layer_weights = p.layer_weights;
  problem.cu_seqlens = p.packing.cu_seqlens;
  problem.seqused = p.packing.seqused;
  problem.tokens = static_cast<int>(tokens);
  problem.sequences = static_cast<int>(p.packing.sequences);
  problem.layers = static_cast<int>(p.layers);
  problem.width = static_cast<int>(p.width);
  problem.chunks = static_cast<int>(ceil_div(p.width, columns_of(p.dtype, is_aligned(p))));
  problem.mode = p.mode;
  problem.normalize = p.normalize;
  problem.pooled = p.pooled;
  problem.argmax = p.argmax;
  problem.norm = p.norm;
  return problem;
}

}  // namespace

int64_t pool_slots(int64_t tokens, int64_t sequences) {
  return tile_slots(tokens, sequences, kRows);
}

int64_t pool_weight_shares(const PoolFeatures& p, int64_t tokens) {
  if (p.mode == Mode::cls || p.mode == Mode::max) return p.packing.sequences;
  return pool_slots(tokens, p.packing.sequences) * problem_of(p, tokens).chunks;
}

void pool_features(const PoolFeaturesForward& p, void* stream) {
  Problem problem = problem_of(p.problem, p.tokens);
  problem.partials = p.partials;
  problem.partial_rows = p.partial_rows;
  const int64_t blocks = pool_slots(p.tokens, problem.sequences) * problem.chunks;
  const bool max = problem.mode == Mode::max, vectors = is_aligned(p.problem);
  with_dtype(p.problem.dtype, [&](auto number) {
    using T = decltype(number);
    if (problem.mode != Mode::cls) {
      const auto kernel = max       ? vectors ? tiles_kernel<T, kVector<T>, true> : tiles_kernel<T, 1, true>
                          : vectors ? tiles_kernel<T, kVector<T>, false>
                                    : tiles_kernel<T, 1, false>;
      BERTXFER_LAUNCH(kernel, blocks, kThreads, 0, stream, problem);
    }
    BERTXFER_LAUNCH(finish_kernel<T>, problem.sequences, kThreads, 0, stream, problem);
  });
}

void pool_features_backward(const PoolFeaturesBackward& p, void* stream) {
  Problem problem = problem_of(p.problem, p.tokens);
  for (int64_t l = 0; l < p.problem.layers; ++l) problem.grad_hidden[l] = p.grad_hidden[l];
  problem.grad = p.grad;
  problem.grad_pooled = p.grad_pooled;
  problem.weight_shares = p.weight_shares;
  problem.grad_weights = p.grad_weights;
  const int64_t blocks = pool_slots(p.tokens, problem.sequences) * problem.chunks;
  const bool vectors = is_aligned(p.problem);
  with_dtype(p.problem.dtype, [&](auto number) {
    using T = decltype(number);
    BERTXFER_LAUNCH(gradient_kernel<T>, problem.sequences, kThreads, 0, stream, problem);
    const auto kernel = vectors ? spread_kernel<T, kVector<T>> : spread_kernel<T, 1>;
    BERTXFER_LAUNCH(kernel, blocks, kThreads, 0, stream, problem);
  });
  if (p.weight_shares == nullptr && problem.sequences > 0) return;  // the first kernel has written zeros
  const int64_t shares = p.weight_shares == nullptr ? 0 : pool_weight_shares(p.problem, p.tokens);
  total(p.weight_shares, shares, problem.layers, p.grad_weights, stream);
}

}  // namespace cuda
}  // namespace bertxfer
