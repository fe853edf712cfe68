// What the CUDA losses on queries and keys of two models share on the tensor side.
#pragma once

#include <algorithm>

#include "../cuda/attention_pair.h"
#include "cuda_tensors.h"
#include "loss_scale.h"

namespace bertxfer {

// The inputs of a loss on attention, checked, with rows that a kernel can read, and memory for the gradients. Sides of
// different dtypes meet in float32, where both are exact.
class AttentionPair {
 public:
  PackedView q_student, k_student, q_teacher, k_teacher;
  Packing packing;
  int64_t tokens, heads;
  Tensor loss;            // []
  Tensor grad_scale;      // []: what the gradients are still to be multiplied by, 1
  Tensor grad_q, grad_k;  // stored_dtype() of the dtype kernels work in; empty where no gradient is wanted

  AttentionPair(const Tensor& qs, const Tensor& ks, const Tensor& qt, const Tensor& kt, const Tensor& cu_seqlens,
                const std::optional<Tensor>& seqused)
      : packing(device_packing(qs, cu_seqlens, seqused)),
        tokens(qs.size(0)),
        heads(qs.size(1)),
        loss(empty_on(qs, {}, ScalarType::Float)),
        grad_scale(empty_on(qs, {}, ScalarType::Float)),
        grad_q(empty_on(qs, {0}, stored_dtype(qs.scalar_type()))),
        grad_k(empty_on(qs, {0}, stored_dtype(qs.scalar_type()))),
        grad_dtype_(stored_dtype(qs.scalar_type())) {
    const bool same = qs.scalar_type() == qt.scalar_type();
    const Tensor* given[] = {&qs, &ks, &qt, &kt};
    const char* names[] = {"q_student", "k_student", "q_teacher", "k_teacher"};
    PackedView* views[] = {&q_student, &k_student, &q_teacher, &k_teacher};
    for (int64_t i = 0; i < 4; ++i) {
      const Tensor &x = *given[i], &query = i < 2 ? qs : qt;
      STD_TORCH_CHECK(x.dim() == 3 && x.size(0) == tokens && x.size(1) == heads, names[i], ": got ", described(x),
                      ", want [", tokens, ", ", heads, ", D]");
      STD_TORCH_CHECK(x.size(2) == query.size(2) && x.scalar_type() == query.scalar_type(), names[i], ": got ",
                      described(x), ", want head_dim and dtype of its queries, ", described(query));
      STD_TORCH_CHECK(x.size(2) >= 1 && x.size(2) <= 256, names[i], ": got ", described(x), ", want head_dim 1 to 256");
      dtype_of(x, names[i]);
      const Tensor rows = rows_contiguous(x);
      inputs_[i] = same ? rows : torch::stable::to(rows, ScalarType::Float);
      *views[i] = device_view(inputs_[i], qs, names[i]);
    }
  }

  // How the loss is reduced, see LossReduction.
  void reduce(bool mean, bool squared_lengths) {
    reduction_ = {mean, squared_lengths, floats(loss), floats(grad_scale)};
  }

  // Memory for the gradients. symmetric: q is k, and grad_k is both gradients.
  void make_gradients(bool symmetric = false) {
    const ScalarType dtype = stored_dtype(inputs_[0].scalar_type());
    const int64_t dim = q_student.dim;
    if (!symmetric) grad_q = empty_on(inputs_[0], {tokens, heads, dim}, dtype);
    grad_k = empty_on(inputs_[0], {tokens, heads, dim}, dtype);
  }

  // What all problems have in common.
  template <class Problem>
  Problem problem(double scale_student, double scale_teacher) const {
    Problem p{};
    p.q_student = q_student;
    p.k_student = k_student;
    p.q_teacher = q_teacher;
    p.k_teacher = k_teacher;
    p.packing = packing;
    p.tokens = tokens;
    p.heads = heads;
    p.scale_student = static_cast<float>(scale_student);
    p.scale_teacher = static_cast<float>(scale_teacher);
    p.reduction = reduction_;
    p.grad_q = grad_q.numel() > 0 ? grad_q.data_ptr() : nullptr;
    p.grad_k = grad_k.numel() > 0 ? grad_k.data_ptr() : nullptr;
    return p;
  }

  // A gradient in the dtype that the student's is stored in.
  Tensor finished(const Tensor& grad) const {
    return grad.scalar_type() == grad_dtype_ ? grad : torch::stable::to(grad, grad_dtype_);
  }

 private:
  Tensor inputs_[4];
  ScalarType grad_dtype_;
  LossReduction reduction_{};
};

}  // namespace bertxfer
