// Tensor side of the operators: the checks that keep a kernel inside its memory, and the views it reads. The public
// Python functions check first, with fuller messages; these checks protect callers of torch.ops too.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <string>

#include "../types.h"

namespace bertxfer {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Dtype, sizes and device, if it is not the CPU, for messages: "Float [3, 4]", "Half [2] on cuda:0".
inline std::string described(const Tensor& tensor) {
  std::string text = std::string(torch::headeronly::toString(tensor.scalar_type())) + " [";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i > 0 ? ", " : "") + std::to_string(tensor.size(i));
  if (tensor.is_cpu()) return text + "]";
  const std::string index = std::to_string(tensor.get_device_index());
  return text + (tensor.is_cuda() ? "] on cuda:" + index : "] on another device");
}

inline Dtype dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::BFloat16: return Dtype::bf16;
    case ScalarType::Half: return Dtype::f16;
    default: STD_TORCH_CHECK(false, name, ": got ", described(tensor), ", want float32, bfloat16 or float16");
  }
}

// The same tensor, copied only if its innermost dimension is not contiguous (or it is broadcast along it).
inline Tensor rows_contiguous(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.size(last) <= 1 || tensor.stride(last) == 1 ? tensor : torch::stable::contiguous(tensor);
}

// [T, H, D] or, with H = 1, [T, D]. `tensor` must outlive the view.
inline PackedView packed_view(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, ": got ", described(tensor), ", want a CPU tensor");
  STD_TORCH_CHECK(tensor.dim() == 2 || tensor.dim() == 3, name, ": got ", described(tensor),
                  ", want [T, H, D] or [T, D]");
  const bool heads = tensor.dim() == 3;
  return {tensor.data_ptr(), dtype_of(tensor, name), tensor.stride(0), heads ? tensor.stride(1) : 0,
          tensor.size(tensor.dim() - 1)};
}

inline const int32_t* index_data(const Tensor& tensor, const char* name, int64_t length) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == ScalarType::Int && tensor.dim() == 1 &&
                      tensor.size(0) == length && tensor.is_contiguous(),
                  name, ": got ", described(tensor), ", want a contiguous int32 CPU tensor [", length, "]");
  return static_cast<const int32_t*>(tensor.data_ptr());
}

// Checks that the sequences lie inside `tokens` rows; a kernel indexes with these numbers.
inline Packing packing_of(int64_t tokens, const Tensor& cu_seqlens, const std::optional<Tensor>& seqused) {
  STD_TORCH_CHECK(cu_seqlens.dim() == 1 && cu_seqlens.size(0) >= 1, "cu_seqlens: got ", described(cu_seqlens),
                  ", want [N + 1]");
  Packing packing{};
  packing.sequences = cu_seqlens.size(0) - 1;
  packing.cu_seqlens = index_data(cu_seqlens, "cu_seqlens", packing.sequences + 1);
  packing.seqused = seqused ? index_data(*seqused, "seqused", packing.sequences) : nullptr;
  const int32_t *offsets = packing.cu_seqlens, last = offsets[packing.sequences];
  STD_TORCH_CHECK(offsets[0] == 0, "cu_seqlens: got first entry ", offsets[0], ", want 0");
  STD_TORCH_CHECK(last == tokens, "cu_seqlens: got last entry ", last, ", want ", tokens);
  for (int64_t n = 0; n < packing.sequences; ++n) {
    STD_TORCH_CHECK(packing.length(n) >= 0, "cu_seqlens: got ", offsets[n + 1], " after ", offsets[n],
                    ", want ascending entries");
    STD_TORCH_CHECK(packing.used(n) >= 0 && packing.used(n) <= packing.length(n), "seqused: got ", packing.used(n),
                    " for sequence ", n, ", want 0 to ", packing.length(n));
  }
  return packing;
}

// Checks the four [T, H, D] arguments of an attention loss against each other.
inline void check_attention_pair(const Tensor& q_student, const Tensor& k_student, const Tensor& q_teacher,
                                 const Tensor& k_teacher) {
  STD_TORCH_CHECK(q_student.dim() == 3, "q_student: got ", described(q_student), ", want [T, H, ds]");
  const auto check = [&](const Tensor& x, const char* name, const Tensor& partner) {
    STD_TORCH_CHECK(x.dim() == 3 && x.size(0) == q_student.size(0) && x.size(1) == q_student.size(1), name, ": got ",
                    described(x), ", want T and H of q_student, ", described(q_student));
    STD_TORCH_CHECK(x.size(2) == partner.size(2), name, ": got ", described(x), ", want head_dim of ",
                    described(partner));
  };
  check(q_teacher, "q_teacher", q_teacher);
  check(k_student, "k_student", q_student);
  check(k_teacher, "k_teacher", q_teacher);
  STD_TORCH_CHECK(k_student.scalar_type() == q_student.scalar_type(), "k_student: got ", described(k_student),
                  ", want dtype of q_student, ", described(q_student));
}

// Memory on the CPU with whatever it holds.
inline Tensor empty(std::initializer_list<int64_t> size, ScalarType dtype) {
  return torch::stable::empty({size.begin(), size.size()}, dtype);
}

// A float32 scalar on the CPU.
inline Tensor scalar(double value) {
  Tensor result = empty({}, ScalarType::Float);
  *static_cast<float*>(result.data_ptr()) = static_cast<float>(value);
  return result;
}

}  // namespace bertxfer
