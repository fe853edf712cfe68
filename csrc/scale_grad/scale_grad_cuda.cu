// CUDA kernel of scale_grad, see scale_grad_cuda.h. A block takes kAtOnce runs of 16 bytes for each of its threads.
//
// Bytes, T = 32768, 12 heads of 64, bf16: 50 MB read, 50 MB written. Operations: one per element.
// Floor on an H100 (3.0 TB/s): 34 us; a launch, about 2 us, where the product is 1.
// Last measured: not yet measured.
#include "../common/cuda/cuda.cuh"
#include "scale_grad_cuda.h"

namespace bertxfer {
namespace cuda {
namespace {

constexpr int kThreads = 256, kAtOnce = 4;

// Runs of N numbers, then what is left over one by one.
template <class In, class Out, int N>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(const In* grad, Out* out, int64_t size, const float* factor, const float* upstream, bool in_place) {
  const float product = upstream == nullptr ? *factor : *factor * *upstream;
  if (in_place && product == 1.0f) return;
  const int64_t runs = size / N, first = static_cast<int64_t>(blockIdx.x) * (kThreads * kAtOnce) + threadIdx.x;
  const auto* const in_runs = reinterpret_cast<const Run<In, N>*>(grad);
  auto* const out_runs = reinterpret_cast<Run<Out, N>*>(out);
#pragma unroll
  for (int j = 0; j < kAtOnce; ++j) {
    const int64_t i = first + j * kThreads;
    if (i < runs) {
      const Run<In, N> loaded = in_runs[i];
      Run<Out, N> scaled;
#pragma unroll
      for (int k = 0; k < N; ++k) from_float(to_float(loaded.values[k]) * product, scaled.values[k]);
      out_runs[i] = scaled;
    } else if (i - runs < size - runs * N) {
      const int64_t place = runs * N + i - runs;
      from_float(to_float(grad[place]) * product, out[place]);
    }
  }
}

template <class In, class Out>
void launch_scale(const ScaleGrad& p, void* stream) {
  constexpr int kWide = kVector<In> < kVector<Out> ? kVector<In> : kVector<Out>;
  const auto* grad = static_cast<const In*>(p.grad);
  auto* out = static_cast<Out*>(p.out);
  const bool vectors = is_aligned_16(p.grad) && is_aligned_16(p.out), in_place = p.grad == p.out;
  const int64_t wide = vectors ? kWide : 1, runs = p.size / wide + p.size % wide;
  const auto kernel = vectors ? scale_kernel<In, Out, kWide> : scale_kernel<In, Out, 1>;
  BERTXFER_LAUNCH(kernel, ceil_div<int64_t>(runs, kThreads * kAtOnce), kThreads, 0, stream, grad, out, p.size, p.factor,
                  p.upstream, in_place);
}

}  // namespace

void scale_grad(const ScaleGrad& p, void* stream) {
  with_dtype(p.grad_dtype, [&](auto in_tag) {
    with_dtype(p.out_dtype, [&](auto out_tag) { launch_scale<decltype(in_tag), decltype(out_tag)>(p, stream); });
  });
}

}  // namespace cuda
}  // namespace bertxfer
