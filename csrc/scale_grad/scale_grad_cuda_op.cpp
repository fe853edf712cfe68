// Tensor side of scale_grad on a GPU.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "../common/tensor/cuda_tensors.h"
#include "scale_grad_cuda.h"

namespace bertxfer {
namespace {

const float* number_on_device(const Tensor& tensor, const Tensor& like, const char* name) {
  check_device(tensor, like, name);
  STD_TORCH_CHECK(tensor.numel() == 1 && tensor.scalar_type() == ScalarType::Float, name, ": got ", described(tensor),
                  ", want one float32 number");
  return floats(tensor);
}

Tensor scale_grad_cuda(Tensor grad, Tensor scale, ScalarType dtype) {
  const OnDevice device(grad, "grad");
  grad = torch::stable::contiguous(grad);
  Tensor out = torch::stable::new_empty(grad, grad.sizes(), dtype);
  cuda::scale_grad({grad.data_ptr(), dtype_of(grad, "grad"), out.data_ptr(), dtype_of(out, "dtype"), grad.numel(),
                    number_on_device(scale, grad, "scale")},
                   device.stream());
  return out;
}

void scale_grad_in_place_cuda(std::vector<Tensor> grads, Tensor grad_scale, Tensor upstream) {
  const OnDevice device(grad_scale, "grad_scale");
  cuda::ScaleGradsInPlace batch{};
  batch.grad_scale = number_on_device(grad_scale, grad_scale, "grad_scale");
  batch.upstream = number_on_device(upstream, grad_scale, "upstream");
  const auto launch = [&] {
    cuda::scale_grads_in_place(batch, device.stream());
    batch.count = 0;
  };
  for (const Tensor& grad : grads) {
    check_device(grad, grad_scale, "grads");
    STD_TORCH_CHECK(grad.is_contiguous(), "grads: got ", described(grad), ", want contiguous tensors");
    const Dtype dtype = dtype_of(grad, "grads");
    if (batch.count == cuda::kGradsAtOnce || (batch.count > 0 && dtype != batch.dtype)) launch();
    batch.dtype = dtype;
    batch.grads[batch.count] = grad.data_ptr();
    batch.sizes[batch.count++] = grad.numel();
  }
  if (batch.count > 0) launch();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, BERTXFER_CUDA_KEY, m) {
  m.impl("scale_grad.cuda", TORCH_BOX(&scale_grad_cuda));
  m.impl("scale_grad_.cuda", TORCH_BOX(&scale_grad_in_place_cuda));
}

}  // namespace bertxfer
