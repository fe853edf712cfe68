// What the CUDA losses on queries and keys of two models share: told to a launcher by the tensor side.
#pragma once

#include <cstdint>

#include "../types.h"

namespace bertxfer {

// How a loss and its gradients are scaled. Lengths are known to the device alone, and so is what a mean divides by.
struct LossReduction {
  bool mean;  // over heads * sum of lengths, or of squared lengths where `squared_lengths`; else the sum
  bool squared_lengths;
  float grad_scale;    // what gradients are stored with; 0: normalised as the loss is
  float* loss;         // [1]
  float* grad_factor;  // [1]: what the stored gradients are still to be multiplied by
};

struct AttentionPairCuda {
  PackedView q_student, k_student;  // [T, H, ds], ds <= 256
  PackedView q_teacher, k_teacher;  // [T, H, dt], of the student's dtype
  Packing packing;                  // on the device
  int64_t tokens, heads;
  float scale_student, scale_teacher;
  LossReduction reduction;
  void* grad_q;           // [T, H, ds] contiguous, of the inputs' dtype; null: not wanted
  void* grad_k;           // [T, H, ds], likewise
  float* partial_losses;  // workspace: as many as the operator says
};

}  // namespace bertxfer
