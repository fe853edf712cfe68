// CUDA kernel of hidden_mse, see hidden_mse_cuda.h: the projection on tensor cores, and in its epilogue all that lies
// between the products. The projected states stay in shared memory; their scaled difference to the teacher's is written
// once, for the two products of the gradient.
//
// A block is 128 tokens x 128 columns, its eight warps 64 x 32 each. Rows of both operands come through three buffers
// (two in float32) of 32 columns, filled by cp.async. float32 is split into pairs of tf32 numbers
// (common/cuda/mma.cuh).
//
// Bytes, T = 32768, 312 -> 768, bf16: X 20 MB and Y 50 MB read, direction 50 MB written; then dX = G W and dW = G^T X
// read it again, 50 MB each, with 20 MB of dX and 20 MB of X. Operations: 3 products of 15.7 GFLOP.
// Floor on an H100 (3.0 TB/s, 790 TFLOP/s): this kernel 40 us (its product 20 us), the two products 24 us each.
#include "../common/cuda/tiles.cuh"
#include "hidden_mse_cuda.h"

namespace bertxfer {
namespace cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kRows = static_cast<int>(kHiddenRows), kColumns = static_cast<int>(kHiddenColumns);
constexpr int kStep = 32;                 // columns of the operands at a time
constexpr int kSumStride = kColumns + 4;  // of the projected states in shared memory
constexpr int kWarpRows = 64, kWarpColumns = 32;
constexpr int kMs = kWarpRows / 16, kNs = kWarpColumns / 8;

template <class T>
struct Buffers {
  static constexpr int kStages = sizeof(T) == 4 ? 2 : 3;
  static constexpr int kStride = kStep + kPad<T>;
  static constexpr int kSize = (kRows + kColumns) * kStride;  // numbers of one
  static constexpr int kOperands = kStages * kSize * static_cast<int>(sizeof(T));
  static constexpr int kProjected = kRows * kSumStride * static_cast<int>(sizeof(float));
  static constexpr int kBytes = kOperands > kProjected ? kOperands : kProjected;
};

struct Problem {
  RowSource student, weight;
  const void* bias;     // [width] or null
  const void* teacher;  // [rows, width]
  Dtype teacher_dtype;
  int64_t teacher_stride, rows;
  int width, depth, column_tiles;
  bool vectors;  // four neighbouring columns move as one
  float scale;
  void* direction;     // [rows, width] or null
  float* sums;         // [tiles of rows, tiles of columns]
  float* column_sums;  // [tiles of rows, width] or null
};

// The columns of a tile that a thread looks at: lane and 32 apart, or four neighbours.
__device__ int column_of(bool vectors, int i) {
  const int lane = threadIdx.x % 32;
  return vectors ? 4 * lane + i : lane + 32 * i;
}

template <class T>
__device__ void load_four(float (&out)[4], const void* row, int first, int width, bool vectors) {
  const T* const from = static_cast<const T*>(row) + first;
  if (vectors) {
    const int column = column_of(true, 0);
    if (first + column >= width) return;
    const auto loaded = *reinterpret_cast<const Run<T, 4>*>(from + column);
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = to_float(loaded.values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = column_of(false, i);
      if (first + column < width) out[i] = to_float(from[column]);
    }
  }
}

__device__ void load_four(float (&out)[4], const void* data, Dtype dtype, int64_t offset, int first, int width,
                          bool vectors) {
  if (dtype == Dtype::f32) {
    load_four<float>(out, static_cast<const float*>(data) + offset, first, width, vectors);
  } else if (dtype == Dtype::bf16) {
    load_four<__nv_bfloat16>(out, static_cast<const __nv_bfloat16*>(data) + offset, first, width, vectors);
  } else {
    load_four<__half>(out, static_cast<const __half*>(data) + offset, first, width, vectors);
  }
}

template <class T>
__device__ void store_four(const float (&values)[4], T* row, int first, int width, bool vectors) {
  if (vectors) {
    const int column = column_of(true, 0);
    if (first + column >= width) return;
    Run<T, 4> four;
#pragma unroll
    for (int i = 0; i < 4; ++i) from_float(values[i], four.values[i]);
    *reinterpret_cast<Run<T, 4>*>(row + first + column) = four;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = first + column_of(false, i);
      if (column < width) from_float(values[i], row[column]);
    }
  }
}

