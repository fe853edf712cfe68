// What the CUDA losses on queries and keys of two models share: told to a launcher by the tensor side.
#pragma once

#include <cstdint>

#include "../types.h"

namespace bertxfer {

struct AttentionPairCuda {
  PackedView q_student, k_student;  // [T, H, ds], ds <= 256
  PackedView q_teacher, k_teacher;  // [T, H, dt], of the student's dtype
  Packing packing;                  // on the device
  int64_t tokens, heads;
  float scale_student, scale_teacher;
  const float* numbers;  // [2]: what the loss and the stored gradients are multiplied by
  void* grad_q;          // [T, H, ds] contiguous, of the inputs' dtype; null: not wanted
  void* grad_k;          // [T, H, ds], likewise
  float* losses;         // partial sums of the loss, in a fixed order; as many as the operator says
};

}  // namespace bertxfer
