// Matrix products of one warp, the same for every dtype: A is 16 x 16, B 16 x 8, both in shared memory.
//
// float16 and bfloat16 take one tensor-core instruction. float32 takes eight: every number is split into two tf32
// numbers, high + low, which hold 22 bits of it, and all four products are made. (Without low low, "3xTF32", a loss of
// nearly equal scores was a third further off in the emulator.) Both kinds have the same interface, and accumulators of
// one product are the A of the next, so that kernels are written once.
#pragma once

#include "cuda.cuh"
#include "ptx.cuh"

namespace bertxfer {

constexpr int kDepth = 16;  // columns of A, rows of B

// Numbers by which rows of a matrix in shared memory are lengthened: 8 rows then lie in different banks, and stay
// aligned to 16 bytes.
template <class T>
constexpr int kPad = 16 / sizeof(T);

// Two 16-bit numbers in a register, the first in the low half.
template <class T>
__device__ __forceinline__ uint32_t pack(float first, float second) {
  const T low = from_float<T>(first), high = from_float<T>(second);
  uint16_t bits[2];
  memcpy(&bits[0], &low, 2);
  memcpy(&bits[1], &high, 2);
  return bits[0] | static_cast<uint32_t>(bits[1]) << 16;
}

// 16-bit numbers.
template <class T>
struct Mma {
  struct A {
    uint32_t x[4];
  };
  struct B {
    uint32_t x[2];
  };

  // Element (m, k) is at p[m * stride + k]. p and stride are multiples of 8.
  static __device__ __forceinline__ void load_a(A& a, const T* p, int stride) {
    const int i = threadIdx.x % 8, part = threadIdx.x % 32 / 8;
    ptx::ldmatrix_x4(a.x, p + (i + 8 * (part & 1)) * stride + 8 * (part >> 1));
  }

  // Element (m, k) is at p[k * stride + m].
  static __device__ __forceinline__ void load_a_transposed(A& a, const T* p, int stride) {
    const int i = threadIdx.x % 8, part = threadIdx.x % 32 / 8;
    ptx::ldmatrix_x4_trans(a.x, p + (i + 8 * (part >> 1)) * stride + 8 * (part & 1));
  }

  // Two B's, columns 0 to 7 and 8 to 15. Element (k, n) is at p[n * stride + k].
  static __device__ __forceinline__ void load_b(B (&b)[2], const T* p, int stride) {
    const int i = threadIdx.x % 8, part = threadIdx.x % 32 / 8;
    uint32_t x[4];
    ptx::ldmatrix_x4(x, p + (i + 8 * (part >> 1)) * stride + 8 * (part & 1));
    split(b, x);
  }

  // Element (k, n) is at p[k * stride + n].
  static __device__ __forceinline__ void load_b_transposed(B (&b)[2], const T* p, int stride) {
    const int i = threadIdx.x % 8, part = threadIdx.x % 32 / 8;
    uint32_t x[4];
    ptx::ldmatrix_x4_trans(x, p + (i + 8 * (part & 1)) * stride + 8 * (part >> 1));
    split(b, x);
  }

  // The A whose columns 0 to 7 are one accumulator and 8 to 15 the next, rounded.
  static __device__ __forceinline__ void from_accumulators(A& a, const float (&d0)[4], const float (&d1)[4]) {
    a.x[0] = pack<T>(d0[0], d0[1]);
    a.x[1] = pack<T>(d0[2], d0[3]);
    a.x[2] = pack<T>(d1[0], d1[1]);
    a.x[3] = pack<T>(d1[2], d1[3]);
  }

  // d (16 x 8) += a b. Number 2 r + c of a lane is row lane / 4 + 8 r, column 2 * (lane % 4) + c.
  static __device__ __forceinline__ void multiply(float (&d)[4], const A& a, const B& b) {
    ptx::mma_16816(d, a.x, b.x, T());
  }

 private:
  static __device__ __forceinline__ void split(B (&b)[2], const uint32_t (&x)[4]) {
    b[0].x[0] = x[0];
    b[0].x[1] = x[1];
    b[1].x[0] = x[2];
    b[1].x[1] = x[3];
  }
};

// float32: two steps of depth 8. Slot t of a step is its column 2 t and slot t + 4 column 2 t + 1, in A and in B, so
// that a lane's numbers are neighbours in memory, and are those it holds of an accumulator.
template <>
struct Mma<float> {
  struct A {
    uint32_t high[2][4], low[2][4];
  };
  struct B {
    uint32_t high[2][2], low[2][2];
  };

  static __device__ __forceinline__ void load_a(A& a, const float* p, int stride) { load_a_strided(a, p, stride, 1); }

  static __device__ __forceinline__ void load_a_transposed(A& a, const float* p, int stride) {
    load_a_strided(a, p, 1, stride);
  }

  static __device__ __forceinline__ void load_b(B (&b)[2], const float* p, int stride) {
    load_b_strided(b, p, 1, stride);
  }

  static __device__ __forceinline__ void load_b_transposed(B (&b)[2], const float* p, int stride) {
    load_b_strided(b, p, stride, 1);
  }

  static __device__ __forceinline__ void from_accumulators(A& a, const float (&d0)[4], const float (&d1)[4]) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const float* d = step == 0 ? d0 : d1;
      split(d[0], a.high[step][0], a.low[step][0]);
      split(d[2], a.high[step][1], a.low[step][1]);
      split(d[1], a.high[step][2], a.low[step][2]);
      split(d[3], a.high[step][3], a.low[step][3]);
    }
  }

  // Tensor cores cut sums off instead of rounding them, always toward zero: only a step's eight products are summed
  // there, smallest first, and added to the accumulator as ordinary float32 numbers.
  static __device__ __forceinline__ void multiply(float (&d)[4], const A& a, const B& b) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      float products[4] = {};
      ptx::mma_1688_tf32(products, a.low[step], b.low[step]);
      ptx::mma_1688_tf32(products, a.low[step], b.high[step]);
      ptx::mma_1688_tf32(products, a.high[step], b.low[step]);
      ptx::mma_1688_tf32(products, a.high[step], b.high[step]);
#pragma unroll
      for (int i = 0; i < 4; ++i) d[i] += products[i];
    }
  }

 private:
  static __device__ __forceinline__ void split(float x, uint32_t& high, uint32_t& low) {
    high = ptx::to_tf32(x);
    low = ptx::to_tf32(x - __uint_as_float(high));
  }

  // Element (m, k) is at p[m * row + k * col].
  static __device__ __forceinline__ void load_a_strided(A& a, const float* p, int row, int col) {
    const int group = threadIdx.x % 32 / 4, thread = threadIdx.x % 4;
#pragma unroll
    for (int step = 0; step < 2; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int m = group + 8 * (i & 1), k = 8 * step + 2 * thread + (i >> 1);
        split(p[m * row + k * col], a.high[step][i], a.low[step][i]);
      }
    }
  }

  // Element (k, n) is at p[k * row + n * col].
  static __device__ __forceinline__ void load_b_strided(B (&b)[2], const float* p, int row, int col) {
    const int group = threadIdx.x % 32 / 4, thread = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int step = 0; step < 2; ++step) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int k = 8 * step + 2 * thread + i, n = group + 8 * half;
          split(p[k * row + n * col], b[half].high[step][i], b[half].low[step][i]);
        }
      }
    }
  }
};

}  // namespace bertxfer
