// Thin wrappers around single PTX instructions, the only inline assembly of the package. Collective ones (ldmatrix,
// mma) are called by all 32 lanes of a warp together.
//
// Fragments, lane = 4 * group + thread (PTX ISA, "Matrix fragments for mma.m16n8k16"):
//
//   a, 16 x 16 of 16-bit numbers: registers 0..3 hold columns 2 * thread + {0, 1} (+ 8 in registers 2 and 3) of row
//     group (+ 8 in registers 1 and 3)
//   b, 16 x 8: registers 0..1 hold rows 2 * thread + {0, 1} (+ 8 in register 1) of column group
//   d, 16 x 8 of float32: numbers 0..3 are columns 2 * thread + {0, 1} of row group, then of row group + 8
//   tf32: a is 16 x 8, registers 0..3 hold column thread (+ 4 in 2 and 3) of row group (+ 8 in 1 and 3); b is 8 x 8,
//     registers 0..1 hold row thread (+ 4 in 1) of column group; d as above
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#ifdef BERTXFER_EMULATED
#include "ptx_emulated.h"  // the same functions, in the emulator of tests/cuda_emulator
#else

namespace bertxfer {
namespace ptx {

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Four 8 x 8 matrices of 16-bit numbers: lane i names row i % 8 of matrix i / 8, and receives in r[m] the numbers
// 2 * (lane % 4) + {0, 1} of row lane / 4 of matrix m. `shared_row` is 16-byte aligned.
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

// The same with every matrix transposed.
__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

// d += a b with float32 sums; the last argument only picks the type of a and b.
__device__ inline void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma_1688_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Rounds to the nearest tf32 number (10 bits of mantissa), ties away from zero. The result's bits are a float's.
__device__ inline uint32_t to_tf32(float value) {
  uint32_t result;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
  return result;
}

// Starts to copy 16 bytes, or writes 16 zeros where !valid (then `global` is not read, but must be a pointer).
__device__ inline void cp_async_16(void* shared, const void* global, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(bytes)
               : "memory");
}

// The same with 4 bytes.
__device__ inline void cp_async_4(void* shared, const void* global, bool valid) {
  const int bytes = valid ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(bytes)
               : "memory");
}

// Closes the group of the copies started since the last commit.
__device__ inline void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most N of this thread's groups are under way; a barrier shows the copies to the other threads.
template <int N>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// 2^x with about 22 correct bits; 0 at -inf.
__device__ inline float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

}  // namespace ptx
}  // namespace bertxfer

#endif  // BERTXFER_EMULATED
