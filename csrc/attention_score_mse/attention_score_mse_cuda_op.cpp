// Tensor side of attention_score_mse on CUDA.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/tensor/attention_pair_tensors.h"
#include "attention_score_mse_cuda.h"

namespace bertxfer {
namespace {

// As on Triton: where a sequence fits two tiles, tiles read as little as Gram matrices do, and compute less.
constexpr int64_t kTiledUpTo = 128;

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_score_mse_cuda_op(Tensor q_student,               // [T, H, ds]
                                                                       Tensor k_student,               // [T, H, ds]
                                                                       Tensor q_teacher,               // [T, H, dt]
                                                                       Tensor k_teacher,               // [T, H, dt]
                                                                       Tensor cu_seqlens,              // [N + 1]
                                                                       std::optional<Tensor> seqused,  // [N]
                                                                       int64_t max_seqlen, double scale_student,
                                                                       double scale_teacher, std::string reduction,
                                                                       std::string method, bool need_grad) {
  OnDevice device(q_student, "q_student");
  AttentionPair pair(q_student, k_student, q_teacher, k_teacher, cu_seqlens, seqused);
  pair.reduce(reduction == "mean", /*squared_lengths=*/true);
  if (need_grad) pair.make_gradients();

  AttentionScoreMseCuda problem = pair.problem<AttentionScoreMseCuda>(scale_student, scale_teacher);
  problem.max_seqlen = max_seqlen;
  problem.tiled_up_to = method == "tiled" ? max_seqlen : method == "gram" ? 0 : kTiledUpTo;
  const Tensor partial_losses = empty_on(q_student, {score_losses(problem)}, ScalarType::Float);
  const Tensor workspace = empty_on(q_student, {problem.packing.sequences * pair.heads + 1}, ScalarType::Int);
  problem.partial_losses = floats(partial_losses);
  problem.takes_tiles = static_cast<int32_t*>(workspace.data_ptr()) + 1;
  problem.ticket = static_cast<unsigned*>(workspace.data_ptr());
  attention_score_mse_cuda(problem, device.stream());
  return {pair.loss, pair.finished(pair.grad_q), pair.finished(pair.grad_k), pair.grad_scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, BERTXFER_CUDA_KEY, m) {
  m.impl("attention_score_mse.cuda", TORCH_BOX(&attention_score_mse_cuda_op));
}

}  // namespace bertxfer
