// Matrix product of small bfloat16 operands into float32, on the processor's own bfloat16 units: AMX tiles, or
// AVX-512's dot product of pairs. Both read the same layouts, so a kernel is written once:
//
//   A  rows         [m, depth]        as they are
//   B  interleaved  [depth / 2, n]    of 32 bits: B[2k][j] in the low half, B[2k + 1][j] in the high one ("VNNI")
//   C  float32      [m, n]
//
// m and n are multiples of kTile, depth of 2 kTile; zeros fill them up. Products of bfloat16 are exact in float32, so
// this product is as exact as gemm.h's of the same values, except that subnormal ones count as 0.
#pragma once

#include <initializer_list>

#include "gemm.h"
#include "prefetch.h"
#include "rows.h"

#if defined(__AMX_BF16__) || defined(__AVX512BF16__)
#define BERTXFER_BF16_GEMM

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

constexpr int64_t kTile = 16;
constexpr int64_t kDepthTile = 2 * kTile;

constexpr int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

// Whether the bfloat16 units can do a kernel's work: they take no other dtype.
inline bool all_bf16(std::initializer_list<PackedView> views) {
  for (const PackedView& view : views) {
    if (view.dtype != Dtype::bf16) return false;
  }
  return true;
}

#if defined(__AMX_BF16__)

// Configures the tiles of its thread for as long as it lives: eight of 16 rows of 64 bytes.
class Bf16Units {
 public:
  Bf16Units() {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("" : : "r"(&config) : "memory");  // see bf16_gemm
    _tile_loadconfig(&config);
  }
  ~Bf16Units() {
    if (owner_) _tile_release();
  }
  Bf16Units(Bf16Units&& other) noexcept { other.owner_ = false; }
  Bf16Units(const Bf16Units&) = delete;

 private:
  bool owner_ = true;
};

// Tile units switch themselves off after about half a microsecond without work, and the next product waits for them.
// Longer work between two products calls this every few hundred nanoseconds; its result is never read
// (docs/kernels.md).
inline void keep_bf16_units_awake() {
  _tile_dpbf16ps(0, 4, 6);
}

// A 16 x 16, 16 x 32, 32 x 16 or 32 x 32 block of C. Tiles 0..3 are C, 4 and 5 A, 6 and 7 B.
template <int ROWS, int COLUMNS, int FACTORS>
inline void bf16_block(int64_t depth, RowMatrix<const bf16> a, RowMatrix<const uint32_t> b, RowMatrix<float> c,
                       bool accumulate) {
  const int64_t a_bytes = a.ld * 2, b_bytes = b.ld * 4, c_bytes = c.ld * 4;
  if (accumulate) {
    _tile_loadd(0, c.data, c_bytes);
    if (COLUMNS > 1) _tile_loadd(1, c.data + kTile, c_bytes);
    if (ROWS > 1) _tile_loadd(2, c.data + kTile * c.ld, c_bytes);
    if (ROWS > 1 && COLUMNS > 1) _tile_loadd(3, c.data + kTile * c.ld + kTile, c_bytes);
  } else {
    _tile_zero(0);
    if (COLUMNS > 1) _tile_zero(1);
    if (ROWS > 1) _tile_zero(2);
    if (ROWS > 1 && COLUMNS > 1) _tile_zero(3);
  }
  const int64_t next_factor = depth / 2 * b.ld;
  for (int64_t k = 0; k < depth; k += kDepthTile, a = a.at(0, kDepthTile), b = b.at(kTile, 0)) {
    _tile_loadd(4, a.data, a_bytes);
    if (ROWS > 1) _tile_loadd(5, a.data + kTile * a.ld, a_bytes);
#pragma GCC unroll 2
    for (int factor = 0; factor < FACTORS; ++factor) {
      const uint32_t* part = b.data + factor * next_factor;
      _tile_loadd(6, part, b_bytes);
      _tile_dpbf16ps(0, 4, 6);
      if (COLUMNS > 1) {
        _tile_loadd(7, part + kTile, b_bytes);
        _tile_dpbf16ps(1, 4, 7);
      }
      if (ROWS > 1) _tile_dpbf16ps(2, 5, 6);
      if (ROWS > 1 && COLUMNS > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c.data, c_bytes);
  if (COLUMNS > 1) _tile_stored(1, c.data + kTile, c_bytes);
  if (ROWS > 1) _tile_stored(2, c.data + kTile * c.ld, c_bytes);
  if (ROWS > 1 && COLUMNS > 1) _tile_stored(3, c.data + kTile * c.ld + kTile, c_bytes);
}

#else

class Bf16Units {
 public:
  Bf16Units() {}  // nothing to configure
};

inline void keep_bf16_units_awake() {}

template <int MR, int NV>
inline BERTXFER_INLINE void bf16_rows(int64_t depth, RowMatrix<const bf16> a, RowMatrix<const uint32_t> b,
                                      RowMatrix<float> c, bool accumulate) {
  __m512 sum[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) {
      sum[i][j] = accumulate ? _mm512_loadu_ps(c.data + i * c.ld + j * kTile) : _mm512_setzero_ps();
    }
  }
  for (int64_t k = 0; k < depth; k += 2, b = b.at(1, 0)) {
    __m512bh row[NV];
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) row[j] = (__m512bh)_mm512_loadu_si512(b.data + j * kTile);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      int32_t pair;
      std::memcpy(&pair, a.data + i * a.ld + k, 4);
      const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], both, row[j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) _mm512_storeu_ps(c.data + i * c.ld + j * kTile, sum[i][j]);
  }
}

