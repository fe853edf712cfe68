// Tensor side of attention_map_loss on CUDA.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/tensor/attention_pair_tensors.h"
#include "attention_map_cuda.h"

namespace bertxfer {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_map_cuda_op(Tensor q_student,               // [T, H, ds]
                                                                 Tensor k_student,               // [T, H, ds]
                                                                 Tensor q_teacher,               // [T, H, dt]
                                                                 Tensor k_teacher,               // [T, H, dt]
                                                                 Tensor cu_seqlens,              // [N + 1]
                                                                 std::optional<Tensor> seqused,  // [N]
                                                                 int64_t /*max_seqlen*/, double scale_student,
                                                                 double scale_teacher, std::string kind,
                                                                 std::string reduction, bool need_grad) {
  OnDevice device(q_student, "q_student");
  AttentionPair pair(q_student, k_student, q_teacher, k_teacher, cu_seqlens, seqused);
  const bool mse = kind == "mse";
  pair.reduce(reduction == "mean", /*squared_lengths=*/mse);
  if (need_grad) pair.make_gradients();

  AttentionMapCuda problem = pair.problem<AttentionMapCuda>(scale_student, scale_teacher);
  problem.mse = mse;
  const int64_t planes = need_grad ? map_statistics(problem.q_student.dtype, mse) : 0;
  const Tensor partial_losses = empty_on(q_student, {map_losses(problem)}, ScalarType::Float);
  const Tensor statistics = empty_on(q_student, {planes, pair.heads, pair.tokens}, ScalarType::Float);
  problem.partial_losses = floats(partial_losses);
  problem.statistics = need_grad ? floats(statistics) : nullptr;
  attention_map_cuda(problem, device.stream());
  return {pair.loss, pair.finished(pair.grad_q), pair.finished(pair.grad_k), pair.grad_scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, BERTXFER_CUDA_KEY, m) {
  m.impl("attention_map_loss.cuda", TORCH_BOX(&attention_map_cuda_op));
}

}  // namespace bertxfer
