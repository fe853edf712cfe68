// CUDA kernels of scale_grad, see scale_grad_cuda.h. A block takes kAtOnce runs of 16 bytes for each of its threads.
//
// Bytes, T = 32768, 12 heads of 64, bf16: 50 MB read, 50 MB written. Operations: one per element.
// Floor on an H100 (3.0 TB/s): 34 us; a launch, about 2 us, where the product is 1.
#include "../common/cuda/cuda.cuh"
#include "scale_grad_cuda.h"

namespace bertxfer {
namespace cuda {
namespace {

constexpr int kThreads = 256, kAtOnce = 4;

// One block's share of out = scale * grad: runs of N numbers, then what is left over one by one.
template <class In, class Out, int N>
__device__ __forceinline__ void scale_block(const In* grad, Out* out, int64_t size, float scale, int64_t block) {
  const int64_t runs = size / N, first = block * (kThreads * kAtOnce) + threadIdx.x;
  const auto* const in_runs = reinterpret_cast<const Run<In, N>*>(grad);
  auto* const out_runs = reinterpret_cast<Run<Out, N>*>(out);
#pragma unroll
  for (int j = 0; j < kAtOnce; ++j) {
    const int64_t i = first + j * kThreads;
    if (i < runs) {
      const Run<In, N> loaded = in_runs[i];
      Run<Out, N> scaled;
#pragma unroll
      for (int k = 0; k < N; ++k) from_float(to_float(loaded.values[k]) * scale, scaled.values[k]);
      out_runs[i] = scaled;
    } else if (i - runs < size - runs * N) {
      const int64_t place = runs * N + i - runs;
      from_float(to_float(grad[place]) * scale, out[place]);
    }
  }
}

// How many blocks scale `size` numbers in runs of `wide`.
__host__ __device__ int64_t scale_blocks(int64_t size, int64_t wide) {
  return ceil_div<int64_t>(size / wide + size % wide, kThreads * kAtOnce);
}

template <class In, class Out, int N>
__global__ void __launch_bounds__(kThreads) scale_kernel(const In* grad,  // [size]
                                                         Out* out,        // [size]
                                                         int64_t size,
                                                         const float* scale) {  // [1]
  scale_block<In, Out, N>(grad, out, size, *scale, blockIdx.x);
}

// The blocks of the first gradient, then those of the second, and so on.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) scale_in_place_kernel(const __grid_constant__ ScaleGradsInPlace p) {
  const float scale = *p.grad_scale * *p.upstream;
  if (scale == 1.0f) return;
  int64_t block = blockIdx.x;
#pragma unroll
  for (int i = 0; i < kGradsAtOnce; ++i) {
    if (i >= p.count) return;
    const int64_t blocks = scale_blocks(p.sizes[i], N);
    if (block < blocks) {
      T* const grad = static_cast<T*>(p.grads[i]);
      return scale_block<T, T, N>(grad, grad, p.sizes[i], scale, block);
    }
    block -= blocks;
  }
}

template <class In, class Out>
void launch_scale(const ScaleGrad& p, void* stream) {
  constexpr int kWide = kVector<In> < kVector<Out> ? kVector<In> : kVector<Out>;
  const auto* grad = static_cast<const In*>(p.grad);
  auto* out = static_cast<Out*>(p.out);
  const bool vectors = is_aligned_16(p.grad) && is_aligned_16(p.out);
  const auto kernel = vectors ? scale_kernel<In, Out, kWide> : scale_kernel<In, Out, 1>;
  BERTXFER_LAUNCH(kernel, scale_blocks(p.size, vectors ? kWide : 1), kThreads, 0, stream, grad, out, p.size, p.scale);
}

template <class T>
void launch_in_place(const ScaleGradsInPlace& p, void* stream) {
  bool vectors = true;
  for (int i = 0; i < p.count; ++i) vectors = vectors && is_aligned_16(p.grads[i]);
  int64_t blocks = 0;
  for (int i = 0; i < p.count; ++i) blocks += scale_blocks(p.sizes[i], vectors ? kVector<T> : 1);
  const auto kernel = vectors ? scale_in_place_kernel<T, kVector<T>> : scale_in_place_kernel<T, 1>;
  BERTXFER_LAUNCH(kernel, blocks, kThreads, 0, stream, p);
}

}  // namespace

void scale_grad(const ScaleGrad& p, void* stream) {
  with_dtype(p.grad_dtype, [&](auto in) {
    with_dtype(p.out_dtype, [&](auto out) { launch_scale<decltype(in), decltype(out)>(p, stream); });
  });
}

void scale_grads_in_place(const ScaleGradsInPlace& p, void* stream) {
  with_dtype(p.dtype, [&](auto number) { launch_in_place<decltype(number)>(p, stream); });
}

}  // namespace cuda
}  // namespace bertxfer
