// Matrix product of small bfloat16 operands into float32, on the processor's own bfloat16 units: AMX tiles, or
// AVX-512's dot product of pairs. Both read the same layouts, so a kernel is written once:
//
//   A  rows       [m, depth]        as they are
//   B  pairs      [depth / 2, n]    of 32 bits: B[2k][j] in the low half, B[2k + 1][j] in the high one
//   C  float32    [m, n]
//
// m and n are multiples of kTile, depth of 2 kTile; what fills them up is zeros. Products of bfloat16 are exact in
// float32, and so this product is as exact as gemm.h's of the same numbers, but for subnormal ones, which count as 0.
//
// Bytes: C once, its rows of A and columns of B once per block of 32 x 32 of C. Operations: m n depth multiply-adds.
// Speeds: docs/kernels.md.
#pragma once

#include "ahead.h"
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

#if defined(__AMX_BF16__)

// While one lives, its thread's tiles are configured: eight of 16 rows of 64 bytes.
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

// Keeps the tile units switched on: idle for about half a microsecond they switch themselves off, and the next product
// waits for them (docs/kernels.md). Whatever takes longer between two products calls this every few hundred
// nanoseconds. Nobody reads the result.
inline void keep_bf16_units_awake() {
  _tile_dpbf16ps(0, 4, 6);
}

// A 16 x 16, 16 x 32, 32 x 16 or 32 x 32 block of C. Tiles 0..3 are C, 4 and 5 A, 6 and 7 B.
template <int ROWS, int COLUMNS, int FACTORS>
inline void bf16_block(int64_t depth, const bf16* a, int64_t lda, const uint32_t* b, int64_t ldb, float* c, int64_t ldc,
                       bool accumulate) {
  const int64_t a_bytes = lda * 2, b_bytes = ldb * 4, c_bytes = ldc * 4;
  if (accumulate) {
    _tile_loadd(0, c, c_bytes);
    if (COLUMNS > 1) _tile_loadd(1, c + kTile, c_bytes);
    if (ROWS > 1) _tile_loadd(2, c + kTile * ldc, c_bytes);
    if (ROWS > 1 && COLUMNS > 1) _tile_loadd(3, c + kTile * ldc + kTile, c_bytes);
  } else {
    _tile_zero(0);
    if (COLUMNS > 1) _tile_zero(1);
    if (ROWS > 1) _tile_zero(2);
    if (ROWS > 1 && COLUMNS > 1) _tile_zero(3);
  }
  const int64_t next_factor = depth / 2 * ldb;
  for (int64_t k = 0; k < depth; k += kDepthTile, a += kDepthTile, b += kTile * ldb) {
    _tile_loadd(4, a, a_bytes);
    if (ROWS > 1) _tile_loadd(5, a + kTile * lda, a_bytes);
#pragma GCC unroll 2
    for (int factor = 0; factor < FACTORS; ++factor) {
      const uint32_t* part = b + factor * next_factor;
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
  _tile_stored(0, c, c_bytes);
  if (COLUMNS > 1) _tile_stored(1, c + kTile, c_bytes);
  if (ROWS > 1) _tile_stored(2, c + kTile * ldc, c_bytes);
  if (ROWS > 1 && COLUMNS > 1) _tile_stored(3, c + kTile * ldc + kTile, c_bytes);
}

#else

class Bf16Units {
 public:
  Bf16Units() {}  // nothing to configure
};

inline void keep_bf16_units_awake() {}

template <int MR, int NV>
inline __attribute__((always_inline)) void bf16_rows(int64_t depth, const bf16* a, int64_t lda, const uint32_t* b,
                                                     int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  __m512 sum[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) {
      sum[i][j] = accumulate ? _mm512_loadu_ps(c + i * ldc + j * kTile) : _mm512_setzero_ps();
    }
  }
  for (int64_t k = 0; k < depth; k += 2, b += ldb) {
    __m512bh row[NV];
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) row[j] = (__m512bh)_mm512_loadu_si512(b + j * kTile);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      int32_t pair;
      std::memcpy(&pair, a + i * lda + k, 4);
      const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], both, row[j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) _mm512_storeu_ps(c + i * ldc + j * kTile, sum[i][j]);
  }
}

template <int ROWS, int COLUMNS, int FACTORS>
inline void bf16_block(int64_t depth, const bf16* a, int64_t lda, const uint32_t* b, int64_t ldb, float* c, int64_t ldc,
                       bool accumulate) {
  constexpr int64_t kRows = 8;  // 16 sums: enough to hide a latency, and to leave registers
  for (int64_t i = 0; i < ROWS * kTile; i += kRows) {
    for (int factor = 0; factor < FACTORS; ++factor) {
      bf16_rows<kRows, COLUMNS>(depth, a + i * lda, lda, b + factor * (depth / 2 * ldb), ldb, c + i * ldc, ldc,
                                accumulate || factor > 0);
    }
  }
}

