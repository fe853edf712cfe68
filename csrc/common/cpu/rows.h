// Rows of one head between the tensors and a kernel's scratch: as they are, or transposed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../types.h"
#include "hidden_rows.h"
#include "vec.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

// Rows first..first+count-1 of one head as floats: out[i][0..dim), row length `ld`, columns dim..columns set to zero.
inline void load_rows(const PackedView& view, int64_t head, int64_t first, int64_t count, float* out, int64_t ld,
                      int64_t columns) {
  constexpr int64_t W = kLanes<float>;
  with_dtype(view.dtype, [&](auto tag) {
    using T = decltype(tag);
    const T* source = static_cast<const T*>(view.data) + head * view.head_stride + first * view.token_stride;
    const int64_t dim = view.dim, whole = dim / W * W;
    for (int64_t i = 0; i < count; ++i, source += view.token_stride, out += ld) {
      for (int64_t d = 0; d < whole; d += W) store(load_floats(source + d), out + d);
      int64_t d = whole;
      if (d < dim) {
        store_floats(load_floats(source + d, dim - d), out + d, std::min(W, columns - d));
        d += W;
      }
      for (; d < columns; d += W) store_floats(Vector<float>{}, out + d, std::min(W, columns - d));
    }
  });
}

// Exchanges, for every pair of rows `H` apart, the odd H-wide blocks of the upper with the even ones of the lower.
template <int H, class V>
inline __attribute__((always_inline)) void exchange_blocks(V* x) {
  constexpr int W = kLanes<int32_t>;
  Vector<int32_t> upper, lower;
  for (int l = 0; l < W; ++l) upper[l] = l & H ? l - H + W : l;
  for (int l = 0; l < W; ++l) lower[l] = l & H ? l + W : l + H;
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) {
    if (i & H) continue;
    const V a = x[i], b = x[i + H];
    x[i] = shuffle(a, b, upper);
    x[i + H] = shuffle(a, b, lower);
  }
}

// Transposes a square of 32-bit numbers, one vector a row.
template <class V>
inline __attribute__((always_inline)) void transpose(V* x) {
  constexpr int W = kLanes<int32_t>;
  exchange_blocks<1>(x);
  exchange_blocks<2>(x);
  if constexpr (W > 4) exchange_blocks<4>(x);
  if constexpr (W > 8) exchange_blocks<8>(x);
}

// load_rows transposed and scaled: out[d][i], zeros in columns count..columns. `columns` is a whole number of vectors.
inline void load_transposed(const PackedView& view, int64_t head, int64_t first, int64_t count, float scale, float* out,
                            int64_t ld, int64_t columns) {
  constexpr int64_t W = kLanes<float>;
  with_dtype(view.dtype, [&](auto tag) {
    using T = decltype(tag);
    const T* source = static_cast<const T*>(view.data) + head * view.head_stride + first * view.token_stride;
    for (int64_t i0 = 0; i0 < columns; i0 += W) {
      const int64_t rows = std::min(W, count - i0);
      for (int64_t d0 = 0; d0 < view.dim; d0 += W) {
        const int64_t depth = std::min(W, view.dim - d0);
        Vector<float> x[W];
        if (rows == W && depth == W) {
          for (int64_t i = 0; i < W; ++i) x[i] = scale * load_floats(source + (i0 + i) * view.token_stride + d0);
        } else {
          for (int64_t i = 0; i < W; ++i) {
            x[i] = Vector<float>{};
            if (i < rows) x[i] = scale * load_floats(source + (i0 + i) * view.token_stride + d0, depth);
          }
        }
        transpose(x);
        for (int64_t d = 0; d < depth; ++d) store(x[d], out + (d0 + d) * ld + i0);
      }
    }
  });
}

// Writes rows to a contiguous [T, H, dim] tensor: out[first + i][head][d] = rows[i][d].
inline void store_rows(const float* rows, int64_t ld, int64_t count, void* out, Dtype dtype, int64_t heads,
                       int64_t head, int64_t first, int64_t dim) {
  constexpr int64_t W = kLanes<float>;
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    T* target = static_cast<T*>(out) + (first * heads + head) * dim;
    for (int64_t i = 0; i < count; ++i, rows += ld, target += heads * dim) {
      for (int64_t d = 0; d < dim; d += W) {
        const int64_t n = std::min(W, dim - d);
        store_floats(load_floats(rows + d, n), target + d, n);
      }
    }
  });
}

// The same from transposed rows, rows[d][i]; `ld` is at least `count` rounded up to whole vectors.
inline void store_transposed(const float* rows, int64_t ld, int64_t count, void* out, Dtype dtype, int64_t heads,
                             int64_t head, int64_t first, int64_t dim) {
  constexpr int64_t W = kLanes<float>;
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    T* target = static_cast<T*>(out) + (first * heads + head) * dim;
    for (int64_t i0 = 0; i0 < count; i0 += W) {
      const int64_t tokens = std::min(W, count - i0);
      for (int64_t d0 = 0; d0 < dim; d0 += W) {
        const int64_t depth = std::min(W, dim - d0);
        Vector<float> x[W];
        for (int64_t d = 0; d < W; ++d) x[d] = d < depth ? load(rows + (d0 + d) * ld + i0) : Vector<float>{};
        transpose(x);
        for (int64_t i = 0; i < tokens; ++i) store_floats(x[i], target + (i0 + i) * heads * dim + d0, depth);
      }
    }
  });
}

// out[i][d] += rows[d][i], for `count` tokens; both sides have room for whole vectors.
inline void add_transposed(const float* rows, int64_t ld, int64_t count, float* out, int64_t ld_out, int64_t columns) {
  constexpr int64_t W = kLanes<float>;
  for (int64_t i0 = 0; i0 < count; i0 += W) {
    for (int64_t d0 = 0; d0 < columns; d0 += W) {
      Vector<float> x[W];
      for (int64_t d = 0; d < W; ++d) x[d] = load(rows + (d0 + d) * ld + i0);
      transpose(x);
      for (int64_t i = 0; i < std::min(W, count - i0); ++i) {
        float* target = out + (i0 + i) * ld_out + d0;
        store(load(target) + x[i], target);
      }
    }
  }
}

inline void store_zero_rows(int64_t count, void* out, Dtype dtype, int64_t heads, int64_t head, int64_t first,
                            int64_t dim) {
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    T* target = static_cast<T*>(out) + (first * heads + head) * dim;
    for (int64_t i = 0; i < count; ++i, target += heads * dim) std::memset(target, 0, dim * sizeof(T));
  });
}

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
