// Softmaxes of rows of two models, student P = softmax(s) and teacher R = softmax(t), and the KL divergence between
// them:
//
//   loss = sum_j R_j (log R_j - log P_j)    d loss / d s_j = P_j - R_j
//
// Each step is done for a few rows before the next step: a single row would wait for its own sums and quotients.
//
// Loss = sum R (t - s) + lse(s) - lse(t) loses its digits as P approaches R. With x_j = s_j - t_j less its R-weighted
// mean, the same number is log1p(sum_j R_j (e^x_j - 1 - x_j)), whose terms are all positive; losses below
// kTinyDivergence use it.
#pragma once

#include <algorithm>
#include <cmath>

#include "vec.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

constexpr double kTinyDivergence = 1e-3;

// Some rows of scores of student and teacher, before their scales.
struct RowPairs {
  const float *s, *t;  // [count, ld_scores]
  int64_t ld_scores;
  int64_t count;  // at most kMostRows
  int64_t length;
  float scale_s, scale_t;
  float* weights;  // [count, 2, ld] scratch, ld >= padded(length): e^(scaled - base) of both, then zeros
  int64_t ld;

  const float* s_row(int64_t i) const { return s + i * ld_scores; }
  const float* t_row(int64_t i) const { return t + i * ld_scores; }
  float* weights_s(int64_t i) const { return weights + 2 * i * ld; }
  float* weights_t(int64_t i) const { return weights + (2 * i + 1) * ld; }
};

constexpr int64_t kMostRows = 16;

// So many rows and their weights stay in the nearest cache.
constexpr int64_t kNearBytes = 24 * 1024;
constexpr int64_t rows_at_once(int64_t ld) {
  const int64_t fit = kNearBytes / (4 * ld * static_cast<int64_t>(sizeof(float)));
  return fit < 1 ? 1 : fit > kMostRows ? kMostRows : fit;
}

// Floats for the weights of rows_at_once(ld) rows of any ld up to `longest`.
constexpr int64_t weights_room(int64_t longest) {
  return std::max(2 * longest, kNearBytes / 2 / static_cast<int64_t>(sizeof(float)));
}

// What is known of each row.
struct RowSums {
  float base_s[kMostRows], base_t[kMostRows];              // the score that weighs 1: the highest, or nearly so
  float total_s[kMostRows] = {}, total_t[kMostRows] = {};  // sums of the weights
  float cross[kMostRows] = {};  // sums of the teacher's weights times log2(weight_t / weight_s)
};

// The highest number of a row, or the lowest.
template <bool LOWEST>
inline float furthest_number(const float* x, int64_t length) {
  constexpr int64_t W = kLanes<float>;
  const auto up = [](auto number) BERTXFER_INLINE { return LOWEST ? -number : number; };
  Vector<float> most = Vector<float>{} + up(x[0]), odd = most;  // two, so as not to wait for one
  int64_t j = 0;
  for (; j + 2 * W <= length; j += 2 * W) {
    most = larger(up(load(x + j)), most);
    odd = larger(up(load(x + j + W)), odd);
  }
  most = larger(odd, most);
  for (; j + W <= length; j += W) most = larger(up(load(x + j)), most);
  if (j < length) most = larger(up(last_lanes_filled(load_floats(x + j, length - j), length - j, x[0])), most);
  return up(highest_of(most));
}

