// Library matrix products for the tensor side, through torch's C shim: at::mm and at::addmm into given memory, for
// operands as wide as a model.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "checks.h"

namespace bertxfer {

// The same tensor as the products can read it. Half precision is copied to a contiguous tensor because oneDNN 3.x reads
// past the rows of a strided bfloat16 matrix of odd width.
inline Tensor matmul_operand(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Float ? rows_contiguous(tensor) : torch::stable::contiguous(tensor);
}

inline Tensor rows_of(Tensor tensor, int64_t first, int64_t rows) {
  return torch::stable::narrow(tensor, 0, first, rows);
}

// out = a b
inline void matmul_out(Tensor& out, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

// out (+)= a b with a float32 `out`: half-precision products are rounded one by one and added up in float32.
inline void matmul_add(Tensor& out, const Tensor& a, const Tensor& b, bool accumulate) {
  if (a.scalar_type() == out.scalar_type()) {
    if (!accumulate) return matmul_out(out, a, b);
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
    return;
  }
  Tensor product = empty({out.size(0), out.size(1)}, a.scalar_type());
  matmul_out(product, a, b);
  if (!accumulate) {
    torch::stable::copy_(out, product);
    return;
  }
  const Tensor widened = torch::stable::to(product, ScalarType::Float);
  float* sum = static_cast<float*>(out.data_ptr());
  const float* terms = static_cast<const float*>(widened.data_ptr());
  const int64_t size = out.numel();
  for (int64_t i = 0; i < size; ++i) sum[i] += terms[i];
}

inline void clear(Tensor& tensor) {
  float* data = static_cast<float*>(tensor.data_ptr());
  std::fill(data, data + tensor.numel(), 0.0f);
}

}  // namespace bertxfer
