// Tensor side of scale_grad.
#include <torch/csrc/stable/library.h>

#include "../common/checks.h"
#include "scale_grad.h"

namespace bertxfer {
namespace {

Tensor scale_grad_cpu(Tensor grad, Tensor factor, ScalarType dtype) {
  STD_TORCH_CHECK(factor.numel() == 1 && factor.is_cpu() && factor.scalar_type() == ScalarType::Float,
                  "factor: want one float32 number on the CPU");
  grad = torch::stable::contiguous(grad);
  Tensor out = torch::stable::empty(grad.sizes(), dtype);
  ScaleGrad problem{grad.data_ptr(),        dtype_of(grad, "grad"), out.data_ptr(),
                    dtype_of(out, "dtype"), grad.numel(),           *static_cast<const float*>(factor.data_ptr())};
  BERTXFER_DISPATCH(scale_grad)(problem);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, CPU, m) {
  m.impl("scale_grad.cpp", TORCH_BOX(&scale_grad_cpu));
}

}  // namespace bertxfer
