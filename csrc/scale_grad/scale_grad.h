// out[i] = round(grad[i] * scale): the backward pass of every operator whose forward computed its gradient.
// `out` may be `grad`, because scale_grad_ works in place.
// Bytes: the gradient read once and written once. Operations: one multiplication each, in float32.
#pragma once

#include <cstdint>

#include "../common/cpu/isa.h"
#include "../common/types.h"

namespace bertxfer {

struct ScaleGrad {
  const void* grad;  // [size]
  Dtype grad_dtype;
  void* out;  // [size]
  Dtype out_dtype;
  int64_t size;
  float scale;
};

BERTXFER_KERNEL(scale_grad, const ScaleGrad&)

}  // namespace bertxfer
