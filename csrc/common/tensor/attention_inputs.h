// What the CPU losses on queries and keys of two models share on the tensor side.
#pragma once

#include <vector>

#include "loss_scale.h"

namespace bertxfer {

// The inputs of a loss on attention, checked, with rows that a kernel can read, and memory for its results.
class AttentionInputs {
 public:
  Packing packing{};
  int64_t heads;
  Tensor grad_q, grad_k;       // [T, H, ds] in stored_dtype(); [0] where no gradient is wanted
  std::vector<double> losses;  // [N, H]

  AttentionInputs(const Tensor& q_student, const Tensor& k_student, const Tensor& q_teacher, const Tensor& k_teacher,
                  const Tensor& cu_seqlens, const std::optional<Tensor>& seqused, bool need_grad)
      : heads(0), need_grad_(need_grad) {
    check_attention_pair(q_student, k_student, q_teacher, k_teacher);
    const int64_t tokens = q_student.size(0);
    heads = q_student.size(1);
    q_student_ = rows_contiguous(q_student);
    k_student_ = rows_contiguous(k_student);
    q_teacher_ = rows_contiguous(q_teacher);
    k_teacher_ = rows_contiguous(k_teacher);
    packing = packing_of(tokens, cu_seqlens, seqused);
    const int64_t ds = q_student.size(2);
    const ScalarType grad_dtype = stored_dtype(q_student.scalar_type());
    grad_q = need_grad ? empty({tokens, heads, ds}, grad_dtype) : empty({0}, grad_dtype);
    grad_k = need_grad ? empty({tokens, heads, ds}, grad_dtype) : empty({0}, grad_dtype);
    losses.resize(packing.sequences * heads);
  }

  // Everything but the scale of the gradient and what only one operator has.
  template <class Problem>
  Problem problem(double scale_student, double scale_teacher) {
    Problem p{};
    p.q_student = packed_view(q_student_, "q_student");
    p.k_student = packed_view(k_student_, "k_student");
    p.q_teacher = packed_view(q_teacher_, "q_teacher");
    p.k_teacher = packed_view(k_teacher_, "k_teacher");
    p.packing = packing;
    p.heads = heads;
    p.scale_student = static_cast<decltype(p.scale_student)>(scale_student);
    p.scale_teacher = static_cast<decltype(p.scale_teacher)>(scale_teacher);
    p.grad_dtype = dtype_of(grad_q, "grad_q");
    p.grad_q = need_grad_ ? grad_q.data_ptr() : nullptr;
    p.grad_k = need_grad_ ? grad_k.data_ptr() : nullptr;
    p.losses = losses.data();
    return p;
  }

 private:
  const bool need_grad_;
  Tensor q_student_, k_student_, q_teacher_, k_teacher_;
};

}  // namespace bertxfer
