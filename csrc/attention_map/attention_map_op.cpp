// Tensor side of attention_map_loss.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../common/tensor/checks.h"
#include "attention_map.h"

namespace bertxfer {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_map_loss_cpu(Tensor q_student,               // [T, H, ds]
                                                                  Tensor k_student,               // [T, H, ds]
                                                                  Tensor q_teacher,               // [T, H, dt]
                                                                  Tensor k_teacher,               // [T, H, dt]
                                                                  Tensor cu_seqlens,              // [N + 1]
                                                                  std::optional<Tensor> seqused,  // [N]
                                                                  int64_t /*max_seqlen*/, double scale_student,
                                                                  double scale_teacher, std::string kind,
                                                                  std::string reduction, bool need_grad) {
  check_attention_pair(q_student, k_student, q_teacher, k_teacher);
  const int64_t tokens = q_student.size(0), heads = q_student.size(1), ds = q_student.size(2);
  STD_TORCH_CHECK(kind == "kl" || kind == "mse", "kind: got '", kind, "', want 'kl' or 'mse'");
  q_student = rows_contiguous(q_student);
  k_student = rows_contiguous(k_student);
  q_teacher = rows_contiguous(q_teacher);
  k_teacher = rows_contiguous(k_teacher);
  const Packing packing = packing_of(tokens, cu_seqlens, seqused);
  const ScalarType dtype = q_student.scalar_type();
  Tensor grad_q = need_grad ? empty({tokens, heads, ds}, dtype) : empty({0}, dtype);
  Tensor grad_k = need_grad ? empty({tokens, heads, ds}, dtype) : empty({0}, dtype);
  std::vector<double> sums(packing.sequences * heads);

  AttentionMap problem{};
  problem.q_student = packed_view(q_student, "q_student");
  problem.k_student = packed_view(k_student, "k_student");
  problem.q_teacher = packed_view(q_teacher, "q_teacher");
  problem.k_teacher = packed_view(k_teacher, "k_teacher");
  problem.packing = packing;
  problem.heads = heads;
  problem.scale_student = static_cast<float>(scale_student);
  problem.scale_teacher = static_cast<float>(scale_teacher);
  problem.kind = kind == "kl" ? AttentionMap::Kind::kl : AttentionMap::Kind::mse;
  double terms = 0.0;
  for (int64_t n = 0; n < packing.sequences; ++n) {
    const double used = static_cast<double>(packing.used(n));
    terms += static_cast<double>(heads) * (kind == "kl" ? used : used * used);
  }
  const double normaliser = normaliser_of(reduction, terms);
  // The gradient of a map's MSE is small: 64 keeps its digits in float16.
  problem.stored_scale = dtype == ScalarType::Half && kind == "mse" ? 64.0f : stored_scale(dtype, normaliser, 1.0);
  problem.need_grad = need_grad;
  problem.grad_q = need_grad ? grad_q.data_ptr() : nullptr;
  problem.grad_k = need_grad ? grad_k.data_ptr() : nullptr;
  problem.sums = sums.data();
  BERTXFER_DISPATCH(attention_map)(problem);

  return {scalar(total_of(sums) * normaliser), grad_q, grad_k, grad_scale(normaliser, problem.stored_scale)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, CPU, m) {
  m.impl("attention_map_loss.cpp", TORCH_BOX(&attention_map_loss_cpu));
}

}  // namespace bertxfer
