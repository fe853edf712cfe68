// Softmaxes of rows of two models, student P = softmax(s) and teacher R = softmax(t), and the KL divergence between
// them:
//
//   loss = sum_j R_j (log R_j - log P_j)    d loss / d s_j = P_j - R_j
//
// Each step is done for several rows before the next, so that no row waits for its own sums and quotients.
//
// The formula sum R (t - s) + lse(s) - lse(t) loses its digits as P approaches R. With x_j = s_j - t_j less its
// R-weighted mean, the same value is log1p(sum_j R_j (e^x_j - 1 - x_j)), whose terms are all positive; losses below
// kTinyDivergence use it.
#pragma once

#include <algorithm>
#include <cmath>

#include "vec.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

constexpr double kTinyDivergence = 1e-3;

// Rows of scores of student and teacher, before their scales.
struct SoftmaxRows {
  const float *s, *t;  // [count, ld_scores]
  int64_t ld_scores;
  int64_t count;  // at most kMaxSoftmaxRows
  int64_t length;
  float scale_s, scale_t;
  float* weights;  // [count, 2, ld] scratch, ld >= padded(length): e^(scale (score - shift)) of both, then zeros
  int64_t ld;

  const float* s_row(int64_t i) const { return s + i * ld_scores; }
  const float* t_row(int64_t i) const { return t + i * ld_scores; }
  float* weights_s(int64_t i) const { return weights + 2 * i * ld; }
  float* weights_t(int64_t i) const { return weights + (2 * i + 1) * ld; }
};

constexpr int64_t kMaxSoftmaxRows = 16;

// Rows and their weights that stay in the first-level cache.
constexpr int64_t kL1Bytes = 24 * 1024;
constexpr int64_t rows_per_block(int64_t ld) {
  const int64_t fit = kL1Bytes / (4 * ld * static_cast<int64_t>(sizeof(float)));
  return fit < 1 ? 1 : fit > kMaxSoftmaxRows ? kMaxSoftmaxRows : fit;
}

// Elements of SoftmaxRows::weights for rows_per_block(ld) rows of any ld up to `longest`.
constexpr int64_t softmax_workspace_size(int64_t longest) {
  return std::max(2 * longest, kL1Bytes / 2 / static_cast<int64_t>(sizeof(float)));
}

// Scalars of each row.
struct SoftmaxSums {
  float shift_s[kMaxSoftmaxRows], shift_t[kMaxSoftmaxRows];                // the score whose weight is 1, see row_max()
  float row_sum_s[kMaxSoftmaxRows] = {}, row_sum_t[kMaxSoftmaxRows] = {};  // of the weights
  float cross[kMaxSoftmaxRows] = {};  // sums of the teacher's weights times log2(weight_t / weight_s)
};

// The maximum of x [length], or its minimum.
template <bool MINIMUM>
inline float row_extreme(const float* x, int64_t length) {
  constexpr int64_t W = kLanes<float>;
  const auto up = [](auto value) BERTXFER_INLINE { return MINIMUM ? -value : value; };
  Vector<float> even = Vector<float>{} + up(x[0]), odd = even;  // two, because each waits for its last comparison
  int64_t j = 0;
  for (; j + 2 * W <= length; j += 2 * W) {
    even = maximum(up(load(x + j)), even);
    odd = maximum(up(load(x + j + W)), odd);
  }
  even = maximum(odd, even);
  for (; j + W <= length; j += W) even = maximum(up(load(x + j)), even);
  if (j < length) even = maximum(up(last_lanes_filled(load_floats(x + j, length - j), length - j, x[0])), even);
  return up(max_of(even));
}

// The x_j whose product with `scale` is the maximum. Subtract it from the scores before anything else, so that it
// becomes exactly 0 and its exponential exactly 1.
inline float row_max(const float* x, int64_t length, float scale) {
  return scale < 0.0f ? row_extreme<true>(x, length) : row_extreme<false>(x, length);
}

// (e^x - 1 - x) / x^2 near 0.
inline Vector<float> remainder_series(Vector<float> x) {
  Vector<float> series = Vector<float>{} + 1.0f / 40320;
  series = series * x + 1.0f / 5040;
  series = series * x + 1.0f / 720;
  series = series * x + 1.0f / 120;
  series = series * x + 1.0f / 24;
  series = series * x + 1.0f / 6;
  return series * x + 0.5f;
}

// The precision of weights: float32's, or that of a shorter polynomial (see Exp2), hundreds of times finer than a
// result that is rounded to bfloat16.
enum class Precision { float32, bfloat16 };
template <Precision PRECISION>
constexpr int kExp2Degree = PRECISION == Precision::float32 ? 6 : 4;

// Computes the weights of rows first..last-1 and their sums, relative to the shifts in `sums`.
template <Precision PRECISION = Precision::float32>
inline void compute_weights(const SoftmaxRows& rows, int64_t first, int64_t last, SoftmaxSums& sums) {
  const float scale_s = rows.scale_s * kLog2E, scale_t = rows.scale_t * kLog2E;
  for (int64_t i = first; i < last; ++i) {
    const float *s_row = rows.s_row(i), *t_row = rows.t_row(i), shift_s = sums.shift_s[i], shift_t = sums.shift_t[i];
    float *weights_s = rows.weights_s(i), *weights_t = rows.weights_t(i);
    Vector<float> row_sum_s = {}, row_sum_t = {}, cross = {};
    for_vectors(rows.length, [&](int64_t j, int64_t n) BERTXFER_INLINE {
      // The scores are in units of log 2 because the exponential is 2**x.
      const Vector<float> s = (load_floats(s_row + j, n) - shift_s) * scale_s;
      const Vector<float> t = (load_floats(t_row + j, n) - shift_t) * scale_t;
      const Vector<float> weight_s = first_lanes(fast_exp2<kExp2Degree<PRECISION>>(s), n);
      const Vector<float> weight_t = first_lanes(fast_exp2<kExp2Degree<PRECISION>>(t), n);
      store(weight_s, weights_s + j);
      store(weight_t, weights_t + j);
      row_sum_s += weight_s;
      row_sum_t += weight_t;
      cross += weight_t * (t - s);
    });
    sums.row_sum_s[i] = sum_of(row_sum_s);
    sums.row_sum_t[i] = sum_of(row_sum_t);
    sums.cross[i] = sum_of(cross);
  }
}

