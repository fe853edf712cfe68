// What every CPU kernel is made of: vectors, conversion of dtypes, e^x, scratch memory.
//
// The compiler's vector extension lets one source serve SSE, AVX2, AVX-512 and NEON; intrinsics stand only where it
// cannot express what the processor does (masks, half precision). Only kernels include this (*_cpu.cpp and what they
// include), and everything lives in an unnamed namespace inside BERTXFER_ISA's, so that no instruction set shares code
// with another.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <new>
#include <type_traits>

#include "../types.h"

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

#define BERTXFER_INLINE __attribute__((always_inline))

template <class T>
struct VectorOf {
  // Vectors are unaligned because rows of a tensor start anywhere.
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

// Row stride of a matrix that is read down its columns: an odd number of cache lines, because rows a power of two apart
// share a few sets of the cache and evict each other.
template <class T = float>
constexpr int64_t conflict_free_stride(int64_t columns) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  return ((columns + kLine - 1) / kLine | 1) * kLine;
}

// ---------------------------------------------------------------------------------------------- dtypes

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

// ---------------------------------------------------------------------------------------------- vectors

template <class T>
inline Vector<T> load(const T* p) {
  return *reinterpret_cast<const Vector<T>*>(p);
}
template <class T>
inline void store(Vector<T> x, T* p) {
  *reinterpret_cast<Vector<T>*>(p) = x;
}

