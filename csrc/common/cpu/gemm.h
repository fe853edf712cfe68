// Matrix product of small operands: a micro-kernel that keeps its part of C in registers.
//
//   C [m, n] (+)= A [m, depth] B [depth, n]
//
// Nothing here is blocked for large operands, so products as wide as a model go to the library (products.h); at the
// head dims of attention losses this is faster (docs/kernels.md).
#pragma once

#include <cstdint>

#include "prefetch.h"
#include "vec.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

// The left factor: A(i, k) = data[i * row_stride + k * column_stride], so a matrix may be read transposed.
template <class T>
struct LeftMatrix {
  const T* data;  // [m, depth]
  int64_t row_stride, column_stride;

  LeftMatrix rows_from(int64_t i) const { return {data + i * row_stride, row_stride, column_stride}; }
};

// A matrix of contiguous rows, `ld` elements apart.
template <class T>
struct RowMatrix {
  T* data;  // [rows, ld]
  int64_t ld;

  RowMatrix at(int64_t i, int64_t j) const { return {data + i * ld + j, ld}; }
};

// C (+)= A B for MR rows and NV vectors of columns, the whole of C in registers.
template <class T, int MR, int NV>
inline BERTXFER_INLINE void micro_kernel(int64_t depth, LeftMatrix<T> a, RowMatrix<const T> b, RowMatrix<T> c,
                                         bool accumulate) {
  using V = Vector<T>;
  constexpr int W = kLanes<T>;
  V sum[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) sum[i][j] = accumulate ? load<T>(c.data + i * c.ld + j * W) : V{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    V row[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) row[j] = load<T>(b.data + j * W);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const T scalar = a.data[i * a.row_stride];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) sum[i][j] += scalar * row[j];
    }
    a.data += a.column_stride;
    b.data += b.ld;
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) store<T>(sum[i][j], c.data + i * c.ld + j * W);
  }
}

// Rows per call for NV vectors of columns: as many as leave registers for a row of B and one broadcast.
template <int NV>
constexpr int kMicroRows = kVectorRegisters == 32 ? (NV == 1   ? 14
                                                     : NV == 2 ? 14
                                                     : NV == 3 ? 8
                                                               : 6)
                                                  : (NV == 1   ? 8
                                                     : NV == 2 ? 6
                                                               : 4);
constexpr int kMaxVectors = kVectorRegisters == 32 ? 4 : 3;

// The micro-kernel of `rows` rows, 1 <= rows <= MR. Inlined because a call would pass the matrices through memory.
template <class T, int NV, int MR>
inline BERTXFER_INLINE void micro_rows(int64_t rows, int64_t depth, LeftMatrix<T> a, RowMatrix<const T> b,
                                       RowMatrix<T> c, bool accumulate) {
  if constexpr (MR > 0) {
    if (rows == MR) return micro_kernel<T, MR, NV>(depth, a, b, c, accumulate);
    micro_rows<T, NV, MR - 1>(rows, depth, a, b, c, accumulate);
  }
}

template <class T, int NV>
void gemm_columns(int64_t m, int64_t depth, LeftMatrix<T> a, RowMatrix<const T> b, RowMatrix<T> c, bool accumulate,
                  Prefetcher* prefetcher) {
  constexpr int MR = kMicroRows<NV>;
  for (int64_t calls = (m + MR - 1) / MR; calls > 0; --calls) {
    const int64_t rows = (m + calls - 1) / calls;  // even shares: 26 rows are 13 + 13, not 14 + 12
    if (prefetcher != nullptr) prefetcher->step();
    micro_rows<T, NV, MR>(rows, depth, a, b, c, accumulate);
    a = a.rows_from(rows);
    c = c.at(rows, 0);
    m -= rows;
  }
}

// C [m, n] (+)= A [m, depth] B [depth, n]; n is a whole number of vectors. `prefetcher` is stepped on the way, or null.
template <class T>
void gemm(int64_t m, int64_t n, int64_t depth, LeftMatrix<T> a, RowMatrix<const T> b, RowMatrix<T> c, bool accumulate,
          Prefetcher* prefetcher = nullptr) {
  int64_t vectors = n / kLanes<T>;
  for (int64_t chunks = (vectors + kMaxVectors - 1) / kMaxVectors; chunks > 0; --chunks) {
    const int64_t now = (vectors + chunks - 1) / chunks;  // even shares: 6 vectors are 3 + 3, not 4 + 2
    switch (now) {
      case 1: gemm_columns<T, 1>(m, depth, a, b, c, accumulate, prefetcher); break;
      case 2: gemm_columns<T, 2>(m, depth, a, b, c, accumulate, prefetcher); break;
      case 3: gemm_columns<T, 3>(m, depth, a, b, c, accumulate, prefetcher); break;
      default:
        if constexpr (kMaxVectors >= 4) gemm_columns<T, 4>(m, depth, a, b, c, accumulate, prefetcher);
    }
    b = b.at(0, now * kLanes<T>);
    c = c.at(0, now * kLanes<T>);
    vectors -= now;
  }
}

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
