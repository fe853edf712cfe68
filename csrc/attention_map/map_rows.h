// Loss and gradient of rows of two maps: softmax of both, then KL divergence (common/softmax_rows.h) or MSE.
#pragma once

#include "../common/softmax_rows.h"
#include "attention_map.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

// ||P - R||^2 of row i, whose weights are made, and sum_j (P_j - R_j) P_j.
inline double squared_difference(const RowPairs& rows, const RowSums& sums, int64_t i, float& along) {
  const float *weights_s = rows.weights_s(i), *weights_t = rows.weights_t(i);
  const float inverse_s = 1.0f / sums.total_s[i], inverse_t = 1.0f / sums.total_t[i];
  Vector<float> square = {}, product = {};
  for_vectors(rows.length, [&](int64_t j, int64_t) BERTXFER_INLINE {
    const Vector<float> p = load(weights_s + j) * inverse_s, difference = p - load(weights_t + j) * inverse_t;
    square += difference * difference;
    product += difference * p;
  });
  along = sum_of(product);
  return sum_of(square);
}

// Writes factor * P . (P - R - along) to grad[0..length), which may be the row's scores.
template <class Grad>
inline void squared_gradient(const RowPairs& rows, const RowSums& sums, int64_t i, float along, float factor,
                             Grad* grad) {
  const float *weights_s = rows.weights_s(i), *weights_t = rows.weights_t(i);
  const float inverse_s = 1.0f / sums.total_s[i], inverse_t = 1.0f / sums.total_t[i], scaled = factor * inverse_s;
  for_vectors(rows.length, [&](int64_t j, int64_t n) BERTXFER_INLINE {
    const Vector<float> weight = load(weights_s + j);
    const Vector<float> difference = weight * inverse_s - load(weights_t + j) * inverse_t;
    store_floats(scaled * weight * (difference - along), grad + j, n);
  });
}

// Of the exponential's polynomial. bfloat16 maps take 5 % less time at 512 tokens, relations 9 % at 2048, for an error
// hundreds of times below their own rounding.
template <class Grad>
constexpr int kDegree = std::is_same_v<Grad, bf16> ? 4 : 6;

// The loss of a few rows; writes ss G (see attention_map.h) times `stored` to `grad`, unless it is null, `ld_grad`
// apart.
template <class Grad>
inline double map_rows(AttentionMap::Kind kind, const RowPairs& rows, float stored, Grad* grad, int64_t ld_grad) {
  RowSums sums;
  find_highest(rows, sums);
  weigh<kDegree<Grad>>(rows, sums);
  const float factor = stored * rows.scale_s;
  double loss = 0.0;
  if (kind == AttentionMap::Kind::kl) {
    for (int64_t i = 0; i < rows.count; ++i) loss += divergence(rows, sums, i);
    for (int64_t i = 0; i < rows.count && grad != nullptr; ++i) {
      divergence_gradient(rows, sums, i, factor, grad + i * ld_grad);
    }
  } else {
    float along[kMostRows];
    for (int64_t i = 0; i < rows.count; ++i) loss += squared_difference(rows, sums, i, along[i]);
    for (int64_t i = 0; i < rows.count && grad != nullptr; ++i) {
      squared_gradient(rows, sums, i, along[i], 2.0f * factor, grad + i * ld_grad);
    }
  }
  return loss;
}

// The same of any number of rows, `scratch` being RowPairs::weights for rows_at_once(ld) of them.
template <class Grad>
inline double map_strip(const AttentionMap& p, const float* student, const float* teacher, int64_t ld, int64_t count,
                        int64_t length, float* scratch, Grad* grad) {
  const int64_t most = rows_at_once(ld);
  double loss = 0.0;
  for (int64_t i = 0; i < count; i += most) {
    RowPairs rows{};
    rows.s = student + i * ld;
    rows.t = teacher + i * ld;
    rows.ld_scores = rows.ld = ld;
    rows.count = std::min(most, count - i);
    rows.length = length;
    rows.scale_s = p.scale_student;
    rows.scale_t = p.scale_teacher;
    rows.weights = scratch;
    loss += map_rows(p.kind, rows, p.stored, grad != nullptr ? grad + i * ld : nullptr, ld);
  }
  return loss;
}

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
