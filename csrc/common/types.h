// Plain descriptions of tensors that cross from the tensor side (*_op.cpp) to the kernels (*_cpu.cpp).
#pragma once

#include <cstdint>

namespace bertxfer {

enum class Dtype : int { f32, bf16, f16 };

inline int64_t size_of(Dtype dtype) {
  return dtype == Dtype::f32 ? 4 : 2;
}

// A read-only [T, H, D] tensor (or [T, D] with H = 1): innermost dimension contiguous, the others strided.
struct PackedView {
  const void* data;
  Dtype dtype;
  int64_t token_stride;  // in elements
  int64_t head_stride;   // in elements
  int64_t dim;           // D
};

// Whether all of them are bfloat16, for kernels on the processor's bfloat16 units.
template <class... Views>
bool all_bf16(const Views&... views) {
  return ((views.dtype == Dtype::bf16) && ...);
}

// Which tokens belong together. seqused may be null.
struct Packing {
  const int32_t* cu_seqlens;  // [N + 1]
  const int32_t* seqused;     // [N] or null
  int64_t sequences;          // N

  int64_t start(int64_t n) const { return cu_seqlens[n]; }
  int64_t length(int64_t n) const { return cu_seqlens[n + 1] - cu_seqlens[n]; }
  int64_t used(int64_t n) const { return seqused ? seqused[n] : length(n); }
};

}  // namespace bertxfer
