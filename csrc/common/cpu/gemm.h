// Matrix product of small operands: a micro-kernel that keeps its part of C in registers.
//
// It is made for the shapes of attention losses, depth or width 26 to 96. Nothing here is blocked for large operands:
// those go to the library (products.h). Speeds: docs/kernels.md.
#pragma once

#include <cstdint>

#include "ahead.h"
#include "vec.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

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
                                                     : NV == 2 ? 14
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
                  int64_t ldc, bool accumulate, Ahead* ahead) {
  constexpr int MR = kMicroRows<NV>;
  for (int64_t calls = (m + MR - 1) / MR; calls > 0; --calls) {
    const int64_t rows = (m + calls - 1) / calls;  // even shares: 26 rows are 13 + 13, not 14 + 12
    if (ahead != nullptr) ahead->step();
    micro_rows<T, NV, MR>(rows, depth, a, a_row, a_col, b, ldb, c, ldc, accumulate);
    a += rows * a_row;
    c += rows * ldc;
    m -= rows;
  }
}

// C[m, n] (+)= A[m, depth] B[depth, n]; n is a whole number of vectors, B and C have rows that long. `ahead`, if given,
// is stepped on the way.
template <class T>
void gemm(int64_t m, int64_t n, int64_t depth, const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t ldb, T* c,
          int64_t ldc, bool accumulate, Ahead* ahead = nullptr) {
  int64_t vectors = n / kLanes<T>;
  for (int64_t chunks = (vectors + kMaxVectors - 1) / kMaxVectors; chunks > 0; --chunks) {
    const int64_t now = (vectors + chunks - 1) / chunks;  // even shares: 6 vectors are 3 + 3, not 4 + 2
    switch (now) {
      case 1: gemm_columns<T, 1>(m, depth, a, a_row, a_col, b, ldb, c, ldc, accumulate, ahead); break;
      case 2: gemm_columns<T, 2>(m, depth, a, a_row, a_col, b, ldb, c, ldc, accumulate, ahead); break;
      case 3: gemm_columns<T, 3>(m, depth, a, a_row, a_col, b, ldb, c, ldc, accumulate, ahead); break;
      default:
        if constexpr (kMaxVectors >= 4)
          gemm_columns<T, 4>(m, depth, a, a_row, a_col, b, ldb, c, ldc, accumulate, ahead);
    }
    b += now * kLanes<T>;
    c += now * kLanes<T>;
    vectors -= now;
  }
}

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
