// What the CUDA losses on queries and keys of two models share: told to a launcher by the tensor side.
#pragma once

#include <cstdint>

#include "../types.h"

namespace bertxfer {

// How a loss is reduced. Lengths are known to the device alone, and so is what a mean divides by.
struct LossReduction {
  bool mean;  // over heads * sum of lengths, or of squared lengths where `squared_lengths`; else the sum
  bool squared_lengths;
  float* loss;        // [1]
  float* grad_scale;  // [1]: what the stored gradients are still to be multiplied by, 1
};

struct AttentionPairCuda {
  PackedView q_student, k_student;  // [T, H, ds], ds <= 256
  PackedView q_teacher, k_teacher;  // [T, H, dt], of the student's dtype
  Packing packing;                  // on the device
  int64_t tokens, heads;
  float scale_student, scale_teacher;
  LossReduction reduction;
  void* grad_q;           // [T, H, ds] contiguous, of the inputs' dtype, float32 for float16; null: not wanted
  void* grad_k;           // [T, H, ds], likewise
  float* partial_losses;  // workspace: as many as the operator says
};

}  // namespace bertxfer
