// What every CPU kernel is made of: number conversion, a matrix micro-kernel, scratch memory. Written with the
// compiler's vector extension, so one text serves SSE, AVX2, AVX-512 and NEON; included only by *_cpu.cpp.
//
// Everything lives in an unnamed namespace inside BERTXFER_ISA's: a copy per instruction set, none of them shared.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "hidden_rows.h"
#include "types.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
#else
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
#endif

template <class T>
struct VectorOf {
  // Unaligned on purpose: rows of a tensor start anywhere.
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

// Columns of a scratch row of T: `columns` rounded up to whole vectors.
template <class T = float>
constexpr int64_t padded(int64_t columns) {
  return (columns + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// ---------------------------------------------------------------------------------------------- numbers

struct bf16 {
  uint16_t bits;
};
using f16 = _Float16;

inline float to_float(float x) {
  return x;
}
inline float to_float(f16 x) {
  return static_cast<float>(x);
}
inline float to_float(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline void from_float(float x, float& out) {
  out = x;
}
inline void from_float(float x, f16& out) {
  out = static_cast<f16>(x);
}
inline void from_float(float x, bf16& out) {  // to nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}

// Calls f(T{}) with the element type that `dtype` names.
template <class F>
inline void with_dtype(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f32: return f(float{});
    case Dtype::bf16: return f(bf16{});
    case Dtype::f16: return f(f16{});
  }
}

// e**x to 2 ulp for x in [-87.3, 88.3]; 0 below, clamped above, NaN stays NaN. Branch-free, so that loops over it
// vectorise.
inline float fast_exp(float x) {
  const bool vanishes = x < -87.33f;
  x = x > 88.37f ? 88.37f : x;
  x = vanishes ? -87.33f : x;
  const float magic = 12582912.0f;  // 1.5 * 2**23: adding it rounds to an integer in the low bits
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  const int32_t power = static_cast<int32_t>((static_cast<uint32_t>(bits) - 0x4b400000u + 127u) << 23);
  float two_n;
  std::memcpy(&two_n, &power, 4);
  return vanishes ? 0.0f : p * two_n;
}

// ---------------------------------------------------------------------------------------------- rows

// Rows first..first+count-1 of one head as floats: out[i][0..dim), row length `ld`, columns dim..columns set to zero.
inline void load_rows(const PackedView& view, int64_t head, int64_t first, int64_t count, float* out, int64_t ld,
                      int64_t columns) {
  with_dtype(view.dtype, [&](auto tag) {
    using T = decltype(tag);
    const T* source = static_cast<const T*>(view.data) + head * view.head_stride + first * view.token_stride;
    const int64_t dim = view.dim;
    for (int64_t i = 0; i < count; ++i, source += view.token_stride, out += ld) {
#pragma omp simd
      for (int64_t d = 0; d < dim; ++d) out[d] = to_float(source[d]);
      for (int64_t d = dim; d < columns; ++d) out[d] = 0.0f;
    }
  });
}

// The same transposed and scaled: out[d][i], zeros in columns count..columns.
inline void load_transposed(const PackedView& view, int64_t head, int64_t first, int64_t count, float scale, float* out,
                            int64_t ld, int64_t columns) {
  with_dtype(view.dtype, [&](auto tag) {
    using T = decltype(tag);
    const T* source = static_cast<const T*>(view.data) + head * view.head_stride + first * view.token_stride;
    constexpr int64_t kBlock = 16;  // so that both sides of the transposition stay in a few cache lines
    for (int64_t i0 = 0; i0 < count; i0 += kBlock) {
      const int64_t rows = count - i0 < kBlock ? count - i0 : kBlock;
      for (int64_t d = 0; d < view.dim; ++d) {
        for (int64_t i = 0; i < rows; ++i) {
          out[d * ld + i0 + i] = scale * to_float(source[(i0 + i) * view.token_stride + d]);
        }
      }
    }
    for (int64_t d = 0; d < view.dim; ++d) {
      for (int64_t i = count; i < columns; ++i) out[d * ld + i] = 0.0f;
    }
  });
}

// Writes rows to a contiguous [T, H, dim] tensor: out[first + i][head][d] = rows[i][d].
inline void store_rows(const float* rows, int64_t ld, int64_t count, void* out, Dtype dtype, int64_t heads,
                       int64_t head, int64_t first, int64_t dim) {
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    T* target = static_cast<T*>(out) + (first * heads + head) * dim;
    for (int64_t i = 0; i < count; ++i, rows += ld, target += heads * dim) {
#pragma omp simd
      for (int64_t d = 0; d < dim; ++d) from_float(rows[d], target[d]);
    }
  });
}

inline void store_zero_rows(int64_t count, void* out, Dtype dtype, int64_t heads, int64_t head, int64_t first,
                            int64_t dim) {
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    T* target = static_cast<T*>(out) + (first * heads + head) * dim;
    for (int64_t i = 0; i < count; ++i, target += heads * dim) std::memset(target, 0, dim * sizeof(T));
  });
}