// What follows the projection, for rows [first_row, + 128) and columns [first_column, + 128). A warp takes every eighth
// row. `projected(row, values)` gives a thread its four values of a row of the tile. Then
// `scratch`, [kWarps, 128], is written, which may be where they were.
template <class T, class Projected>
__device__ void compare(const Problem& p, int64_t first_row, int first_column, float* scratch, Projected projected) {
  const int warp = threadIdx.x / 32;
  const int rows = static_cast<int>(p.rows - first_row < kRows ? p.rows - first_row : kRows);
  float bias[4] = {}, columns[4] = {}, squares = 0.0f;
  if (p.bias != nullptr) load_four<T>(bias, p.bias, first_column, p.width, p.vectors);
#pragma unroll 2
  for (int row = warp; row < rows; row += kWarps) {
    const int64_t token = first_row + row;
    float teacher[4] = {}, difference[4] = {};
    load_four(teacher, p.teacher, p.teacher_dtype, token * p.teacher_stride, first_column, p.width, p.vectors);
    projected(row, difference);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (first_column + column_of(p.vectors, i) >= p.width) continue;
      const float r = difference[i] + bias[i] - teacher[i];
      squares += r * r;
      difference[i] = p.scale * r;
      columns[i] += difference[i];
    }
    if (p.direction != nullptr) {
      store_four(difference, static_cast<Grad<T>*>(p.direction) + token * p.width, first_column, p.width, p.vectors);
    }
  }
  squares = block_sum(squares);  // its barriers: from here on nobody reads what `projected` did
  if (threadIdx.x == 0) p.sums[blockIdx.x] = squares;
  if (p.column_sums == nullptr) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) scratch[warp * kColumns + column_of(p.vectors, i)] = columns[i];
  __syncthreads();
  const int column = threadIdx.x;
  if (column >= kColumns || first_column + column >= p.width) return;
  float sum = 0.0f;
  for (int w = 0; w < kWarps; ++w) sum += scratch[w * kColumns + column];
  p.column_sums[first_row / kRows * p.width + first_column + column] = sum;
}

template <class T>
__device__ void load_operands(const Problem& p, T* buffer, int64_t first_row, int first_column, int k) {
  constexpr int kStride = Buffers<T>::kStride;
  RowSource student = p.student, weight = p.weight;
  student.data = static_cast<const T*>(student.data) + k;
  weight.data = static_cast<const T*>(weight.data) + k;
  student.dim = weight.dim = p.depth - k;
  const int rows = static_cast<int>(p.rows - first_row < kRows ? p.rows - first_row : kRows);
  copy_rows(buffer, kStride, student, first_row, 0, kRows, rows, kStep);
  copy_rows(buffer + kRows * kStride, kStride, weight, first_column, 0, kColumns, p.width - first_column, kStep);
}

template <class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 1 : 2) project_kernel(const __grid_constant__ Problem p) {
  using B = Buffers<T>;
  BERTXFER_DYNAMIC_SHARED(unsigned char, shared);
  T* const buffers = reinterpret_cast<T*>(shared);
  const int warp = threadIdx.x / 32, warp_row = warp / 4 * kWarpRows, warp_column = warp % 4 * kWarpColumns;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x / p.column_tiles) * kRows;
  const int first_column = blockIdx.x % p.column_tiles * kColumns;
  const int steps = ceil_div(p.depth, kStep);

  float sums[kMs][kNs][4] = {};
#pragma unroll
  for (int s = 0; s < B::kStages - 1; ++s) {
    if (s < steps) load_operands(p, buffers + s * B::kSize, first_row, first_column, s * kStep);
    ptx::cp_async_commit();
  }
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait<B::kStages - 2>();
    __syncthreads();  // this step's operands are there, and the last step's have been read by all
    const int next = step + B::kStages - 1;
    if (next < steps) {
      load_operands(p, buffers + next % B::kStages * B::kSize, first_row, first_column, next * kStep);
    }
    ptx::cp_async_commit();
    const T* const student = buffers + step % B::kStages * B::kSize + warp_row * B::kStride;
    const T* const weight = buffers + step % B::kStages * B::kSize + (kRows + warp_column) * B::kStride;
#pragma unroll(sizeof(T) == 4 ? 1 : kStep / kDepth)  // float32 has no registers for two steps at once
    for (int k = 0; k < kStep; k += kDepth) {
      typename Mma<T>::B b[kNs / 2][2];
#pragma unroll
      for (int n = 0; n < kNs / 2; ++n) Mma<T>::load_b(b[n], weight + 16 * n * B::kStride + k, B::kStride);
#pragma unroll
      for (int m = 0; m < kMs; ++m) {
        typename Mma<T>::A a;
        Mma<T>::load_a(a, student + 16 * m * B::kStride + k, B::kStride);
#pragma unroll
        for (int n = 0; n < kNs; ++n) Mma<T>::multiply(sums[m][n], a, b[n / 2][n % 2]);
      }
    }
  }
  ptx::cp_async_wait<0>();
  __syncthreads();
  float* const projected = reinterpret_cast<float*>(shared);
  const int group = threadIdx.x % 32 / 4, thread = threadIdx.x % 4;
