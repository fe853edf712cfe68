// KL divergence between the softmaxes of two rows, and its gradient, in place.
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

// e^x - 1 - x without cancellation near 0.
inline float exp_remainder(float x) {
  const float direct = fast_exp(x) - 1.0f - x;
  float series = 1.0f / 40320;
  series = series * x + 1.0f / 5040;
  series = series * x + 1.0f / 720;
  series = series * x + 1.0f / 120;
  series = series * x + 1.0f / 24;
  series = series * x + 1.0f / 6;
  series = series * x + 0.5f;
  return (x < 0.6f) & (x > -0.6f) ? series * x * x : direct;
}

// s and t hold the rows less their highest entries, weights_t their exponentials for t with sum total_t, and mean the
// weighted mean of t - s. Rounding leaves x a mean of its own, `drift`; it cancels exactly.
inline double tiny_divergence(const float* s, const float* t, const float* weights_t, int64_t length, float total_t,
                              float mean) {
  float sum = 0.0f, drift = 0.0f;
#pragma omp simd reduction(+ : sum, drift)
  for (int64_t j = 0; j < length; ++j) {
    const float x = (s[j] - t[j]) + mean;
    sum += weights_t[j] * exp_remainder(x);
    drift += weights_t[j] * x;
  }
  const double rest = static_cast<double>(sum) / total_t, left = static_cast<double>(drift) / total_t;
  return std::log1p(rest + left) - left;
}

// Returns the loss; leaves factor * (P - R) in s, unless factor is 0. `weights` is scratch of 2 * ld >= 2 * length
// floats.
inline double kl_row(float* s, float* t, int64_t length, float highest_s, float highest_t, float* weights, int64_t ld,
                     float factor) {
  float *weights_s = weights, *weights_t = weights + ld;
  float total_s = 0.0f, total_t = 0.0f, cross = 0.0f;
#pragma omp simd reduction(+ : total_s, total_t, cross)
  for (int64_t j = 0; j < length; ++j) {
    s[j] -= highest_s;
    t[j] -= highest_t;
    weights_s[j] = fast_exp(s[j]);
    weights_t[j] = fast_exp(t[j]);
    total_s += weights_s[j];
    total_t += weights_t[j];
    cross += weights_t[j] * (t[j] - s[j]);
  }
  const float mean = cross / total_t;
  double loss = mean + std::log(static_cast<double>(total_s)) - std::log(static_cast<double>(total_t));
  if (!(loss > kTinyDivergence)) loss = tiny_divergence(s, t, weights_t, length, total_t, mean);
  if (factor != 0.0f) {
    const float inverse_s = factor / total_s, inverse_t = factor / total_t;
#pragma omp simd
    for (int64_t j = 0; j < length; ++j) s[j] = weights_s[j] * inverse_s - weights_t[j] * inverse_t;
  }
  return loss;
}

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
