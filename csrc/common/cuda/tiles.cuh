// Rows of packed sequences on their way into shared memory: asynchronous copies as wide as the rows' alignment allows.
#pragma once

#include "mma.cuh"

namespace bertxfer {

// One head's rows of a [T, H, D] tensor, told to a kernel. Widths of copies: 16 bytes where rows start at multiples of
// that, 4 where they start at multiples of 4 (TinyBERT's heads of 26), else single numbers.
struct RowSource {
  const void* data;
  int64_t token_stride, head_stride;  // in elements
  int dim;
  int copy_bytes;   // 16, 4 or 2
  int lanes_shift;  // log2 of how many threads copy one row
};

inline RowSource row_source(const PackedView& view) {
  const int64_t size = view.dtype == Dtype::f32 ? 4 : 2;
  const auto fits = [&](int64_t bytes) {
    return reinterpret_cast<uintptr_t>(view.data) % bytes == 0 && view.token_stride * size % bytes == 0 &&
           view.head_stride * size % bytes == 0 && view.dim * size % bytes == 0;
  };
  RowSource source{view.data, view.token_stride, view.head_stride, static_cast<int>(view.dim), 0, 0};
  source.copy_bytes = fits(16) ? 16 : fits(4) ? 4 : 2;
  const int64_t copies = (view.dim * size + source.copy_bytes - 1) / source.copy_bytes;
  while (source.lanes_shift < 5 && (1 << source.lanes_shift) < copies) ++source.lanes_shift;
  return source;
}

// Starts to copy `rows` rows of head `head` from token `first` on to shared[row * stride + column], zeros from row
// `valid` and from column `dim` on, up to `columns`, a multiple of 16. Called by all threads of the block; the copies
// arrive as cp.async groups do (a row that is not aligned to 4 bytes arrives at once).
template <class T>
__device__ __forceinline__ void copy_rows(T* shared, int stride, const RowSource& source, int64_t first, int head,
                                          int rows, int valid, int columns) {
  const T* global = static_cast<const T*>(source.data) + first * source.token_stride + head * source.head_stride;
  const int width = max(source.copy_bytes / static_cast<int>(sizeof(T)), 1);
  const int lanes = 1 << source.lanes_shift;
  for (int row = threadIdx.x >> source.lanes_shift; row < rows; row += blockDim.x >> source.lanes_shift) {
    const T* from = global + row * source.token_stride;
    T* to = shared + row * stride;
    for (int column = (threadIdx.x & (lanes - 1)) * width; column < columns; column += lanes * width) {
      const bool inside = row < valid && column < source.dim;
      const T* place = inside ? from + column : static_cast<const T*>(source.data);
      if (source.copy_bytes == 16) {
        ptx::cp_async_16(to + column, place, inside);
      } else if (source.copy_bytes == 4) {
        ptx::cp_async_4(to + column, place, inside);
      } else {
        to[column] = inside ? *place : from_float<T>(0.0f);
      }
    }
  }
}

// Accumulators of 16 rows, from row `row` on, times `scale`, into columns `first` on of rows `stride` apart. Rows from
// `rows` on and columns from `dim` on do not exist. `to` and the rows are aligned to two numbers where dim is even.
template <int N, class T>
__device__ __forceinline__ void store_rows(const float (&sums)[N][4], T* to, int64_t stride, int row, int rows,
                                           int first, int dim, float scale) {
  const int group = threadIdx.x % 32 / 4, thread = threadIdx.x % 4;
  const bool pairs = dim % 2 == 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = row + group + 8 * half;
    if (r >= rows) continue;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int column = first + 8 * n + 2 * thread;
      if (column >= dim) continue;
      T* const place = to + r * stride + column;
      Run<T, 2> pair;
#pragma unroll
      for (int c = 0; c < 2; ++c) from_float(scale * sums[n][2 * half + c], pair.values[c]);
      if (pairs) {
        *reinterpret_cast<Run<T, 2>*>(place) = pair;
      } else {
        place[0] = pair.values[0];
        if (column + 1 < dim) place[1] = pair.values[1];
      }
    }
  }
}

// Zeros for `count` numbers, by all threads of the block.
template <class T>
__device__ __forceinline__ void zero_range(T* to, int64_t count) {
  constexpr int kWide = kVector<T>;
  int64_t done = 0;
  if (reinterpret_cast<uintptr_t>(to) % 16 == 0) {
    const Run<T, kWide> zeros{};
    for (int64_t i = threadIdx.x; i < count / kWide; i += blockDim.x) reinterpret_cast<Run<T, kWide>*>(to)[i] = zeros;
    done = count / kWide * kWide;
  }
  for (int64_t i = done + threadIdx.x; i < count; i += blockDim.x) to[i] = from_float<T>(0.0f);
}

// Zeros in a gradient [T, H, dim] for the tokens of each sequence that do not count, by all blocks of the grid. Nothing
// to do where all count: seqused is null.
template <class T>
__device__ __forceinline__ void zero_unused_tokens(T* grad, const int32_t* cu_seqlens, const int32_t* seqused,
                                                   int tokens, int sequences, int64_t token_stride) {
  constexpr int kTokens = 64;
  if (seqused == nullptr) return;
  for (int64_t slot = blockIdx.x; slot < tile_slots(tokens, sequences, kTokens); slot += gridDim.x) {
    const Tile tile = find_tile(cu_seqlens, nullptr, tokens, sequences, static_cast<int>(slot), kTokens);
    const int used = sequence_of(cu_seqlens, seqused, tokens, tile.sequence).length;
    const int first = max(tile.row, used), last = min(tile.row + kTokens, tile.length);
    if (first < last) zero_range(grad + (tile.start + first) * token_stride, (last - first) * token_stride);
  }
}

// Zeros for the rows from `first` to `last` of one head, by all threads of the block.
template <class T>
__device__ __forceinline__ void zero_rows(T* to, int64_t stride, int first, int last, int dim) {
  for (int row = first + threadIdx.x / 32; row < last; row += blockDim.x / 32) {
    for (int column = threadIdx.x % 32; column < dim; column += 32) to[row * stride + column] = from_float<T>(0.0f);
  }
}

__host__ __device__ constexpr int round_up(int x, int multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

}  // namespace bertxfer