#pragma unroll
  for (int m = 0; m < kMs; ++m) {
#pragma unroll
    for (int n = 0; n < kNs; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp_row + 16 * m + group + 8 * half, column = warp_column + 8 * n + 2 * thread;
        projected[row * kSumStride + column] = sums[m][n][2 * half];
        projected[row * kSumStride + column + 1] = sums[m][n][2 * half + 1];
      }
    }
  }
  __syncthreads();
  compare<T>(p, first_row, first_column, projected, [&](int row, float (&values)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = projected[row * kSumStride + column_of(p.vectors, i)];
  });
}

// Without a weight.
template <class T>
__global__ void __launch_bounds__(kThreads) compare_kernel(const __grid_constant__ Problem p) {
  __shared__ float scratch[kWarps * kColumns];
  const int64_t first_row = static_cast<int64_t>(blockIdx.x / p.column_tiles) * kRows;
  const int first_column = blockIdx.x % p.column_tiles * kColumns;
  compare<T>(p, first_row, first_column, scratch, [&](int row, float (&values)[4]) {
    const T* const student = static_cast<const T*>(p.student.data) + (first_row + row) * p.student.token_stride;
    load_four<T>(values, student, first_column, p.width, p.vectors);
  });
}

// The first block sums up the loss, in float64; every other one 32 columns of the bias's gradient, a warp every eighth
// tile of rows.
__global__ void __launch_bounds__(kThreads) finish_kernel(const __grid_constant__ HiddenMseSums p) {
  __shared__ float sums[kWarps][32];
  if (blockIdx.x == 0) {
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < p.tiles; i += kThreads) sum += static_cast<double>(p.sums[i]);
    sum = block_sum(sum) * p.normaliser;
    if (threadIdx.x != 0) return;
    *p.loss = static_cast<float>(sum);
    *p.grad_scale = 1.0f;
    return;
  }
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t column = static_cast<int64_t>(blockIdx.x - 1) * 32 + lane;
  float sum = 0.0f;
  for (int64_t r = warp; r < p.row_tiles && column < p.width; r += kWarps) sum += p.column_sums[r * p.width + column];
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= p.width) return;
  for (int w = 1; w < kWarps; ++w) sum += sums[w][lane];
  p.grad_bias[column] = sum;
}

// One row of an operand is copied kStep columns at a time.
RowSource operand(const void* data, Dtype dtype, int64_t stride, int64_t depth) {
  RowSource source = row_source({data, dtype, stride, 0, depth});
  const int copies = kStep * (dtype == Dtype::f32 ? 4 : 2) / source.copy_bytes;
  for (source.lanes_shift = 0; source.lanes_shift < 5 && (1 << source.lanes_shift) < copies;) ++source.lanes_shift;
  return source;
}

bool moves_in_fours(const void* data, Dtype dtype, int64_t stride) {
  const uintptr_t bytes = dtype == Dtype::f32 ? 16 : 8;
  return reinterpret_cast<uintptr_t>(data) % bytes == 0 && stride % 4 == 0;
}

}  // namespace

void hidden_mse(const HiddenMse& p, void* stream) {
  Problem problem{};
  problem.student = operand(p.student, p.dtype, p.student_stride, p.depth);
  if (p.weight != nullptr) problem.weight = operand(p.weight, p.dtype, p.weight_stride, p.depth);
  problem.bias = p.bias;
  problem.teacher = p.teacher;
  problem.teacher_dtype = p.teacher_dtype;
  problem.teacher_stride = p.teacher_stride;
  problem.rows = p.rows;
  problem.width = static_cast<int>(p.width);
  problem.depth = static_cast<int>(p.depth);
  problem.column_tiles = static_cast<int>(ceil_div(p.width, kHiddenColumns));
  problem.vectors = p.width % 4 == 0 && moves_in_fours(p.teacher, p.teacher_dtype, p.teacher_stride) &&
                    moves_in_fours(p.direction, p.direction_dtype, p.width) && moves_in_fours(p.bias, p.dtype, 0) &&
                    (p.weight != nullptr || moves_in_fours(p.student, p.dtype, p.student_stride));
  problem.scale = p.scale;
  problem.direction = p.direction;
  problem.sums = p.sums;
  problem.column_sums = p.column_sums;
  const int64_t blocks = ceil_div(p.rows, kHiddenRows) * problem.column_tiles;
  with_dtype(p.dtype, [&](auto number) {
    using T = decltype(number);
    if (p.weight == nullptr) {
      BERTXFER_LAUNCH(compare_kernel<T>, blocks, kThreads, 0, stream, problem);
    } else {
      BERTXFER_LAUNCH(project_kernel<T>, blocks, kThreads, Buffers<T>::kBytes, stream, problem);
    }
  });
}

void finish_hidden_mse(const HiddenMseSums& p, void* stream) {
  const int64_t columns = p.grad_bias == nullptr ? 0 : ceil_div<int64_t>(p.width, 32);
  BERTXFER_LAUNCH(finish_kernel, 1 + columns, kThreads, 0, stream, p);
}

}  // namespace cuda
}  // namespace bertxfer
