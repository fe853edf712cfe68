// Loss and gradient of one row of two maps: softmax of both, then KL divergence (common/kl_row.h) or MSE.
#pragma once

#include "../common/ahead.h"
#include "../common/kl_row.h"
#include "attention_map.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

// What the next head will read, and this one will write.
inline void look_ahead(const AttentionMap& p, int64_t head, int64_t first, int64_t length, Ahead& ahead) {
  ahead.clear();
  for (const void* grad : {p.grad_q, p.grad_k}) {
    if (p.need_grad && grad != nullptr) {
      ahead.write(grad, p.q_student.dtype, p.heads, head, first, length, p.q_student.dim);
    }
  }
  if (head + 1 == p.heads) return;
  ahead.read(p.q_student, head + 1, first, length);
  ahead.read(p.q_teacher, head + 1, first, length);
  if (p.grad_k == nullptr) return;  // q is k
  ahead.read(p.k_student, head + 1, first, length);
  ahead.read(p.k_teacher, head + 1, first, length);
}

// ||P - R||^2; writes factor * P . (P - R - rowsum((P - R) . P)) to grad, unless it is null. `grad` may be s or t.
template <class Grad>
inline double mse_row(const RowPair& row, float highest_s, float highest_t, float factor, Grad* grad) {
  float *weights_s = row.weights, *weights_t = row.weights + row.ld;
  const float scale_s = row.scale_s * kLog2E, scale_t = row.scale_t * kLog2E;
  Vector<float> sum_s = {}, sum_t = {};
  for_vectors(row.length, [&](int64_t j, int64_t n) BERTXFER_INLINE {
    const Vector<float> s = (load_floats(row.s + j, n) - highest_s) * scale_s;
    const Vector<float> t = (load_floats(row.t + j, n) - highest_t) * scale_t;
    const Vector<float> weight_s = first_lanes(fast_exp2(s), n), weight_t = first_lanes(fast_exp2(t), n);
    store(weight_s, weights_s + j);
    store(weight_t, weights_t + j);
    sum_s += weight_s;
    sum_t += weight_t;
  });
  const float inverse_s = 1.0f / sum_of(sum_s), inverse_t = 1.0f / sum_of(sum_t);
  Vector<float> square = {}, along = {};
  for_vectors(row.length, [&](int64_t j, int64_t) BERTXFER_INLINE {
    const Vector<float> p = load(weights_s + j) * inverse_s, difference = p - load(weights_t + j) * inverse_t;
    square += difference * difference;
    along += difference * p;
  });
  if (grad != nullptr) {
    const float mean = sum_of(along), scaled = factor * inverse_s;
    for_vectors(row.length, [&](int64_t j, int64_t n) BERTXFER_INLINE {
      const Vector<float> weight = load(weights_s + j);
      const Vector<float> difference = weight * inverse_s - load(weights_t + j) * inverse_t;
      store_floats(scaled * weight * (difference - mean), grad + j, n);
    });
  }
  return sum_of(square);
}

// The row's loss; writes ss G (see attention_map.h) times `stored` to grad, unless it is null.
template <class Grad>
inline double map_row(AttentionMap::Kind kind, const RowPair& row, float stored, Grad* grad) {
  const float highest_s = highest_score(row.s, row.length, row.scale_s);
  const float highest_t = highest_score(row.t, row.length, row.scale_t);
  const float factor = stored * row.scale_s;
  return kind == AttentionMap::Kind::kl ? kl_row(row, highest_s, highest_t, factor, grad)
                                        : mse_row(row, highest_s, highest_t, 2.0f * factor, grad);
}

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
