// What the tensor sides of pool_features on CPU and GPU share: the names of its modes and the checks of its inputs.
#pragma once

#include <string>
#include <vector>

#include "../common/tensor/checks.h"
#include "pool_features.h"

namespace bertxfer {

inline PoolFeatures::Mode pool_mode_of(const std::string& name) {
  if (name == "mean") return PoolFeatures::Mode::mean;
  if (name == "cls") return PoolFeatures::Mode::cls;
  if (name == "max") return PoolFeatures::Mode::max;
  STD_TORCH_CHECK(name == "mean_sqrt", "mode: got '", name, "', want 'mean', 'cls', 'max' or 'mean_sqrt'");
  return PoolFeatures::Mode::mean_sqrt;
}

// Checks that there is a layer, that all layers are [T, D] of one shape and dtype, and that each has a float32 weight.
inline void check_pool_inputs(const std::vector<Tensor>& layers, const Tensor& layer_weights) {
  STD_TORCH_CHECK(!layers.empty(), "hidden: got no layer, want at least one");
  STD_TORCH_CHECK(
      layer_weights.scalar_type() == ScalarType::Float && layer_weights.numel() == static_cast<int64_t>(layers.size()),
      "layer_weights: got ", described(layer_weights), ", want float32 [", layers.size(), "]");
  for (const Tensor& layer : layers) {
    STD_TORCH_CHECK(layer.dim() == 2 && layer.size(0) == layers[0].size(0) && layer.size(1) == layers[0].size(1) &&
                        layer.scalar_type() == layers[0].scalar_type(),
                    "hidden: got a layer ", described(layer), ", want [T, D] as the first, ", described(layers[0]));
  }
}

}  // namespace bertxfer
