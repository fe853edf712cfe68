// Tensor side of the operators: the checks that keep a kernel inside its memory, and the views it reads. The
// public Python functions have checked everything with fuller messages; these hold for callers of torch.ops too.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "../types.h"

namespace bertxfer {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A tensor as a message shows it: "float32 [3, 4]".
inline std::string shown(const Tensor& tensor) {
  std::string text;
  switch (tensor.scalar_type()) {
    case ScalarType::Float: text = "float32 ["; break;
    case ScalarType::BFloat16: text = "bfloat16 ["; break;
    case ScalarType::Half: text = "float16 ["; break;
    case ScalarType::Int: text = "int32 ["; break;
    case ScalarType::Long: text = "int64 ["; break;
    default: text = "another dtype [";
  }
  for (int64_t d = 0; d < tensor.dim(); ++d) text += (d > 0 ? ", " : "") + std::to_string(tensor.size(d));
  return text + "]";
}

inline Dtype dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::BFloat16: return Dtype::bf16;
    case ScalarType::Half: return Dtype::f16;
    default: STD_TORCH_CHECK(false, name, ": got ", shown(tensor), ", want float32, bfloat16 or float16");
  }
}

// The same tensor, copied only if its innermost dimension is not contiguous (or it is broadcast along it).
inline Tensor rows_contiguous(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.size(last) <= 1 || tensor.stride(last) == 1 ? tensor : torch::stable::contiguous(tensor);
}

// [T, H, D] or, with H = 1, [T, D]. `tensor` must outlive the view.
inline PackedView packed_view(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, ": got a tensor on another device, want a CPU tensor");
  STD_TORCH_CHECK(tensor.dim() == 2 || tensor.dim() == 3, name, ": got ", shown(tensor), ", want [T, H, D] or [T, D]");
  const bool heads = tensor.dim() == 3;
  return {tensor.data_ptr(), dtype_of(tensor, name), tensor.stride(0), heads ? tensor.stride(1) : 0,
          tensor.size(tensor.dim() - 1)};
}

inline const int32_t* index_data(const Tensor& tensor, const char* name, int64_t length) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == ScalarType::Int, name, ": got ", shown(tensor),
                  ", want int32 on the CPU");
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == length, name, ": got ", shown(tensor), ", want ", length,
                  " entries");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, ": got a strided tensor, want a contiguous one");
  return static_cast<const int32_t*>(tensor.data_ptr());
}

// Checks that the sequences lie inside `tokens` rows; a kernel indexes with these numbers.
inline Packing packing_of(int64_t tokens, const Tensor& cu_seqlens, const std::optional<Tensor>& seqused) {
  STD_TORCH_CHECK(cu_seqlens.dim() == 1 && cu_seqlens.size(0) >= 1, "cu_seqlens: got ", shown(cu_seqlens),
                  ", want [N + 1]");
  Packing packing{};
  packing.sequences = cu_seqlens.size(0) - 1;
  packing.cu_seqlens = index_data(cu_seqlens, "cu_seqlens", packing.sequences + 1);
  packing.seqused = seqused ? index_data(*seqused, "seqused", packing.sequences) : nullptr;
  STD_TORCH_CHECK(packing.cu_seqlens[0] == 0, "cu_seqlens: got ", packing.cu_seqlens[0], " as first entry, want 0");
  STD_TORCH_CHECK(packing.cu_seqlens[packing.sequences] == tokens, "cu_seqlens: got ",
                  packing.cu_seqlens[packing.sequences], " as last entry, want the number of tokens, ", tokens);
  for (int64_t n = 0; n < packing.sequences; ++n) {
    STD_TORCH_CHECK(packing.length(n) >= 0, "cu_seqlens: got ", packing.cu_seqlens[n + 1], " after ",
                    packing.cu_seqlens[n], " at entry ", n + 1, ", want entries that never descend");
    STD_TORCH_CHECK(packing.used(n) >= 0 && packing.used(n) <= packing.length(n), "seqused: got ", packing.used(n),
                    " at entry ", n, ", want 0 to the sequence's length, ", packing.length(n));
  }
  return packing;
}

// The four [T, H, D] arguments of an attention loss against each other.
inline void check_attention_pair(const Tensor& q_student, const Tensor& k_student, const Tensor& q_teacher,
                                 const Tensor& k_teacher) {
  const char* names[] = {"q_student", "k_student", "q_teacher", "k_teacher"};
  const Tensor* tensors[] = {&q_student, &k_student, &q_teacher, &k_teacher};
  for (int i = 0; i < 4; ++i) {
    const Tensor& x = *tensors[i];
    STD_TORCH_CHECK(x.dim() == 3 && x.size(0) == q_student.size(0) && x.size(1) == q_student.size(1), names[i],
                    ": got ", shown(x), ", want [T, H, D] with T and H of q_student, ", shown(q_student));
  }
  STD_TORCH_CHECK(k_student.size(2) == q_student.size(2), "k_student: got head_dim ", k_student.size(2), ", want ",
                  q_student.size(2), " as q_student");
  STD_TORCH_CHECK(k_teacher.size(2) == q_teacher.size(2), "k_teacher: got head_dim ", k_teacher.size(2), ", want ",
                  q_teacher.size(2), " as q_teacher");
  STD_TORCH_CHECK(k_student.scalar_type() == q_student.scalar_type(), "k_student: got ", shown(k_student),
                  ", want the dtype of q_student, ", shown(q_student));
}

// What the sum of a loss's terms is multiplied by: 1, or the reciprocal of their number (0 where there is none).
inline double normaliser_of(const std::string& reduction, double terms) {
  return reduction == "sum" ? 1.0 : terms > 0 ? 1.0 / terms : 0.0;
}

inline double total_of(const std::vector<double>& sums) {
  double total = 0.0;
  for (double sum : sums) total += sum;
  return total;
}

// What a kernel multiplies its gradient by before it stores it. The whole of it, `scale`, where the range of dtype is
// float32's: then a backward pass with nothing in front of the loss has nothing to do. float16 gets `safe`, which keeps
// gradients inside its range, as long as that is the larger.
inline float stored_scale(ScalarType dtype, double scale, double safe) {
  const bool whole = dtype != ScalarType::Half || scale >= safe;
  return static_cast<float>(whole ? scale : safe);
}

inline Tensor empty(std::initializer_list<int64_t> size, ScalarType dtype) {
  return torch::stable::empty({size.begin(), size.size()}, dtype);
}

inline Tensor scalar(double value) {
  Tensor result = empty({}, ScalarType::Float);
  *static_cast<float*>(result.data_ptr()) = static_cast<float>(value);
  return result;
}

// What is left to multiply a stored gradient by: the operator's last result.
inline Tensor grad_scale(double scale, float stored) {
  return scalar(static_cast<float>(scale) == stored ? 1.0 : scale / stored);
}

}  // namespace bertxfer