#endif

// C (+)= A B. On AMX the calling thread holds a Bf16Units. `ahead`, if given, is stepped on the way. FACTORS: B is the
// sum of so many matrices, one after the other.
template <int FACTORS = 1>
inline void bf16_gemm(int64_t m, int64_t n, int64_t depth, const bf16* a, int64_t lda, const uint32_t* b, int64_t ldb,
                      float* c, int64_t ldc, bool accumulate, Ahead* ahead = nullptr) {
  asm volatile("" ::: "memory");  // GCC's tile intrinsics do not say that they read and write memory
  for (int64_t j = 0; j < n; j += 2 * kTile) {
    const bool wide = j + kTile < n;
    for (int64_t i = 0; i < m; i += 2 * kTile) {
      const bool tall = i + kTile < m;
      const bf16* rows = a + i * lda;
      float* block = c + i * ldc + j;
      if (ahead != nullptr) ahead->step();
      if (tall && wide) {
        bf16_block<2, 2, FACTORS>(depth, rows, lda, b + j, ldb, block, ldc, accumulate);
      } else if (tall) {
        bf16_block<2, 1, FACTORS>(depth, rows, lda, b + j, ldb, block, ldc, accumulate);
      } else if (wide) {
        bf16_block<1, 2, FACTORS>(depth, rows, lda, b + j, ldb, block, ldc, accumulate);
      } else {
        bf16_block<1, 1, FACTORS>(depth, rows, lda, b + j, ldb, block, ldc, accumulate);
      }
    }
  }
  asm volatile("" ::: "memory");
}

// ---------------------------------------------------------------------------------------------- layouts

constexpr int64_t kTokensAhead = 16;

// Rows of one head of a bfloat16 tensor, columns dim..columns zero, and zero rows after `count` up to `rows`. Later
// rows are prefetched.
inline void load_bf16_rows(const PackedView& view, int64_t head, int64_t first, int64_t count, int64_t rows, bf16* out,
                           int64_t ld, int64_t columns) {
  const bf16* source = static_cast<const bf16*>(view.data) + head * view.head_stride + first * view.token_stride;
  for (int64_t i = 0; i < rows; ++i, source += view.token_stride, out += ld) {
    int64_t d = 0;
    for (; d < columns; d += 32) {
      __builtin_prefetch(source + d + kTokensAhead * view.token_stride);
      const int64_t left = i < count ? view.dim - d : 0, room = columns - d;
      const __mmask32 valid = left >= 32 ? ~0u : left <= 0 ? 0u : (1u << left) - 1;
      const __mmask32 written = room >= 32 ? ~0u : (1u << room) - 1;
      _mm512_mask_storeu_epi16(out + d, written, _mm512_maskz_loadu_epi16(valid, source + d));
    }
  }
}

// A product sums over whole tiles of depth: zeros where a row whose first `count` numbers were written by vectors is
// not one.
inline void fill_depth(bf16* row, int64_t count) {
  for (int64_t j = round_up(count, kTile); j < round_up(count, kDepthTile); ++j) row[j] = bf16{};
}

// Pairs of two rows' numbers.
inline __m512i paired(__m256i low, __m256i high) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}

// Pairs of neighbouring rows: out[i][j] = rows[2i][j], rows[2i + 1][j]. `rows` is even, columns a multiple of 16.
inline void pair_rows(const bf16* in, int64_t ld, int64_t rows, int64_t columns, uint32_t* out, int64_t ld_out) {
  for (int64_t i = 0; i < rows; i += 2, in += 2 * ld, out += ld_out) {
    for (int64_t j = 0; j < columns; j += kTile) {
      const __m256i low = _mm256_loadu_si256((const __m256i*)(in + j));
      _mm512_storeu_si512(out + j, paired(low, _mm256_loadu_si256((const __m256i*)(in + ld + j))));
    }
  }
}

// Pairs of two rows' numbers, rounded to bfloat16.
inline __m512i pair_of(Vector<float> low, Vector<float> high) {
  return paired(rounded(low, bf16{}), rounded(high, bf16{}));
}

// A matrix of 32-bit numbers transposed; both sides multiples of 16.
inline void transpose_pairs(const uint32_t* in, int64_t ld, int64_t rows, int64_t columns, uint32_t* out,
                            int64_t ld_out) {
  for (int64_t i = 0; i < rows; i += kTile) {
    for (int64_t j = 0; j < columns; j += kTile) {
      Vector<uint32_t> x[kTile];
      for (int64_t k = 0; k < kTile; ++k) x[k] = load(in + (i + k) * ld + j);
      transpose(x);
      for (int64_t k = 0; k < kTile; ++k) store(x[k], out + (j + k) * ld_out + i);
    }
  }
}

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer

#endif
