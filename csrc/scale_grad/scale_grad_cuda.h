// scale_grad on a GPU: the math of scale_grad.h, the scale read on the device. `stream` is a cudaStream_t.
#pragma once

#include <cstdint>

#include "../common/types.h"

namespace bertxfer {
namespace cuda {

struct ScaleGrad {
  const void* grad;  // [size]
  Dtype grad_dtype;
  void* out;  // [size]
  Dtype out_dtype;
  int64_t size;
  const float* scale;  // [1]
};

void scale_grad(const ScaleGrad& p, void* stream);

constexpr int kGradsAtOnce = 8;

// Some gradients of one dtype, in place. Nothing is read or written where the product of grad_scale and upstream is 1.
struct ScaleGradsInPlace {
  int count;                    // at most kGradsAtOnce
  void* grads[kGradsAtOnce];    // [sizes[i]] each
  int64_t sizes[kGradsAtOnce];  // in elements
  Dtype dtype;
  const float* grad_scale;  // [1]
  const float* upstream;    // [1]
};

void scale_grads_in_place(const ScaleGradsInPlace& p, void* stream);

}  // namespace cuda
}  // namespace bertxfer
