// CPU kernels of pool_features, see pool_features.h. One work item is one sequence.
#include <algorithm>
#include <cmath>
#include <limits>

#include "../common/cpu/parallel.h"
#include "../common/cpu/rows.h"
#include "pool_features.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

using Mode = PoolFeatures::Mode;
constexpr float kEpsilon = 1e-12f;

float token_scale(Mode mode, int64_t used) {
  const float n = static_cast<float>(used);
  return mode == Mode::mean ? 1.0f / n : mode == Mode::mean_sqrt ? 1.0f / std::sqrt(n) : 1.0f;
}

// Rows that the sequence's result depends on.
int64_t rows_read(Mode mode, int64_t used) {
  return mode == Mode::cls ? std::min<int64_t>(used, 1) : used;
}

// Rows of a pass: with several, what is summed or compared is loaded and stored less often.
constexpr int64_t kRows = 4;

// Prefetches the rows of the next pass. Rows of half precision are too short for the processor's own prefetcher.
template <class T>
inline BERTXFER_INLINE void look_ahead(const T* column, int64_t stride, int64_t d) {
  if (sizeof(T) == 4 || d % (64 / static_cast<int64_t>(sizeof(T))) != 0) return;
  for (int64_t r = 0; r < kRows; ++r) __builtin_prefetch(column + (kRows + r) * stride);
}

// sum[d] += sum over rows of hidden[row][d] * weight
template <class T>
void add_rows(const PackedView& hidden, int64_t first, int64_t rows, float weight, float* sum) {
  const T* source = static_cast<const T*>(hidden.data) + first * hidden.token_stride;
  const int64_t stride = hidden.token_stride, width = hidden.dim;
  int64_t t = 0;
  for (; t + kRows <= rows; t += kRows, source += kRows * stride) {
    for_vectors(width, [&](int64_t d, int64_t n) BERTXFER_INLINE {
      const T* column = source + d;
      look_ahead(column, stride, d);
      const Vector<float> pair = load_floats(column, n) + load_floats(column + stride, n);
      const Vector<float> next = load_floats(column + 2 * stride, n) + load_floats(column + 3 * stride, n);
      store_floats(load_floats(sum + d, n) + weight * (pair + next), sum + d, n);
    });
  }
  for (; t < rows; ++t, source += stride) {
    for_vectors(width, [&](int64_t d, int64_t n) BERTXFER_INLINE {
      store_floats(load_floats(sum + d, n) + weight * load_floats(source + d, n), sum + d, n);
    });
  }
}

void add_rows(const PackedView& hidden, int64_t first, int64_t rows, float weight, float* sum) {
  with_dtype(hidden.dtype, [&](auto tag) { add_rows<decltype(tag)>(hidden, first, rows, weight, sum); });
}

// The highest of COUNT rows from row `t` on, and of best[d], for every d. A NaN wins and stays: it must reach the
// result.
template <class T, int COUNT>
void max_of_rows(const PoolFeatures& p, int64_t t, float* best, int32_t* argmax) {
  for_vectors(p.width, [&](int64_t d, int64_t n) BERTXFER_INLINE {
    Vector<float> x[COUNT] = {};
    for (int64_t l = 0; l < p.layers; ++l) {
      const int64_t stride = p.hidden[l].token_stride;
      const T* column = static_cast<const T*>(p.hidden[l].data) + t * stride + d;
      if (COUNT == kRows) look_ahead(column, stride, d);
#pragma GCC unroll 4
      for (int r = 0; r < COUNT; ++r) x[r] += p.layer_weights[l] * load_floats(column + r * stride, n);
    }
    Vector<float> highest = load(best + d);
    Vector<int32_t> row = load(argmax + d);
#pragma GCC unroll 4
    for (int r = 0; r < COUNT; ++r) {
      const auto better = (x[r] > highest) | ((x[r] != x[r]) & (highest == highest));
      highest = better ? x[r] : highest;
      row = better ? Vector<int32_t>{} + static_cast<int32_t>(t + r) : row;
    }
    store(highest, best + d);
    store(row, argmax + d);
  });
}

void max_rows(const PoolFeatures& p, int64_t first, int64_t rows, float* best, int32_t* argmax) {
  std::fill(best, best + p.width, -std::numeric_limits<float>::infinity());
  std::fill(argmax, argmax + p.width, static_cast<int32_t>(first));
  with_dtype(p.hidden[0].dtype, [&](auto tag) {
    using T = decltype(tag);
    int64_t t = first;
    for (; t + kRows <= first + rows; t += kRows) max_of_rows<T, kRows>(p, t, best, argmax);
    for (; t < first + rows; ++t) max_of_rows<T, 1>(p, t, best, argmax);
  });
}