// ---------------------------------------------------------------------------------------------- matrix product

// C[i][j] (+)= sum_k A(i, k) * B[k][j] for MR rows and NV vectors of columns, the whole of C in registers.
// A(i, k) = a[i * a_row + k * a_col], so A may be read transposed; B and C rows are contiguous.
template <class T, int MR, int NV>
inline __attribute__((always_inline)) void micro_kernel(int64_t depth, const T* a, int64_t a_row, int64_t a_col,
                                                        const T* b, int64_t ldb, T* c, int64_t ldc, bool accumulate) {
  using V = Vector<T>;
  constexpr int W = kLanes<T>;
  V sum[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) sum[i][j] = accumulate ? *reinterpret_cast<const V*>(c + i * ldc + j * W) : V{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    V row[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) row[j] = *reinterpret_cast<const V*>(b + j * W);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const T scalar = a[i * a_row];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) sum[i][j] += scalar * row[j];
    }
    a += a_col;
    b += ldb;
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) *reinterpret_cast<V*>(c + i * ldc + j * W) = sum[i][j];
  }
}

// Rows per call for NV vectors of columns: as many as leave registers for a row of B and one broadcast.
template <int NV>
constexpr int kMicroRows = kVectorRegisters == 32 ? (NV == 1   ? 14
                                                     : NV == 2 ? 12
                                                     : NV == 3 ? 8
                                                               : 6)
                                                  : (NV == 1   ? 8
                                                     : NV == 2 ? 6
                                                               : 4);
constexpr int kMaxVectors = kVectorRegisters == 32 ? 4 : 3;

template <class T, int NV, int MR>
void micro_rows(int64_t rows, int64_t depth, const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t ldb, T* c,
                int64_t ldc, bool accumulate) {
  if constexpr (MR > 0) {
    if (rows == MR) return micro_kernel<T, MR, NV>(depth, a, a_row, a_col, b, ldb, c, ldc, accumulate);
    micro_rows<T, NV, MR - 1>(rows, depth, a, a_row, a_col, b, ldb, c, ldc, accumulate);
  }
}

template <class T, int NV>
void gemm_columns(int64_t m, int64_t depth, const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t ldb, T* c,
                  int64_t ldc, bool accumulate) {
  constexpr int MR = kMicroRows<NV>;
  int64_t i = 0;
  for (; i + MR <= m; i += MR) {
    micro_kernel<T, MR, NV>(depth, a + i * a_row, a_row, a_col, b, ldb, c + i * ldc, ldc, accumulate);
  }
  if (i < m) {
    micro_rows<T, NV, MR - 1>(m - i, depth, a + i * a_row, a_row, a_col, b, ldb, c + i * ldc, ldc, accumulate);
  }
}

// C[m, n] (+)= A[m, depth] B[depth, n]; n is a whole number of vectors, B and C have rows that long.
template <class T>
void gemm(int64_t m, int64_t n, int64_t depth, const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t ldb, T* c,
          int64_t ldc, bool accumulate) {
  int64_t vectors = n / kLanes<T>;
  for (int64_t chunks = (vectors + kMaxVectors - 1) / kMaxVectors; chunks > 0; --chunks) {
    const int64_t now = (vectors + chunks - 1) / chunks;  // even shares: 6 vectors are 3 + 3, not 4 + 2
    switch (now) {
      case 1: gemm_columns<T, 1>(m, depth, a, a_row, a_col, b, ldb, c, ldc, accumulate); break;
      case 2: gemm_columns<T, 2>(m, depth, a, a_row, a_col, b, ldb, c, ldc, accumulate); break;
      case 3: gemm_columns<T, 3>(m, depth, a, a_row, a_col, b, ldb, c, ldc, accumulate); break;
      default:
        if constexpr (kMaxVectors >= 4) gemm_columns<T, 4>(m, depth, a, a_row, a_col, b, ldb, c, ldc, accumulate);
    }
    b += now * kLanes<T>;
    c += now * kLanes<T>;
    vectors -= now;
  }
}

// ---------------------------------------------------------------------------------------------- scratch memory

// A cache-line-aligned array that lives as long as a worker.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count > 0 ? count : 1) * sizeof(T) + 63) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  Scratch(Scratch&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  Scratch& operator=(Scratch&&) = delete;
  ~Scratch() { std::free(data_); }
  T* get() const { return data_; }
  operator T*() const { return data_; }

 private:
  T* data_;
};

// The bias of a projection as floats, zeros where there is none.
inline Scratch<float> load_bias(const HiddenRows& p) {
  Scratch<float> bias(p.width);
  if (p.bias == nullptr) {
    std::memset(bias.get(), 0, p.width * sizeof(float));
  } else {
    load_rows({p.bias, p.bias_dtype, 0, 0, p.width}, 0, 0, 1, bias, p.width, p.width);
  }
  return bias;
}

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
