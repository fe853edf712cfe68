// The functions of csrc/common/cuda/ptx.cuh in the emulator: the same fragments, the same roundings of their inputs.
#pragma once

#include "emulator.h"

namespace emulator {
void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row, bool transposed, Site site);
void mma(const char* what, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site);
}  // namespace emulator

namespace bertxfer {
namespace ptx {

inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row, BERTXFER_SITE) {
  emulator::ldmatrix_x4(r, shared_row, false, site);
}

inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row, BERTXFER_SITE) {
  emulator::ldmatrix_x4(r, shared_row, true, site);
}

inline void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half, BERTXFER_SITE) {
  emulator::mma("f16", d, a, b, site);
}

inline void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16, BERTXFER_SITE) {
  emulator::mma("bf16", d, a, b, site);
}

inline void mma_1688_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], BERTXFER_SITE) {
  emulator::mma("tf32", d, a, b, site);
}

// Ties away from zero; infinities and NaNs stay what they are.
inline uint32_t to_tf32(float value) {
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7f800000u) == 0x7f800000u) return (bits & 0x007fffffu) != 0 ? 0x7fffe000u : bits;
  return (bits + 0x1000u) & 0xffffe000u;
}

inline void cp_async_16(void* shared, const void* global, bool valid) {
  emulator::cp_async(shared, global, 16, valid);
}

inline void cp_async_4(void* shared, const void* global, bool valid) {
  emulator::cp_async(shared, global, 4, valid);
}

inline void cp_async_commit() {
  emulator::cp_async_commit();
}

template <int N>
inline void cp_async_wait() {
  emulator::cp_async_wait(N);
}

inline float exp2_approx(float x) {
  const float result = std::exp2(x);
  return result < 1.17549435e-38f ? 0.0f : result;
}

}  // namespace ptx
}  // namespace bertxfer