// The x_j whose product with `scale` is the highest. Scores are taken less this one before anything else, so that it
// becomes exactly 0 and its exponential exactly 1.
inline float highest_score(const float* x, int64_t length, float scale) {
  return scale < 0.0f ? furthest_number<true>(x, length) : furthest_number<false>(x, length);
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

// How exact weights are: as float32 can be, or hundreds of times more than a result that is rounded to bfloat16, by a
// polynomial of lower degree (see Exp2).
enum class Digits { float32, bfloat16 };
template <Digits DIGITS>
constexpr int kDegree = DIGITS == Digits::float32 ? 6 : 4;

// The weights of rows first..last-1, and their sums; `sums` has the bases.
template <Digits DIGITS = Digits::float32>
inline void weigh(const RowPairs& rows, int64_t first, int64_t last, RowSums& sums) {
  const float scale_s = rows.scale_s * kLog2E, scale_t = rows.scale_t * kLog2E;
  for (int64_t i = first; i < last; ++i) {
    const float *s_row = rows.s_row(i), *t_row = rows.t_row(i), base_s = sums.base_s[i], base_t = sums.base_t[i];
    float *weights_s = rows.weights_s(i), *weights_t = rows.weights_t(i);
    Vector<float> total_s = {}, total_t = {}, cross = {};
    for_vectors(rows.length, [&](int64_t j, int64_t n) BERTXFER_INLINE {
      // In units of log 2, which is what the exponential wants.
      const Vector<float> s = (load_floats(s_row + j, n) - base_s) * scale_s;
      const Vector<float> t = (load_floats(t_row + j, n) - base_t) * scale_t;
      const Vector<float> weight_s = first_lanes(fast_exp2<kDegree<DIGITS>>(s), n);
      const Vector<float> weight_t = first_lanes(fast_exp2<kDegree<DIGITS>>(t), n);
      store(weight_s, weights_s + j);
      store(weight_t, weights_t + j);
      total_s += weight_s;
      total_t += weight_t;
      cross += weight_t * (t - s);
    });
    sums.total_s[i] = sum_of(total_s);
    sums.total_t[i] = sum_of(total_t);
    sums.cross[i] = sum_of(cross);
  }
}

// Bases of rows first..last-1: the highest of their first `columns` scores.
inline void find_bases(const RowPairs& rows, int64_t first, int64_t last, int64_t columns, RowSums& sums) {
  for (int64_t i = first; i < last; ++i) {
    sums.base_s[i] = highest_score(rows.s_row(i), columns, rows.scale_s);
    sums.base_t[i] = highest_score(rows.t_row(i), columns, rows.scale_t);
  }
}

// Bases may be those of so many columns, until a sum of weights is so large: see find_weights().
constexpr int64_t kFirstColumns = 32;
constexpr float kFarAbove = 1 << 24;

// The weights of all rows and their sums. float32's bases are the highest scores. bfloat16's are those of the first few
// columns, and nothing is lost while no score is so far above its base that its exponent, rounded, has fewer digits
// than the polynomial; a row that has such a score starts over.
template <Digits DIGITS>
inline void find_weights(const RowPairs& rows, RowSums& sums) {
  constexpr bool kGuess = DIGITS == Digits::bfloat16;
  find_bases(rows, 0, rows.count, kGuess ? std::min(rows.length, kFirstColumns) : rows.length, sums);
  weigh<DIGITS>(rows, 0, rows.count, sums);
  for (int64_t i = 0; i < rows.count && kGuess; ++i) {
    if (sums.total_s[i] < kFarAbove && sums.total_t[i] < kFarAbove) continue;
    find_bases(rows, i, i + 1, rows.length, sums);
    weigh<DIGITS>(rows, i, i + 1, sums);
  }
}

// `mean` is the weighted mean of t - s, less the base of either. Rounding leaves x a mean of its own, `drift`; it
// cancels exactly.
inline double tiny_divergence(const RowPairs& rows, const RowSums& sums, int64_t i, float mean) {
  const float *s_row = rows.s_row(i), *t_row = rows.t_row(i), base_s = sums.base_s[i], base_t = sums.base_t[i];
  const float *weights_s = rows.weights_s(i), *weights_t = rows.weights_t(i);
  const float lift = std::exp(mean);
  Vector<float> sum = {}, drift = {};
  for_vectors(rows.length, [&](int64_t j, int64_t n) BERTXFER_INLINE {
    const Vector<float> s = (load_floats(s_row + j, n) - base_s) * rows.scale_s;
    const Vector<float> t = (load_floats(t_row + j, n) - base_t) * rows.scale_t;
    const Vector<float> x = (s - t) + mean, weight = load(weights_t + j);
    // weight e^x is the student's weight times e^mean, which is there also where the teacher's has vanished.
    const Vector<float> near = weight * (remainder_series(x) * x * x);
    const Vector<float> far = load(weights_s + j) * lift - weight * (x + 1.0f);
    sum += ((x < 0.6f) & (x > -0.6f)) ? near : far;
    drift += weight * x;
  });
  const double total = sums.total_t[i];
  const double rest = static_cast<double>(sum_of(sum)) / total, left = static_cast<double>(sum_of(drift)) / total;
  return std::log1p(rest + left) - left;
}

// The divergences of all rows, whose weights are made, added up.
inline double divergences(const RowPairs& rows, const RowSums& sums) {
  constexpr int W = kLanes<double>;
  double loss = 0.0;
  for (int64_t i = 0; i < rows.count; i += W) {
    const Vector<double> total_s = load_doubles(sums.total_s + i), total_t = load_doubles(sums.total_t + i);
    const Vector<double> mean = load_doubles(sums.cross + i) / (kLog2E * total_t);
    const Vector<double> losses = mean + log_of(total_s / total_t);
    for (int64_t l = 0; l < std::min<int64_t>(W, rows.count - i); ++l) {
      loss += losses[l] > kTinyDivergence ? losses[l] : tiny_divergence(rows, sums, i + l, static_cast<float>(mean[l]));
    }
  }
  return loss;
}

// scale * (P - R) of row i, a vector at a time; zeros after the last.
class DivergenceGradient {
 public:
  DivergenceGradient(const RowPairs& rows, const RowSums& sums, int64_t i, float scale)
      : weights_s_(rows.weights_s(i)),
        weights_t_(rows.weights_t(i)),
        inverse_s_(scale / sums.total_s[i]),
        inverse_t_(scale / sums.total_t[i]) {}

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