// kLanes<float> elements of T as floats.
template <class T>
inline Vector<float> load_floats(const T* p) {
  if constexpr (std::is_same_v<T, float>) {
    return load(p);
#if defined(__AVX512F__)
  } else if constexpr (std::is_same_v<T, bf16>) {
    return (Vector<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
  } else {
    return (Vector<float>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  } else if constexpr (std::is_same_v<T, bf16>) {
    return (Vector<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
  } else {
    return (Vector<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  } else {
    Vector<float> x;
    for (int l = 0; l < kLanes<float>; ++l) x[l] = to_float(p[l]);
    return x;
#endif
  }
}

// The first n of them, zeros after; reads nothing beyond. 0 <= n <= kLanes<float>.
template <class T>
inline Vector<float> load_floats(const T* p, int64_t n) {
#if defined(__AVX512F__)
  const __mmask16 mask = static_cast<__mmask16>((1u << n) - 1);
  if constexpr (std::is_same_v<T, float>) {
    return (Vector<float>)_mm512_maskz_loadu_ps(mask, p);
  } else {
    const __m256i bits = _mm256_maskz_loadu_epi16(mask, p);
    if constexpr (std::is_same_v<T, f16>) return (Vector<float>)_mm512_cvtph_ps(bits);
    return (Vector<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
  }
#else
  Vector<float> x = {};
  for (int64_t l = 0; l < n; ++l) x[l] = to_float(p[l]);
  return x;
#endif
}

#if defined(__AVX512F__)
inline __m256i rounded(Vector<float> x, bf16) {
#if defined(__AVX512BF16__)
  return (__m256i)_mm512_cvtneps_pbh((__m512)x);
#else
  const __m512i bits = (__m512i)(__m512)x;
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  sum = _mm512_mask_set1_epi32(sum, _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q), 0x7fc00000);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
#endif
}
inline __m256i rounded(Vector<float> x, f16) {
  return _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT);
}
#endif

// kLanes<double> elements as doubles.
inline Vector<double> load_doubles(const double* p) {
  return load(p);
}
inline Vector<double> load_doubles(const float* p) {
  typedef float Half __attribute__((vector_size(kVectorBytes / 2), aligned(alignof(float)), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Half*>(p), Vector<double>);
}

// Rounds to T and writes the first n elements.
template <class T>
inline void store_floats(Vector<float> x, T* p, int64_t n = kLanes<float>) {
#if defined(__AVX512F__)
  const __mmask16 mask = static_cast<__mmask16>((1u << n) - 1);
  if constexpr (std::is_same_v<T, float>) {
    _mm512_mask_storeu_ps(p, mask, (__m512)x);
  } else {
    _mm256_mask_storeu_epi16(p, mask, rounded(x, T{}));
  }
#else
  if constexpr (std::is_same_v<T, float>) {
    std::memcpy(p, &x, n * sizeof(float));
  } else {
    for (int64_t l = 0; l < n; ++l) from_float(x[l], p[l]);
  }
#endif
}

// x with zeros in lanes n and up.
inline Vector<float> first_lanes(Vector<float> x, int64_t n) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_maskz_mov_ps(static_cast<__mmask16>((1u << n) - 1), (__m512)x);
#else
  for (int64_t l = n; l < kLanes<float>; ++l) x[l] = 0.0f;
  return x;
#endif
}

// x with `value` in lanes n and up.
inline Vector<float> last_lanes_filled(Vector<float> x, int64_t n, float value) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_mask_mov_ps(_mm512_set1_ps(value), static_cast<__mmask16>((1u << n) - 1), (__m512)x);
#else
  for (int64_t l = n; l < kLanes<float>; ++l) x[l] = value;
  return x;
#endif
}

// The maximum of a and b, lane by lane; b where one is NaN.
inline Vector<float> maximum(Vector<float> a, Vector<float> b) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}

template <class V>
inline V shuffle(V a, V b, const Vector<int32_t>& lanes) {
#if defined(__clang__)
  constexpr int W = kLanes<int32_t>;
  V x;
  for (int l = 0; l < W; ++l) x[l] = lanes[l] < W ? a[lanes[l]] : b[lanes[l] - W];
  return x;
#else
  return __builtin_shuffle(a, b, lanes);
#endif
}

// Combines all lanes as a tree, which rounds less than one after the other.
template <int HALF = kLanes<float> / 2, class Combine>
inline BERTXFER_INLINE float fold(Vector<float> x, const Combine& combine) {
  Vector<int32_t> partner;
  for (int l = 0; l < kLanes<float>; ++l) partner[l] = l ^ HALF;
  x = combine(x, shuffle(x, x, partner));
  if constexpr (HALF == 1) {
    return x[0];
  } else {
    return fold<HALF / 2>(x, combine);
  }
}

inline float max_of(Vector<float> x) {
  return fold(x, [](Vector<float> a, Vector<float> b) BERTXFER_INLINE { return maximum(a, b); });
}

inline float sum_of(Vector<float> x) {
  return fold(x, [](Vector<float> a, Vector<float> b) BERTXFER_INLINE { return a + b; });
}

// Calls step(j, n) for each vector of a row; n is kLanes<float>, a constant to the compiler, for all but an incomplete
// last one. A step is BERTXFER_INLINE because a call would keep its sums in memory.
template <class Step>
inline BERTXFER_INLINE void for_vectors(int64_t length, const Step& step) {
  constexpr int64_t W = kLanes<float>;
  int64_t j = 0;
  for (; j + W <= length; j += W) step(j, W);
  if (j < length) step(j, length - j);
}

// 2**x with a relative error of 6.2e-8; NaN stays NaN. Below -90 the result is 0: it is nothing beside the 1 that the
// maximum of a row becomes, and a subnormal number would slow the products it enters.
//
// 2**x = 2**floor(x) 2**r with r in [0, 1), and 2**r is a minimax polynomial, exact at 0. Degree 6 has a relative error
// of 2e-9 by itself; degree 4 has 3e-6, hundreds of times less than rounding to bfloat16.
template <int DEGREE>
struct Exp2;
template <>
struct Exp2<6> {
  static constexpr float c[] = {1.0f,
                                0.6931470036506653f,
                                0.24022983014583588f,
                                0.055483341217041016f,
                                0.009678840637207031f,
                                0.001243968727067113f,
                                0.00021702254889532924f};
};
template <>
struct Exp2<4> {
  static constexpr float c[] = {1.0f, 0.6930448412895203f, 0.24128028750419617f, 0.05224229767918587f,
                                0.013426794670522213f};
};
constexpr float kLog2E = 1.44269504f;
constexpr float kExp2Underflow = -90.0f;

// Branch-free, so that loops over it vectorise; clamped above 127.
template <int DEGREE = 6>
inline float fast_exp2(float x) {
  const bool underflows = x < kExp2Underflow;
  x = x > 127.0f ? 127.0f : x;
  x = underflows ? kExp2Underflow : x;
  const float magic = 12582912.0f;  // 1.5 * 2**23: adding it rounds to an integer in the low bits
  const float shifted = (x - 0.5f) + magic;
  const float r = x - (shifted - magic);
  float p = Exp2<DEGREE>::c[DEGREE];
  for (int i = DEGREE - 1; i >= 0; --i) p = p * r + Exp2<DEGREE>::c[i];
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  const int32_t power = static_cast<int32_t>((static_cast<uint32_t>(bits) - 0x4b400000u + 127u) << 23);
  float two_n;
  std::memcpy(&two_n, &power, 4);
  return underflows ? 0.0f : p * two_n;
}

template <int DEGREE = 6>
inline Vector<float> fast_exp2(Vector<float> x) {
#if defined(__AVX512F__)
  const __m512 v = (__m512)x;
  const __mmask16 remains = _mm512_cmp_ps_mask(v, _mm512_set1_ps(kExp2Underflow), _CMP_NLT_UQ);
  const __m512 r = _mm512_reduce_ps(v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 p = _mm512_set1_ps(Exp2<DEGREE>::c[DEGREE]);
#pragma GCC unroll 6
  for (int i = DEGREE - 1; i >= 0; --i) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(Exp2<DEGREE>::c[i]));
  return (Vector<float>)_mm512_maskz_scalef_ps(remains, p, v);
#else
  for (int l = 0; l < kLanes<float>; ++l) x[l] = fast_exp2<DEGREE>(x[l]);
  return x;
#endif
}

// e**x with a relative error of 1.2e-7 (1 + |x|), no more than the rounding of x itself causes.
inline float fast_exp(float x) {
  return fast_exp2(x * kLog2E);
}
inline Vector<float> fast_exp(Vector<float> x) {
  return fast_exp2(x * kLog2E);
}

// log x of positive finite x with a relative error of 2e-12: x = 2**e m with m in [sqrt(1/2), sqrt(2)), and log m is
// the series of 2 artanh(z), z = (m - 1) / (m + 1).
inline Vector<double> log_of(Vector<double> x) {
  constexpr int64_t kSqrtHalf = 0x3fe6a09e667f3bcd;  // sqrt(1/2)
  const Vector<int64_t> bits = (Vector<int64_t>)x, exponent = (bits - kSqrtHalf) >> 52;
  const Vector<double> m = (Vector<double>)(bits - (exponent << 52));
  const Vector<double> z = (m - 1.0) / (m + 1.0), square = z * z;
  Vector<double> series = Vector<double>{} + 1.0 / 13;
  for (const double c : {1.0 / 11, 1.0 / 9, 1.0 / 7, 1.0 / 5, 1.0 / 3, 1.0}) series = series * square + c;
  return __builtin_convertvector(exponent, Vector<double>) * 0.6931471805599453 + 2.0 * z * series;
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

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
