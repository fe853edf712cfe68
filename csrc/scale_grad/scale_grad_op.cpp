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

void scale_grad_in_place_cpu(Tensor grad, Tensor factor) {
  STD_TORCH_CHECK(grad.is_contiguous(), "grad: want a contiguous tensor");
  STD_TORCH_CHECK(factor.numel() == 1 && factor.is_cpu() && factor.scalar_type() == ScalarType::Float,
                  "factor: want one float32 number on the CPU");
  const Dtype dtype = dtype_of(grad, "grad");
  if (*static_cast<const float*>(factor.data_ptr()) == 1.0f) return;
  ScaleGrad problem{grad.data_ptr(), dtype,        grad.data_ptr(),
                    dtype,           grad.numel(), *static_cast<const float*>(factor.data_ptr())};
  BERTXFER_DISPATCH(scale_grad)(problem);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, CPU, m) {
  m.impl("scale_grad.cpp", TORCH_BOX(&scale_grad_cpu));
  m.impl("scale_grad_.cpp", TORCH_BOX(&scale_grad_in_place_cpu));
}

}  // namespace bertxfer
