// Sums and normalisers, see reductions_cuda.h.
//
// Bytes and operations: kilobytes, one block a sum; a launch, about 2 us on an H100, is what each costs.
// Last measured: not yet measured.
#include "cuda.cuh"
#include "reductions_cuda.h"

namespace bertxfer {
namespace cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    total_kernel(const float* partials, int64_t count, const float* multiplier, float* result, double times) {
  const float* row = partials + blockIdx.x * count;
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += static_cast<double>(row[i]);
  sum = block_sum(sum) * times;
  if (threadIdx.x == 0) {
    result[blockIdx.x] = static_cast<float>(multiplier == nullptr ? sum : sum * static_cast<double>(*multiplier));
  }
}

// 32 columns a block, a warp takes every eighth row.
__global__ void __launch_bounds__(kThreads)
    column_total_kernel(const float* partials, int64_t rows, int64_t columns, float* result) {
  constexpr int kWarps = kThreads / 32;
  __shared__ float sums[kWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  float sum = 0.0f;
  for (int64_t r = warp; r < rows; r += kWarps) {
    if (column < columns) sum += partials[r * columns + column];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= columns) return;
  for (int w = 1; w < kWarps; ++w) sum += sums[w][lane];
  result[column] = sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads) add_kernel(const T* terms, float* sums, int64_t size, bool accumulate) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < size) sums[i] = to_float(terms[i]) + (accumulate ? sums[i] : 0.0f);
}

}  // namespace

void total(const float* partials, int64_t count, int64_t rows, const float* multiplier, float* result, void* stream,
           double times) {
  BERTXFER_LAUNCH(total_kernel, rows, kThreads, 0, stream, partials, count, multiplier, result, times);
}

void add(const void* terms, Dtype dtype, float* sums, int64_t size, bool accumulate, void* stream) {
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    BERTXFER_LAUNCH(add_kernel<T>, ceil_div<int64_t>(size, kThreads), kThreads, 0, stream, static_cast<const T*>(terms),
                    sums, size, accumulate);
  });
}

void column_total(const float* partials, int64_t rows, int64_t columns, float* result, void* stream) {
  BERTXFER_LAUNCH(column_total_kernel, ceil_div<int64_t>(columns, 32), kThreads, 0, stream, partials, rows, columns,
                  result);
}

}  // namespace cuda
}  // namespace bertxfer
