// Tensor side of attention_score_mse.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/tensor/attention_inputs.h"
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
                                                                   int64_t /*max_seqlen*/, double scale_student,
                                                                   double scale_teacher, std::string reduction,
                                                                   std::string method, bool need_grad) {
  AttentionInputs inputs(q_student, k_student, q_teacher, k_teacher, cu_seqlens, seqused, need_grad);
  AttentionScoreMse problem = inputs.problem<AttentionScoreMse>(scale_student, scale_teacher);
  problem.method = method_of(method);
  const double loss_scale = loss_scale_of(reduction, map_entry_count(inputs.packing, inputs.heads));
  problem.grad_scale = static_cast<float>(loss_scale);
  BERTXFER_DISPATCH(attention_score_mse)(problem);
  return {scalar(sum_of(inputs.losses) * loss_scale), inputs.grad_q, inputs.grad_k, scalar(1.0)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, CPU, m) {
  m.impl("attention_score_mse.cpp", TORCH_BOX(&attention_score_mse_cpu));
}

}  // namespace bertxfer