template <int ROWS, int COLUMNS, int FACTORS>
inline void bf16_block(int64_t depth, RowMatrix<const bf16> a, RowMatrix<const uint32_t> b, RowMatrix<float> c,
                       bool accumulate) {
  constexpr int64_t kRows = 8;  // 16 sums: enough to hide a latency, and to leave registers
  for (int64_t i = 0; i < ROWS * kTile; i += kRows) {
    for (int factor = 0; factor < FACTORS; ++factor) {
      bf16_rows<kRows, COLUMNS>(depth, a.at(i, 0), b.at(factor * (depth / 2), 0), c.at(i, 0), accumulate || factor > 0);
    }
  }
}

#endif

// C [m, n] (+)= A [m, depth] B [depth / 2, n]. On AMX the calling thread holds a Bf16Units. `prefetcher` is stepped on
// the way, or null. FACTORS: B is the sum of so many matrices, stored one after the other.
template <int FACTORS = 1>
inline void bf16_gemm(int64_t m, int64_t n, int64_t depth, RowMatrix<const bf16> a, RowMatrix<const uint32_t> b,
                      RowMatrix<float> c, bool accumulate, Prefetcher* prefetcher = nullptr) {
  asm volatile("" ::: "memory");  // GCC's tile intrinsics do not say that they read and write memory
  for (int64_t j = 0; j < n; j += 2 * kTile) {
    const bool two_columns = j + kTile < n;
    for (int64_t i = 0; i < m; i += 2 * kTile) {
      const bool two_rows = i + kTile < m;
      if (prefetcher != nullptr) prefetcher->step();
      if (two_rows && two_columns) {
        bf16_block<2, 2, FACTORS>(depth, a.at(i, 0), b.at(0, j), c.at(i, j), accumulate);
      } else if (two_rows) {
        bf16_block<2, 1, FACTORS>(depth, a.at(i, 0), b.at(0, j), c.at(i, j), accumulate);
      } else if (two_columns) {
        bf16_block<1, 2, FACTORS>(depth, a.at(i, 0), b.at(0, j), c.at(i, j), accumulate);
      } else {
        bf16_block<1, 1, FACTORS>(depth, a.at(i, 0), b.at(0, j), c.at(i, j), accumulate);
      }
    }
  }
  asm volatile("" ::: "memory");
}

