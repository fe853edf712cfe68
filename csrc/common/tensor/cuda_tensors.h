// Tensor side of the CUDA operators, what checks.h is to the CPU's: nothing here looks at values on the device.
#pragma once

// Of the functions that only a torch with CUDA has, this one is used. (shim.h declares it for -DUSE_CUDA.)
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <array>

#include "checks.h"

// The dispatch key the kernels are registered for. In the emulator (tests/cuda_emulator) they run on CPU tensors.
#ifdef BERTXFER_EMULATED
#define BERTXFER_CUDA_KEY CPU
#else
#define BERTXFER_CUDA_KEY CUDA
#endif

namespace bertxfer {

inline bool is_on_device(const Tensor& tensor) {
#ifdef BERTXFER_EMULATED
  return tensor.is_cpu();
#else
  return tensor.is_cuda();
#endif
}

// Makes a tensor's device current as long as it lives, and knows the stream in use there.
class OnDevice {
 public:
  OnDevice(const Tensor& tensor, const char* name)
#ifndef BERTXFER_EMULATED
      : guard_(checked(tensor, name).get_device_index())
#endif
  {
    checked(tensor, name);
#ifndef BERTXFER_EMULATED
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_));
#endif
  }

  void* stream() const { return stream_; }

 private:
  static const Tensor& checked(const Tensor& tensor, const char* name) {
    STD_TORCH_CHECK(is_on_device(tensor), name, ": got ", described(tensor), ", want a CUDA tensor");
    return tensor;
  }

#ifndef BERTXFER_EMULATED
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  void* stream_ = nullptr;
};

inline void check_device(const Tensor& tensor, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(is_on_device(tensor) && tensor.get_device_index() == like.get_device_index(), name, ": got ",
                  described(tensor), ", want the device of ", described(like));
}

// [T, H, D] or, with H = 1, [T, D]. `tensor` must outlive the view, and its innermost dimension be contiguous.
inline PackedView device_view(const Tensor& tensor, const Tensor& like, const char* name) {
  check_device(tensor, like, name);
  STD_TORCH_CHECK(tensor.dim() == 2 || tensor.dim() == 3, name, ": got ", described(tensor),
                  ", want [T, H, D] or [T, D]");
  const bool heads = tensor.dim() == 3;
  return {tensor.data_ptr(), dtype_of(tensor, name), tensor.stride(0), heads ? tensor.stride(1) : 0,
          tensor.size(tensor.dim() - 1)};
}

inline const int32_t* device_index(const Tensor& tensor, const Tensor& like, const char* name, int64_t length) {
  check_device(tensor, like, name);
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Int && tensor.dim() == 1 && tensor.size(0) == length &&
                      tensor.is_contiguous(),
                  name, ": got ", described(tensor), ", want contiguous int32 [", length, "]");
  return static_cast<const int32_t*>(tensor.data_ptr());
}

// Pointers that only kernels follow: call none of Packing's functions. They keep what they find inside the tensors.
inline Packing device_packing(const Tensor& like, const Tensor& cu_seqlens, const std::optional<Tensor>& seqused) {
  STD_TORCH_CHECK(cu_seqlens.dim() == 1 && cu_seqlens.size(0) >= 1, "cu_seqlens: got ", described(cu_seqlens),
                  ", want int32 [N + 1]");
  STD_TORCH_CHECK(like.size(0) <= INT32_MAX, "cu_seqlens: got ", like.size(0), " tokens, want at most ", INT32_MAX);
  Packing packing{};
  packing.sequences = cu_seqlens.size(0) - 1;
  packing.cu_seqlens = device_index(cu_seqlens, like, "cu_seqlens", packing.sequences + 1);
  packing.seqused = seqused ? device_index(*seqused, like, "seqused", packing.sequences) : nullptr;
  return packing;
}

// Memory on the device of `like`, with whatever it holds.
inline Tensor empty_on(const Tensor& like, std::initializer_list<int64_t> size, ScalarType dtype) {
  return torch::stable::new_empty(like, {size.begin(), size.size()}, dtype);
}

// The same tensor, as wide as it has to be for matmul_out. (On the CPU, see `dense` in products.h.)
inline Tensor for_products(const Tensor& tensor) {
#ifdef BERTXFER_EMULATED
  return torch::stable::contiguous(tensor);
#else
  return rows_contiguous(tensor);
#endif
}

// out = a b, the library's product, on the current stream. (mm.out, which autocast leaves alone.)
inline void matmul_out(const Tensor& out, const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(a), from(b), from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // is `out`, and ours to release
}

inline float* floats(const Tensor& tensor) {
  return static_cast<float*>(tensor.data_ptr());
}

}  // namespace bertxfer
