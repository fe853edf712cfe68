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
  OnDevice device(q_student);
  AttentionPair pair(q_student, k_student, q_teacher, k_teacher, cu_seqlens, seqused);
  pair.make_gradients(need_grad, {reduction == "mean", /*pairs=*/true, 1.0f / std::max<int64_t>(max_seqlen, 1)},
                      device.stream());

  AttentionScoreMseCuda problem = pair.problem<AttentionScoreMseCuda>(scale_student, scale_teacher);
  problem.max_seqlen = max_seqlen;
  problem.tiled_up_to = method == "tiled" ? max_seqlen : method == "gram" ? 0 : kTiledUpTo;
  const int64_t grams = gram_losses(problem), losses = grams + tile_losses(problem);
  Tensor sums = empty_on(q_student, {3 * grams}, ScalarType::Float);
  Tensor partials = empty_on(q_student, {losses}, ScalarType::Float);
  problem.sums = floats(sums);
  problem.losses = floats(partials);
  attention_score_mse_cuda(problem, device.stream());

  Tensor loss = empty_on(q_student, {}, ScalarType::Float);
  cuda::total(floats(partials), losses, 1, floats(pair.numbers), floats(loss), device.stream());
  return {loss, pair.finished(pair.grad_q), pair.finished(pair.grad_k), pair.factor};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, BERTXFER_CUDA_KEY, m) {
  m.impl("attention_score_mse.cuda", TORCH_BOX(&attention_score_mse_cuda_op));
}

}  // namespace bertxfer
