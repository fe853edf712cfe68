// Rows of one head, copied between the tensors and a kernel's scratch as they are or transposed.
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

// Reads rows first..first+count-1 of one head as floats into out [count, ld]; columns dim..columns become zeros.
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

// Exchanges, for every two rows `H` apart, the odd H-wide blocks of the upper with the even ones of the lower: one of
// the log2(W) steps of a transposition.
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

// load_rows, scaled, into the transposed out [dim, ld]; columns count..columns, whole vectors, become zeros.
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

// First element of a token and head of `out`, which is of T's.
template <class T>
inline T* element_of(const PackedOutput& out, int64_t token, int64_t head) {
  return static_cast<T*>(out.data) + (token * out.heads + head) * out.dim;
}

// Writes rows [count, ld] to one head: out[first + i][head][d] = rows[i][d].
inline void store_rows(const float* rows, int64_t ld, int64_t count, const PackedOutput& out, int64_t head,
                       int64_t first) {
  constexpr int64_t W = kLanes<float>;
  with_dtype(out.dtype, [&](auto tag) {
    using T = decltype(tag);
    const int64_t dim = out.dim;
    T* target = element_of<T>(out, first, head);
    for (int64_t i = 0; i < count; ++i, rows += ld, target += out.token_stride()) {
      for (int64_t d = 0; d < dim; d += W) {
        const int64_t n = std::min(W, dim - d);
        store_floats(load_floats(rows + d, n), target + d, n);
      }
    }
  });
}

// store_rows of transposed rows [dim, ld]; `ld` is at least `count` rounded up to whole vectors.
inline void store_transposed(const float* rows, int64_t ld, int64_t count, const PackedOutput& out, int64_t head,
                             int64_t first) {
  constexpr int64_t W = kLanes<float>;
  with_dtype(out.dtype, [&](auto tag) {
    using T = decltype(tag);
    const int64_t dim = out.dim, stride = out.token_stride();
    T* target = element_of<T>(out, first, head);
    for (int64_t i0 = 0; i0 < count; i0 += W) {
      const int64_t tokens = std::min(W, count - i0);
      for (int64_t d0 = 0; d0 < dim; d0 += W) {
        const int64_t depth = std::min(W, dim - d0);
        Vector<float> x[W];
        for (int64_t d = 0; d < W; ++d) x[d] = d < depth ? load(rows + (d0 + d) * ld + i0) : Vector<float>{};
        transpose(x);
        for (int64_t i = 0; i < tokens; ++i) store_floats(x[i], target + (i0 + i) * stride + d0, depth);
      }
    }
  });
}

// out[i][d] += rows[d][i] for `count` tokens; both sides are allocated in whole vectors.
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

// Writes zeros to rows first..first+count-1 of one head.
inline void store_zero_rows(int64_t count, const PackedOutput& out, int64_t head, int64_t first) {
  with_dtype(out.dtype, [&](auto tag) {
    using T = decltype(tag);
    T* target = element_of<T>(out, first, head);
    for (int64_t i = 0; i < count; ++i, target += out.token_stride()) std::memset(target, 0, out.dim * sizeof(T));
  });
}

// The bias of a projection as floats [width], zeros where there is none.
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
