// pool_features on a GPU: the math of pool_features.h. Every pointer to numbers is the device's; arrays of layers are
// the host's, and so are the structs. `stream` is a cudaStream_t. Call none of Packing's functions: its lengths are on
// the device, and whatever they are, kernels stay inside `tokens`.
#pragma once

#include "pool_features.h"

namespace bertxfer {
namespace cuda {

constexpr int64_t kPoolRows = 64;    // of a tile, the rows that one partial sum covers
constexpr int64_t kPoolLayers = 64;  // at most: their pointers travel with the launch

// Tiles of the packed sequences, partial results that a sequence's end in.
int64_t pool_slots(int64_t tokens, int64_t sequences);

// Shares of the gradient of a layer weight: [layers, that many].
int64_t pool_weight_shares(const PoolFeatures& p, int64_t tokens);

struct PoolFeaturesForward {
  PoolFeatures problem;
  int64_t tokens;
  float* partials;        // [slots, D]; mode cls: not used
  int32_t* partial_rows;  // [slots, D], mode max
};

struct PoolFeaturesBackward {
  PoolFeatures problem;  // as it was; pooled, argmax and norm are read
  int64_t tokens;
  const void* grad;          // [N, D] contiguous
  void* const* grad_hidden;  // [layers] of [T, D] contiguous
  float* grad_pooled;        // [N, D] scratch: the gradient before normalisation
  float* weight_shares;      // scratch, see above; null: no gradient of layer_weights is wanted, and it is zero
  float* grad_weights;       // [layers]
};

void pool_features(const PoolFeaturesForward& p, void* stream);
void pool_features_backward(const PoolFeaturesBackward& p, void* stream);

}  // namespace cuda
}  // namespace bertxfer
