// Small sums, see reductions_cuda.h: kilobytes, one block a sum; a launch, about 2 us on an H100, is what each costs.
#include "cuda.cuh"
#include "reductions_cuda.h"

namespace bertxfer {
namespace cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) total_kernel(const float* partials,  // [rows, count]
                                                         int64_t count,
                                                         float* result) {  // [rows]
  const float* row = partials + blockIdx.x * count;
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += static_cast<double>(row[i]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) result[blockIdx.x] = static_cast<float>(sum);
}

template <class T>
__global__ void __launch_bounds__(kThreads) add_kernel(const T* terms,  // [size]
                                                       float* sums,     // [size]
                                                       int64_t size, bool accumulate) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < size) sums[i] = to_float(terms[i]) + (accumulate ? sums[i] : 0.0f);
}

}  // namespace

void total(const float* partials, int64_t count, int64_t rows, float* result, void* stream) {
  BERTXFER_LAUNCH(total_kernel, rows, kThreads, 0, stream, partials, count, result);
}

void add(const void* terms, Dtype dtype, float* sums, int64_t size, bool accumulate, void* stream) {
  with_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    BERTXFER_LAUNCH(add_kernel<T>, ceil_div<int64_t>(size, kThreads), kThreads, 0, stream, static_cast<const T*>(terms),
                    sums, size, accumulate);
  });
}

}  // namespace cuda
}  // namespace bertxfer
