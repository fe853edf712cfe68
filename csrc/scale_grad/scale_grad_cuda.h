// scale_grad on a GPU: the math of scale_grad.h, the factor read on the device. `stream` is a cudaStream_t.
#pragma once

#include <cstdint>

#include "../common/types.h"

namespace bertxfer {
namespace cuda {

struct ScaleGrad {
  const void* grad;  // [size]
  Dtype grad_dtype;
  void* out;  // [size], may be grad
  Dtype out_dtype;
  int64_t size;
  const float* factor;    // [1]
  const float* upstream;  // [1], another factor; null: 1
};

// In place, nothing is read or written where the factors' product is 1.
void scale_grad(const ScaleGrad& p, void* stream);

}  // namespace cuda
}  // namespace bertxfer
