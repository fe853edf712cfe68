// Tiles of the scores of two models, q k^T of each, in the registers of a block: 16 rows a warp, all columns in turn.
#pragma once

#include "pair_loss.cuh"

namespace bertxfer {

// A block of a kernel whose gradient is at most BS wide. Few rows and columns where rows are long: shared memory.
template <class T, int BS>
struct ScoreTile {
  static constexpr bool kLong = sizeof(T) == 4;
  static constexpr int kWarps = kLong && BS > 128 ? 2 : 4, kThreads = 32 * kWarps, kRows = 16 * kWarps;
  static constexpr int kColumns = BS > (kLong ? 64 : 128) ? 16 : 32;
  static constexpr int kTiles = kColumns / 8;                 // accumulators of a row
  static constexpr int kBlocks = !kLong && BS <= 64 ? 3 : 2;  // at once on a multiprocessor: 168 or 255 registers
};

// The kRows of the block that a launcher picks for these inputs.
inline int64_t block_rows(const AttentionPairCuda& p) {
  return p.q_student.dtype == Dtype::f32 && p.q_student.dim > 128 ? ScoreTile<float, 256>::kRows
                                                                  : ScoreTile<float, 128>::kRows;
}

// Queries, or keys, of both models.
struct Sides {
  const RowSource &student, &teacher;
};

// Padded widths of both models, and the stride of rows that hold them side by side in shared memory.
template <class T>
struct Widths {
  int student, teacher, stride;

  __host__ __device__ explicit Widths(const Sides& sides)
      : student(round_up(sides.student.dim, kDepth)),
        teacher(round_up(sides.teacher.dim, kDepth)),
        stride(student + teacher + kPad<T>) {}
};

// Shared memory of a block: its rows, and two tiles of columns.
template <class Block, class T>
int64_t shared_bytes(const Widths<T>& widths) {
  return static_cast<int64_t>(Block::kRows + 2 * Block::kColumns) * widths.stride * sizeof(T);
}

template <class T>
__device__ __forceinline__ void copy_sides(T* shared, const Widths<T>& widths, const Sides& sides, int64_t first,
                                           int head, int rows, int valid) {
  copy_rows(shared, widths.stride, sides.student, first, head, rows, valid, widths.student);
  copy_rows(shared + widths.student, widths.stride, sides.teacher, first, head, rows, valid, widths.teacher);
}

// Calls work(columns, column) for all tiles of columns of a sequence, the next one on its way; `also(column, buffer)`
// may bring more of them.
template <class Block, class T, class Work, class Also>
__device__ __forceinline__ void for_columns(T* buffers, const Widths<T>& widths, const Sides& sides, const Tile& tile,
                                            int head, Work&& work, Also&& also) {
  const auto fetch = [&](int column, int buffer) {
    copy_sides(buffers + buffer * Block::kColumns * widths.stride, widths, sides,
               static_cast<int64_t>(tile.start) + column, head, Block::kColumns, tile.length - column);
    ptx::cp_async_commit();
    also(column, buffer);
  };
  fetch(0, 0);
  for (int column = 0, buffer = 0; column < tile.length; column += Block::kColumns, buffer ^= 1) {
    ptx::cp_async_wait<0>();
    __syncthreads();  // this tile is there for all, and the other buffer has been read by all
    if (column + Block::kColumns < tile.length) fetch(column + Block::kColumns, buffer ^ 1);
    work(buffers + buffer * Block::kColumns * widths.stride, column, buffer);
  }
  __syncthreads();
}

template <class Block, class T, class Work>
__device__ __forceinline__ void for_columns(T* buffers, const Widths<T>& widths, const Sides& sides, const Tile& tile,
                                            int head, Work&& work) {
  for_columns<Block>(
      buffers, widths, sides, tile, head, [&](const T* columns, int column, int) { work(columns, column); },
      [](int, int) {});
}

// sums += rows of x times rows of y, transposed, over `width` columns.
template <class T, int N>
__device__ __forceinline__ void scores(float (&sums)[N][4], const T* x, const T* y, int stride, int width) {
  for (int k = 0; k < width; k += kDepth) {
    typename Mma<T>::A a;
    Mma<T>::load_a(a, x + k, stride);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      typename Mma<T>::B b[2];
      Mma<T>::load_b(b, y + 8 * n * stride + k, stride);
      Mma<T>::multiply(sums[n], a, b[0]);
      Mma<T>::multiply(sums[n + 1], a, b[1]);
    }
  }
}

// grad += direction times the student's columns of y: accumulators of one product are the left side of the next.
template <class T, int N, int M>
__device__ __forceinline__ void add_direction(float (&grad)[M][4], const float (&direction)[N][4], const T* y,
                                              int stride, int width) {
#pragma unroll
  for (int n = 0; n < N; n += 2) {
    typename Mma<T>::A a;
    Mma<T>::from_accumulators(a, direction[n], direction[n + 1]);
#pragma unroll
    for (int m = 0; m < M; m += 2) {
      if (8 * m >= width) continue;
      typename Mma<T>::B b[2];
      Mma<T>::load_b_transposed(b, y + 8 * n * stride + 8 * m, stride);
      Mma<T>::multiply(grad[m], a, b[0]);
      Mma<T>::multiply(grad[m + 1], a, b[1]);
    }
  }
}

}  // namespace bertxfer