// ---------------------------------------------------------------------------------------------- layouts

constexpr int64_t kPrefetchTokens = 16;

// Reads rows first..first+count-1 of one head of a bfloat16 tensor into out [rows, ld]: columns dim..columns and rows
// count..rows become zeros. Prefetches the rows kPrefetchTokens further on.
inline void load_bf16_rows(const PackedView& view, int64_t head, int64_t first, int64_t count, int64_t rows,
                           RowMatrix<bf16> out, int64_t columns) {
  const bf16* source = static_cast<const bf16*>(view.data) + head * view.head_stride + first * view.token_stride;
  for (int64_t i = 0; i < rows; ++i, source += view.token_stride, out = out.at(1, 0)) {
    for (int64_t d = 0; d < columns; d += 32) {
      __builtin_prefetch(source + d + kPrefetchTokens * view.token_stride);
      const int64_t left = i < count ? view.dim - d : 0, unwritten = columns - d;
      const __mmask32 valid = left >= 32 ? ~0u : left <= 0 ? 0u : (1u << left) - 1;
      const __mmask32 written = unwritten >= 32 ? ~0u : (1u << unwritten) - 1;
      _mm512_mask_storeu_epi16(out.data + d, written, _mm512_maskz_loadu_epi16(valid, source + d));
    }
  }
}

// Writes zeros from the last whole vector of a row's first `count` elements to the end of a depth tile, because a
// product sums over whole ones.
inline void zero_depth_tail(bf16* row, int64_t count) {
  for (int64_t j = round_up(count, kTile); j < round_up(count, kDepthTile); ++j) row[j] = bf16{};
}

// Elements of two rows, alternating.
inline __m512i interleave(__m256i low, __m256i high) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}

// The same of two float32 rows, rounded to bfloat16.
inline __m512i interleave_rounded(Vector<float> low, Vector<float> high) {
  return interleave(rounded(low, bf16{}), rounded(high, bf16{}));
}

// Interleaves neighbouring rows: out[i][j] = in[2i][j], in[2i + 1][j]. `rows` is even, columns a multiple of 16.
inline void interleave_rows(RowMatrix<const bf16> in, int64_t rows, int64_t columns, RowMatrix<uint32_t> out) {
  for (int64_t i = 0; i < rows; i += 2, in = in.at(2, 0), out = out.at(1, 0)) {
    for (int64_t j = 0; j < columns; j += kTile) {
      const __m256i low = _mm256_loadu_si256((const __m256i*)(in.data + j));
      const __m256i high = _mm256_loadu_si256((const __m256i*)(in.data + in.ld + j));
      _mm512_storeu_si512(out.data + j, interleave(low, high));
    }
  }
}

// Transposes a matrix of 32-bit elements [rows, columns]; both sides are multiples of 16.
inline void transpose_pairs(RowMatrix<const uint32_t> in, int64_t rows, int64_t columns, RowMatrix<uint32_t> out) {
  for (int64_t i = 0; i < rows; i += kTile) {
    for (int64_t j = 0; j < columns; j += kTile) {
      Vector<uint32_t> x[kTile];
      for (int64_t k = 0; k < kTile; ++k) x[k] = load(in.at(i + k, j).data);
      transpose(x);
      for (int64_t k = 0; k < kTile; ++k) store(x[k], out.at(j + k, i).data);
    }
  }
}

// bfloat16 rows [rows, ld] as rows [rows, ld / 2] of pairs of neighbouring elements.
inline RowMatrix<const uint32_t> as_pairs(RowMatrix<const bf16> rows) {
  return {reinterpret_cast<const uint32_t*>(rows.data), rows.ld / 2};
}

// Rows of pairs [rows, ld] as bfloat16 rows [rows, 2 ld].
inline RowMatrix<const bf16> as_elements(RowMatrix<const uint32_t> rows) {
  return {reinterpret_cast<const bf16*>(rows.data), 2 * rows.ld};
}

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer

#endif