// `sum` and `argmax` are scratch of whole vectors.
void pool_sequence(const PoolFeatures& p, int64_t n, float* sum, int32_t* argmax) {
  const int64_t first = p.packing.start(n), used = p.packing.used(n), rows = rows_read(p.mode, used);
  std::fill(sum, sum + p.width, 0.0f);
  if (p.mode == Mode::max) {
    std::fill(argmax, argmax + p.width, 0);
    if (rows > 0) max_rows(p, first, rows, sum, argmax);
    std::copy(argmax, argmax + p.width, p.argmax + n * p.width);
  } else if (rows > 0) {
    const float scale = token_scale(p.mode, used);
    for (int64_t l = 0; l < p.layers; ++l) add_rows(p.hidden[l], first, rows, p.layer_weights[l] * scale, sum);
  }
  if (p.normalize) {
    double square = 0.0;
    for (int64_t d = 0; d < p.width; ++d) square += static_cast<double>(sum[d]) * sum[d];
    const float root = static_cast<float>(std::sqrt(square));
    const float norm = root < kEpsilon ? kEpsilon : root;
    p.norm[n] = norm;
    for (int64_t d = 0; d < p.width; ++d) sum[d] /= norm;
  }
  store_rows(sum, p.width, 1, p.pooled, p.dtype, 1, 0, n, p.width);
}

// grad <- d loss / d (pooled before normalisation), of sequence n
void load_gradient(const PoolFeaturesBackward& p, int64_t n, float* grad, float* unit) {
  const int64_t width = p.forward.width;
  load_rows({p.grad, p.forward.dtype, width, 0, width}, 0, n, 1, grad, width, width);
  if (!p.forward.normalize) return;
  load_rows({p.forward.pooled, p.forward.dtype, width, 0, width}, 0, n, 1, unit, width, width);
  double dot = 0.0;
  for (int64_t d = 0; d < width; ++d) dot += static_cast<double>(grad[d]) * unit[d];
  const float projection = static_cast<float>(dot), norm = p.forward.norm[n];
  for (int64_t d = 0; d < width; ++d) grad[d] = (grad[d] - unit[d] * projection) / norm;
}

double dot(const float* a, const float* b, int64_t size) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

// grad_hidden of the sequence's rows, layer l, from the gradient of its pooled row.
void spread(const PoolFeaturesBackward& p, int64_t n, int64_t l, const float* grad, float* row) {
  const PoolFeatures& f = p.forward;
  const int64_t first = f.packing.start(n), length = f.packing.length(n), used = f.packing.used(n);
  const int64_t rows = rows_read(f.mode, used);
  with_dtype(f.dtype, [&](auto tag) {
    using T = decltype(tag);
    T* target = static_cast<T*>(p.grad_hidden[l]) + first * f.width;
    const float weight = f.layer_weights[l];
    if (f.mode == Mode::max) {
      if (length > 0) std::memset(target, 0, length * f.width * sizeof(T));
      const int32_t* argmax = f.argmax + n * f.width;
      for (int64_t d = 0; used > 0 && d < f.width; ++d) {
        from_float(weight * grad[d], target[(argmax[d] - first) * f.width + d]);
      }
      return;
    }
    const float scale = rows > 0 ? weight * token_scale(f.mode, used) : 0.0f;
    for (int64_t d = 0; d < f.width; ++d) row[d] = scale * grad[d];
    for (int64_t t = 0; t < rows; ++t) {
#pragma omp simd
      for (int64_t d = 0; d < f.width; ++d) from_float(row[d], target[t * f.width + d]);
    }
    if (length > rows) std::memset(target + rows * f.width, 0, (length - rows) * f.width * sizeof(T));
  });
}

// <grad, pooled layer l>, the sequence's share of the gradient of layer_weights[l].
double weight_gradient(const PoolFeatures& f, int64_t n, int64_t l, const float* grad, float* pooled) {
  const int64_t first = f.packing.start(n), used = f.packing.used(n);
  if (used == 0) return 0.0;
  std::fill(pooled, pooled + f.width, 0.0f);
  if (f.mode == Mode::max) {
    with_dtype(f.hidden[l].dtype, [&](auto tag) {
      using T = decltype(tag);
      const T* source = static_cast<const T*>(f.hidden[l].data);
      const int32_t* argmax = f.argmax + n * f.width;
      for (int64_t d = 0; d < f.width; ++d) pooled[d] = to_float(source[argmax[d] * f.hidden[l].token_stride + d]);
    });
  } else {
    add_rows(f.hidden[l], first, rows_read(f.mode, used), token_scale(f.mode, used), pooled);
  }
  return dot(grad, pooled, f.width);
}

double total_elements(const PoolFeatures& p) {
  return static_cast<double>(p.packing.cu_seqlens[p.packing.sequences]) * static_cast<double>(p.layers * p.width);
}

}  // namespace

void pool_features(const PoolFeatures& p) {
  for_each_item(p.packing.sequences, total_elements(p), [&] {
    return [&p, sum = Scratch<float>(padded(p.width)), argmax = Scratch<int32_t>(padded(p.width))](int64_t n) {
      pool_sequence(p, n, sum, argmax);
    };
  });
}

void pool_features_backward(const PoolFeaturesBackward& p) {
  const PoolFeatures& f = p.forward;
  for_each_item(f.packing.sequences, total_elements(f), [&] {
    return [&p, &f, grad = Scratch<float>(f.width), row = Scratch<float>(f.width)](int64_t n) {
      load_gradient(p, n, grad, row);
      for (int64_t l = 0; l < f.layers; ++l) {
        spread(p, n, l, grad, row);
        if (p.grad_weights != nullptr) p.grad_weights[n * f.layers + l] = weight_gradient(f, n, l, grad, row);
      }
    };
  });
}

}  // namespace BERTXFER_ISA
}  // namespace bertxfer
