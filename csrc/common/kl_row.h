// KL divergence between the softmaxes of two rows, and its gradient.
//
//   R = softmax(t), P = softmax(s)    loss = sum_j R_j (log R_j - log P_j)    d loss / d s_j = P_j - R_j
//
// Loss = sum R (t - s) + lse(s) - lse(t) loses its digits as P approaches R. With x_j = s_j - t_j less its R-weighted
// mean, the same number is log1p(sum_j R_j (e^x_j - 1 - x_j)), whose terms are all positive; losses below
// kTinyDivergence use it.
#pragma once

#include <cmath>

#include "vec.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

constexpr double kTinyDivergence = 1e-3;

// A row of scores of student and teacher, before their scales.
struct RowPair {
  const float *s, *t;  // [length]
  float scale_s, scale_t;
  int64_t length;
  float* weights;  // [2, ld] scratch, ld >= padded(length): e^(scaled - highest) of both
  int64_t ld;
};

// The x_j whose product with `scale` is the highest. Scores are taken less this one before anything else, so that it
// becomes exactly 0 and its exponential exactly 1.
inline float highest_score(const float* x, int64_t length, float scale) {
  constexpr int64_t W = kLanes<float>;
  const float sign = scale < 0.0f ? -1.0f : 1.0f;
  Vector<float> most = Vector<float>{} + sign * x[0];
  int64_t j = 0;
  for (; j + W <= length; j += W) most = larger(sign * load(x + j), most);
  if (j < length) most = larger(sign * last_lanes_filled(load_floats(x + j, length - j), length - j, x[0]), most);
  return sign * highest_of(most);
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

// `mean` is the weighted mean of t - s, less the highest of either. Rounding leaves x a mean of its own, `drift`; it
// cancels exactly.
inline double tiny_divergence(const RowPair& row, float highest_s, float highest_t, float total_t, float mean) {
  const float *weights_s = row.weights, *weights_t = row.weights + row.ld;
  const float lift = std::exp(mean);
  Vector<float> sum = {}, drift = {};
  for_vectors(row.length, [&](int64_t j, int64_t n) BERTXFER_INLINE {
    const Vector<float> s = (load_floats(row.s + j, n) - highest_s) * row.scale_s;
    const Vector<float> t = (load_floats(row.t + j, n) - highest_t) * row.scale_t;
    const Vector<float> x = (s - t) + mean, weight = load(weights_t + j);
    // weight e^x is the student's weight times e^mean, which is there also where the teacher's has vanished.
    const Vector<float> near = weight * (remainder_series(x) * x * x);
    const Vector<float> far = load(weights_s + j) * lift - weight * (x + 1.0f);
    sum += ((x < 0.6f) & (x > -0.6f)) ? near : far;
    drift += weight * x;
  });
  const double rest = static_cast<double>(sum_of(sum)) / total_t, left = static_cast<double>(sum_of(drift)) / total_t;
  return std::log1p(rest + left) - left;
}

// Returns the loss; writes factor * (P - R) to grad[0..length), unless grad is null. `grad` may be s or t.
template <class Grad>
inline double kl_row(const RowPair& row, float highest_s, float highest_t, float factor, Grad* grad) {
  float *weights_s = row.weights, *weights_t = row.weights + row.ld;
  const float scale_s = row.scale_s * kLog2E, scale_t = row.scale_t * kLog2E;
  Vector<float> sum_s = {}, sum_t = {}, sum_cross = {};
  for_vectors(row.length, [&](int64_t j, int64_t n) BERTXFER_INLINE {
    // In units of log 2, which is what the exponential wants.
    const Vector<float> s = (load_floats(row.s + j, n) - highest_s) * scale_s;
    const Vector<float> t = (load_floats(row.t + j, n) - highest_t) * scale_t;
    const Vector<float> weight_s = first_lanes(fast_exp2(s), n), weight_t = first_lanes(fast_exp2(t), n);
    store(weight_s, weights_s + j);
    store(weight_t, weights_t + j);
    sum_s += weight_s;
    sum_t += weight_t;
    sum_cross += weight_t * (t - s);
  });
  const float total_s = sum_of(sum_s), total_t = sum_of(sum_t), mean = sum_of(sum_cross) / kLog2E / total_t;
  double loss = mean + std::log(static_cast<double>(total_s)) - std::log(static_cast<double>(total_t));
  if (!(loss > kTinyDivergence)) loss = tiny_divergence(row, highest_s, highest_t, total_t, mean);
  if (grad != nullptr) {
    const float inverse_s = factor / total_s, inverse_t = factor / total_t;
    for_vectors(row.length, [&](int64_t j, int64_t n) BERTXFER_INLINE {
      store_floats(load(weights_s + j) * inverse_s - load(weights_t + j) * inverse_t, grad + j, n);
    });
  }
  return loss;
}

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