// Sets the shifts of rows first..last-1 to the maxima of their first `columns` scores.
inline void find_shifts(const SoftmaxRows& rows, int64_t first, int64_t last, int64_t columns, SoftmaxSums& sums) {
  for (int64_t i = first; i < last; ++i) {
    sums.shift_s[i] = row_max(rows.s_row(i), columns, rows.scale_s);
    sums.shift_t[i] = row_max(rows.t_row(i), columns, rows.scale_t);
  }
}

constexpr int64_t kShiftColumns = 32;
constexpr float kMaxRowSum = 1 << 24;

// Computes the weights of all rows and their sums. float32's shifts are the row maxima. bfloat16's are the maxima of
// the first kShiftColumns scores, which saves a pass: nothing is lost while no score is so far above its shift that its
// exponent, rounded, has fewer digits than the polynomial. A row whose sum passes kMaxRowSum starts over.
template <Precision PRECISION>
inline void softmax_weights(const SoftmaxRows& rows, SoftmaxSums& sums) {
  constexpr bool kPartialMax = PRECISION == Precision::bfloat16;
  find_shifts(rows, 0, rows.count, kPartialMax ? std::min(rows.length, kShiftColumns) : rows.length, sums);
  compute_weights<PRECISION>(rows, 0, rows.count, sums);
  for (int64_t i = 0; i < rows.count && kPartialMax; ++i) {
    if (sums.row_sum_s[i] < kMaxRowSum && sums.row_sum_t[i] < kMaxRowSum) continue;
    find_shifts(rows, i, i + 1, rows.length, sums);
    compute_weights<PRECISION>(rows, i, i + 1, sums);
  }
}

// The divergence of a row whose P is close to R. `mean` is the R-weighted mean of t - s, each less its shift. Rounding
// leaves x a mean of its own, `drift`, which cancels exactly. Not inlined: the compiler chooses which products it fuses
// with a sum by what surrounds them, and the digits of a tiny loss must not depend on that.
__attribute__((noinline)) double tiny_divergence(const SoftmaxRows& rows, const SoftmaxSums& sums, int64_t i,
                                                 float mean) {
  const float *s_row = rows.s_row(i), *t_row = rows.t_row(i), shift_s = sums.shift_s[i], shift_t = sums.shift_t[i];
  const float *weights_s = rows.weights_s(i), *weights_t = rows.weights_t(i);
  const float exp_mean = std::exp(mean);
  Vector<float> sum = {}, drift = {};
  for_vectors(rows.length, [&](int64_t j, int64_t n) BERTXFER_INLINE {
    const Vector<float> s = (load_floats(s_row + j, n) - shift_s) * rows.scale_s;
    const Vector<float> t = (load_floats(t_row + j, n) - shift_t) * rows.scale_t;
    const Vector<float> x = (s - t) + mean, weight = load(weights_t + j);
    // The student's weight times e^mean is weight e^x, and stays exact where the teacher's weight has underflowed.
    const Vector<float> near = weight * (remainder_series(x) * x * x);
    const Vector<float> far = load(weights_s + j) * exp_mean - weight * (x + 1.0f);
    sum += ((x < 0.6f) & (x > -0.6f)) ? near : far;
    drift += weight * x;
  });
  const double total = sums.row_sum_t[i];
  const double rest = static_cast<double>(sum_of(sum)) / total, left = static_cast<double>(sum_of(drift)) / total;
  return std::log1p(rest + left) - left;
}

// The sum of the divergences of all rows, whose weights are computed.
inline double divergences(const SoftmaxRows& rows, const SoftmaxSums& sums) {
  constexpr int W = kLanes<double>;
  double loss = 0.0;
  for (int64_t i = 0; i < rows.count; i += W) {
    const Vector<double> row_sum_s = load_doubles(sums.row_sum_s + i), row_sum_t = load_doubles(sums.row_sum_t + i);
    const Vector<double> mean = load_doubles(sums.cross + i) / (kLog2E * row_sum_t);
    const Vector<double> losses = mean + log_of(row_sum_s / row_sum_t);
    for (int64_t l = 0; l < std::min<int64_t>(W, rows.count - i); ++l) {
      loss += losses[l] > kTinyDivergence ? losses[l] : tiny_divergence(rows, sums, i + l, static_cast<float>(mean[l]));
    }
  }
  return loss;
}

// factor * (P - R) of row i, a vector from column j on at a time; zeros after the last column.
class DivergenceGradient {
 public:
  DivergenceGradient(const SoftmaxRows& rows, const SoftmaxSums& sums, int64_t i, float factor)
      : weights_s_(rows.weights_s(i)),
        weights_t_(rows.weights_t(i)),
        inverse_s_(factor / sums.row_sum_s[i]),
        inverse_t_(factor / sums.row_sum_t[i]) {}

  BERTXFER_INLINE Vector<float> operator()(int64_t j) const {
    return load(weights_s_ + j) * inverse_s_ - load(weights_t_ + j) * inverse_t_;
  }

 private:
  const float *weights_s_, *weights_t_;
  float inverse_s_, inverse_t_;
};

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
