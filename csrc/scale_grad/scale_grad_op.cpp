// Tensor side of scale_grad.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "../common/tensor/checks.h"
#include "scale_grad.h"

namespace bertxfer {
namespace {

float value_of(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.numel() == 1 && tensor.is_cpu() && tensor.scalar_type() == ScalarType::Float, name, ": got ",
                  described(tensor), ", want one float32 number on the CPU");
  return *static_cast<const float*>(tensor.data_ptr());
}

Tensor scale_grad_cpu(Tensor grad,   // [...]
                      Tensor scale,  // []
                      ScalarType dtype) {
  grad = torch::stable::contiguous(grad);
  Tensor out = torch::stable::empty(grad.sizes(), dtype);
  BERTXFER_DISPATCH(scale_grad)
  ({grad.data_ptr(), dtype_of(grad, "grad"), out.data_ptr(), dtype_of(out, "dtype"), grad.numel(),
    value_of(scale, "scale")});
  return out;
}

void scale_grad_in_place_cpu(std::vector<Tensor> grads,  // each [...]
                             Tensor grad_scale,          // []
                             Tensor upstream) {          // []
  const float product = value_of(grad_scale, "grad_scale") * value_of(upstream, "upstream");
  for (const Tensor& grad : grads) {
    STD_TORCH_CHECK(grad.is_cpu() && grad.is_contiguous(), "grads: got ", described(grad),
                    ", want contiguous CPU tensors");
    const Dtype dtype = dtype_of(grad, "grads");
    if (product == 1.0f) continue;
    BERTXFER_DISPATCH(scale_grad)({grad.data_ptr(), dtype, grad.data_ptr(), dtype, grad.numel(), product});
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, CPU, m) {
  m.impl("scale_grad.cpp", TORCH_BOX(&scale_grad_cpu));
  m.impl("scale_grad_.cpp", TORCH_BOX(&scale_grad_in_place_cpu));
}

}  // namespace bertxfer
