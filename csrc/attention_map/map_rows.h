// Loss and gradient of rows of two maps: softmax of both, then KL divergence (common/cpu/softmax_rows.h) or MSE.
#pragma once

#include "../common/cpu/softmax_rows.h"
#include "attention_map.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

// ||P - R||^2 of row i, whose weights are made, and sum_j (P_j - R_j) P_j.
inline double squared_difference(const RowPairs& rows, const RowSums& sums, int64_t i, float& row_dot) {
  const float *weights_s = rows.weights_s(i), *weights_t = rows.weights_t(i);
  const float inverse_s = 1.0f / sums.total_s[i], inverse_t = 1.0f / sums.total_t[i];
  Vector<float> square = {}, product = {};
  for_vectors(rows.length, [&](int64_t j, int64_t) BERTXFER_INLINE {
    const Vector<float> p = load(weights_s + j) * inverse_s, difference = p - load(weights_t + j) * inverse_t;
    square += difference * difference;
    product += difference * p;
  });
  row_dot = sum_of(product);
  return sum_of(square);
}

// scale * P . (P - R - row_dot) of row i, a vector at a time; zeros after the last.
class SquaredGradient {
 public:
  SquaredGradient(const RowPairs& rows, const RowSums& sums, int64_t i, float row_dot, float scale)
      : weights_s_(rows.weights_s(i)),
        weights_t_(rows.weights_t(i)),
        inverse_s_(1.0f / sums.total_s[i]),
        inverse_t_(1.0f / sums.total_t[i]),
        row_dot_(row_dot),
        scaled_(scale * inverse_s_) {}

  BERTXFER_INLINE Vector<float> operator()(int64_t j) const {
    const Vector<float> weight = load(weights_s_ + j);
    return scaled_ * weight * (weight * inverse_s_ - load(weights_t_ + j) * inverse_t_ - row_dot_);
  }

 private:
  const float *weights_s_, *weights_t_;
  float inverse_s_, inverse_t_, row_dot_, scaled_;
};

// The loss of a few rows, the first of which is row `first` of the strip. Gradients are ss G (see attention_map.h)
// times `stored_scale`.
template <class Gradients>
inline double map_rows(const AttentionMap& p, const RowPairs& rows, int64_t first, const Gradients& gradients) {
  RowSums sums;
  gradients.keep_units_awake(rows.length);
  find_weights<Gradients::kDigits>(rows, sums);
  gradients.keep_units_awake(rows.length);
  const float scale = p.stored_scale * rows.scale_s;
  if (p.kind == AttentionMap::Kind::kl) {
    const double loss = divergences(rows, sums);
    for (int64_t i = 0; i < rows.count && p.need_grad; ++i) {
      gradients.write(first + i, rows.length, DivergenceGradient(rows, sums, i, scale));
    }
    return loss;
  }
  double loss = 0.0;
  float row_dot[kMostRows];
  for (int64_t i = 0; i < rows.count; ++i) loss += squared_difference(rows, sums, i, row_dot[i]);
  for (int64_t i = 0; i < rows.count && p.need_grad; ++i) {
    gradients.write(first + i, rows.length, SquaredGradient(rows, sums, i, row_dot[i], 2.0f * scale));
  }
  return loss;
}

// The loss of a strip's rows, `scratch` being RowPairs::weights for rows_at_once(ld) of them. `gradients` has
//
//   write(i, length, at)       writes row i, where gradients are wanted; at(j) is the vector from column j on
//   keep_units_awake(length)   see bf16_gemm.h
//   kDigits                    how exact they are
//
// and may write over the scores.
template <class Gradients>
inline double map_strip(const AttentionMap& p, const float* student, const float* teacher, int64_t ld, int64_t count,
                        int64_t length, float* scratch, const Gradients& gradients) {
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
    loss += map_rows(p, rows, i, gradients);
  }
  return loss;
}

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
