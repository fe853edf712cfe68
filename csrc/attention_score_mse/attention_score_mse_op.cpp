// Tensor side of attention_score_mse.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../common/tensor/checks.h"
#include "attention_score_mse.h"

namespace bertxfer {
namespace {

AttentionScoreMse::Method method_of(const std::string& name) {
  if (name == "auto") return AttentionScoreMse::Method::automatic;
  if (name == "gram") return AttentionScoreMse::Method::gram;
  STD_TORCH_CHECK(name == "tiled", "method: got '", name, "', want 'auto', 'gram' or 'tiled'");
  return AttentionScoreMse::Method::tiled;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_score_mse_cpu(Tensor q_student,               // [T, H, ds]
                                                                   Tensor k_student,               // [T, H, ds]
                                                                   Tensor q_teacher,               // [T, H, dt]
                                                                   Tensor k_teacher,               // [T, H, dt]
                                                                   Tensor cu_seqlens,              // [N + 1]
                                                                   std::optional<Tensor> seqused,  // [N]
                                                                   int64_t max_seqlen, double scale_student,
                                                                   double scale_teacher, std::string reduction,
                                                                   std::string method, bool need_grad) {
  check_attention_pair(q_student, k_student, q_teacher, k_teacher);
  const int64_t tokens = q_student.size(0), heads = q_student.size(1), ds = q_student.size(2);
  q_student = rows_contiguous(q_student);
  k_student = rows_contiguous(k_student);
  q_teacher = rows_contiguous(q_teacher);
  k_teacher = rows_contiguous(k_teacher);

  const Packing packing = packing_of(tokens, cu_seqlens, seqused);
  double pairs = 0.0;
  for (int64_t n = 0; n < packing.sequences; ++n) {
    pairs += static_cast<double>(heads) * static_cast<double>(packing.used(n)) * static_cast<double>(packing.used(n));
  }
  const ScalarType dtype = q_student.scalar_type();
  Tensor grad_q = need_grad ? empty({tokens, heads, ds}, dtype) : empty({0}, dtype);
  Tensor grad_k = need_grad ? empty({tokens, heads, ds}, dtype) : empty({0}, dtype);
  std::vector<double> sums(packing.sequences * heads);

  AttentionScoreMse problem{};
  problem.q_student = packed_view(q_student, "q_student");
  problem.k_student = packed_view(k_student, "k_student");
  problem.q_teacher = packed_view(q_teacher, "q_teacher");
  problem.k_teacher = packed_view(k_teacher, "k_teacher");
  problem.packing = packing;
  problem.heads = heads;
  problem.scale_student = scale_student;
  problem.scale_teacher = scale_teacher;
  problem.method = method_of(method);
  const double normaliser = normaliser_of(reduction, pairs);
  // A mean divides by far more than the longest length, so float16 loses nothing by dividing by that already.
  problem.stored_scale = stored_scale(dtype, normaliser, max_seqlen > 0 ? 1.0 / static_cast<double>(max_seqlen) : 1.0);
  problem.grad_q = need_grad ? grad_q.data_ptr() : nullptr;
  problem.grad_k = need_grad ? grad_k.data_ptr() : nullptr;
  problem.sums = sums.data();
  BERTXFER_DISPATCH(attention_score_mse)(problem);

  return {scalar(total_of(sums) * normaliser), grad_q, grad_k, grad_scale(normaliser, problem.stored_scale)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, CPU, m) {
  m.impl("attention_score_mse.cpp", TORCH_BOX(&attention_score_mse_cpu));
}

}  // namespace bertxfer
