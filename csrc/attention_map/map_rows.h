// Loss and gradient of rows of two maps: softmax of both, then KL divergence (common/cpu/softmax_rows.h) or MSE.
#pragma once

#include "../common/cpu/gemm.h"
#include "../common/cpu/rows.h"
#include "../common/cpu/softmax_rows.h"
#include "attention_map.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

// ||P - R||^2 of row i, whose weights are computed; sets `delta` to sum_j (P_j - R_j) P_j.
inline double squared_difference(const SoftmaxRows& rows, const SoftmaxSums& sums, int64_t i, float& delta) {
  const float *weights_s = rows.weights_s(i), *weights_t = rows.weights_t(i);
  const float inverse_s = 1.0f / sums.row_sum_s[i], inverse_t = 1.0f / sums.row_sum_t[i];
  Vector<float> square = {}, product = {};
  for_vectors(rows.length, [&](int64_t j, int64_t) BERTXFER_INLINE {
    const Vector<float> p = load(weights_s + j) * inverse_s, difference = p - load(weights_t + j) * inverse_t;
    square += difference * difference;
    product += difference * p;
  });
  delta = sum_of(product);
  return sum_of(square);
}

// factor * P . (P - R - delta) of row i, a vector from column j on at a time; zeros after the last column.
class MseGradient {
 public:
  MseGradient(const SoftmaxRows& rows, const SoftmaxSums& sums, int64_t i, float delta, float factor)
      : weights_s_(rows.weights_s(i)),
        weights_t_(rows.weights_t(i)),
        inverse_s_(1.0f / sums.row_sum_s[i]),
        inverse_t_(1.0f / sums.row_sum_t[i]),
        delta_(delta),
        scaled_inverse_s_(factor * inverse_s_) {}

  BERTXFER_INLINE Vector<float> operator()(int64_t j) const {
    const Vector<float> weight = load(weights_s_ + j);
    return scaled_inverse_s_ * weight * (weight * inverse_s_ - load(weights_t_ + j) * inverse_t_ - delta_);
  }

 private:
  const float *weights_s_, *weights_t_;
  float inverse_s_, inverse_t_, delta_, scaled_inverse_s_;
};

// The loss of a few rows, the first of which is row `first` of the strip. Gradients are grad_scale ss G, see
// attention_map.h.
template <class Gradients>
inline double map_rows(const AttentionMap& p, const SoftmaxRows& rows, int64_t first, const Gradients& gradients) {
  SoftmaxSums sums;
  gradients.keep_units_awake(rows.length);
  softmax_weights<Gradients::kPrecision>(rows, sums);
  gradients.keep_units_awake(rows.length);
  const float factor = p.grad_scale * rows.scale_s;
  if (p.kind == AttentionMap::Kind::kl) {
    const double loss = divergences(rows, sums);
    for (int64_t i = 0; i < rows.count && p.need_grad; ++i) {
      gradients.write(first + i, rows.length, DivergenceGradient(rows, sums, i, factor));
    }
    return loss;
  }
  double loss = 0.0;
  float delta[kMaxSoftmaxRows];
  for (int64_t i = 0; i < rows.count; ++i) loss += squared_difference(rows, sums, i, delta[i]);
  for (int64_t i = 0; i < rows.count && p.need_grad; ++i) {
    gradients.write(first + i, rows.length, MseGradient(rows, sums, i, delta[i], 2.0f * factor));
  }
  return loss;
}

// Scores of a strip of both models.
struct ScoreStrip {
  const float *student, *teacher;  // [count, ld]
  int64_t ld, count, length;
};

// The loss of a strip; `workspace` is SoftmaxRows::weights for rows_per_block(ld) rows. `gradients` has
//
//   write(i, length, gradient)   writes row i, where gradients are wanted; gradient(j) is the vector from column j on
//   keep_units_awake(length)     see bf16_gemm.h
//   kPrecision                   of the weights
//
// and may write over the scores.
template <class Gradients>
inline double map_strip(const AttentionMap& p, const ScoreStrip& strip, float* workspace, const Gradients& gradients) {
  const int64_t max_rows = rows_per_block(strip.ld);
  double loss = 0.0;
  for (int64_t i = 0; i < strip.count; i += max_rows) {
    SoftmaxRows rows{};
    rows.s = strip.student + i * strip.ld;
    rows.t = strip.teacher + i * strip.ld;
    rows.ld_scores = rows.ld = strip.ld;
    rows.count = std::min(max_rows, strip.count - i);
    rows.length = strip.length;
    rows.scale_s = p.scale_student;
    rows.scale_t = p.scale_teacher;
    rows.weights = workspace;
    loss += map_rows(p, rows, i, gradients);
  }
  return loss;
}

// Stores the gradient of k, grad_k_t [ds_columns, ld]: on its own, or added to that of q where q is k, grad_q
// [length, ds_columns].
inline void store_key_gradients(const AttentionMap& p, int64_t head, int64_t length, RowMatrix<const float> grad_k_t,
                                RowMatrix<float> grad_q) {
  const PackedOutput out{p.grad_k != nullptr ? p.grad_k : p.grad_q, p.grad_dtype, p.heads, p.q_student.dim};
  if (p.grad_k != nullptr) {
    store_transposed(grad_k_t.data, grad_k_t.ld, length, out, head, 0);
  } else {
    add_transposed(grad_k_t.data, grad_k_t.ld, length, grad_q.data, grad_q.ld, grad_q.ld);
    store_rows(grad_q.data, grad_q.ld, length, out, head, 0);
  }
}

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
