// Pooling of packed hidden states, several layers in one pass, and its gradient.
//
// Math, x = sum_l w_l h_l over layers l, for a sequence of n tokens:
//
//   mean: sum_t x_t / n    mean_sqrt: sum_t x_t / sqrt(n)    max: max_t x_t    cls: x_0
//   normalize: y / max(||y||, 1e-12)
//
// (mean_sqrt: Cer et al. 2018; weighted layers: Peters et al. 2018.)
//
// Bytes: every layer's hidden states once, forward; cls reads one row per sequence. The backward pass writes
// every layer's gradient once, and reads the hidden states only when the layer weights want a gradient.
// Operations: two per element read, so memory sets the pace.
#pragma once

#include <cstdint>

#include "../common/cpu/isa.h"
#include "../common/types.h"

namespace bertxfer {

struct PoolFeatures {
  enum class Mode { mean, cls, max, mean_sqrt };

  const PackedView* hidden;    // [layers] of [T, D]
  const float* layer_weights;  // [layers]
  int64_t layers, width;       // width = D
  Packing packing;
  Mode mode;
  bool normalize;
  Dtype dtype;      // of pooled and grad
  void* pooled;     // [N, D]
  int32_t* argmax;  // [N, D] row of the maximum, mode max
  float* norm;      // [N], when normalize
};

struct PoolFeaturesBackward {
  PoolFeatures forward;      // as it was; pooled, argmax and norm are read
  const void* grad;          // [N, D] contiguous
  void* const* grad_hidden;  // [layers] of [T, D] contiguous
  double* grad_weights;      // [N, layers] each sequence's share; null: not wanted
};

BERTXFER_KERNEL(pool_features, const PoolFeatures&)
BERTXFER_KERNEL(pool_features_backward, const PoolFeaturesBackward&)

}  // namespace bertxfer
