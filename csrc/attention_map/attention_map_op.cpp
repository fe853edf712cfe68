// Tensor side of attention_map_loss.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/tensor/attention_inputs.h"
#include "attention_map.h"

namespace bertxfer {
namespace {

AttentionMap::Kind kind_of(const std::string& name) {
  if (name == "kl") return AttentionMap::Kind::kl;
  STD_TORCH_CHECK(name == "mse", "kind: got '", name, "', want 'kl' or 'mse'");
  return AttentionMap::Kind::mse;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_map_loss_cpu(Tensor q_student,               // [T, H, ds]
                                                                  Tensor k_student,               // [T, H, ds]
                                                                  Tensor q_teacher,               // [T, H, dt]
                                                                  Tensor k_teacher,               // [T, H, dt]
                                                                  Tensor cu_seqlens,              // [N + 1]
                                                                  std::optional<Tensor> seqused,  // [N]
                                                                  int64_t /*max_seqlen*/, double scale_student,
                                                                  double scale_teacher, std::string kind,
                                                                  std::string reduction, bool need_grad) {
  const AttentionMap::Kind map_kind = kind_of(kind);
  AttentionInputs inputs(q_student, k_student, q_teacher, k_teacher, cu_seqlens, seqused, need_grad);
  AttentionMap problem = inputs.problem<AttentionMap>(scale_student, scale_teacher);
  problem.kind = map_kind;
  problem.need_grad = need_grad;
  const bool mse = map_kind == AttentionMap::Kind::mse;
  const double terms =
      mse ? map_entry_count(inputs.packing, inputs.heads) : map_row_count(inputs.packing, inputs.heads);
  const double loss_scale = loss_scale_of(reduction, terms);
  problem.grad_scale = static_cast<float>(loss_scale);
  BERTXFER_DISPATCH(attention_map)(problem);
  return {scalar(sum_of(inputs.losses) * loss_scale), inputs.grad_q, inputs.grad_k, scalar(1.0)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, CPU, m) {
  m.impl("attention_map_loss.cpp", TORCH_BOX(&attention_map_loss_cpu));
}

}  // namespace bertxfer
