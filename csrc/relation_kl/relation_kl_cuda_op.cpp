// Tensor side of relation_kl on CUDA (MiniLMv2, Wang et al. 2021): attention_map's kernels with q = k = x, re-split
// into heads. Operations at 64/512, 48 heads, 384/768 wide: eight exponentials and 224 flops (heads of 8 and 16, both
// padded to 16) for each of 805 M pairs. Floor on an H100: 1.7 ms for the exponentials.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../attention_map/attention_map_cuda.h"
#include "../common/tensor/attention_pair_tensors.h"

namespace bertxfer {
namespace {

std::tuple<Tensor, Tensor, Tensor> relation_kl_cuda_op(Tensor x_student,               // [T, Ds]
                                                       Tensor x_teacher,               // [T, Dt]
                                                       Tensor cu_seqlens,              // [N + 1]
                                                       std::optional<Tensor> seqused,  // [N]
                                                       int64_t /*max_seqlen*/, int64_t heads, double scale_student,
                                                       double scale_teacher, std::string reduction, bool need_grad) {
  STD_TORCH_CHECK(x_student.dim() == 2 && x_teacher.dim() == 2 && x_student.size(0) == x_teacher.size(0),
                  "x_student: got ", described(x_student), ", want [T, Ds] beside x_teacher ", described(x_teacher));
  STD_TORCH_CHECK(heads > 0 && x_student.size(1) % heads == 0 && x_teacher.size(1) % heads == 0, "heads: got ", heads,
                  ", want a divisor of ", x_student.size(1), " and ", x_teacher.size(1), ", the widths");
  OnDevice device(x_student, "x_student");
  const auto split = [&](const Tensor& x) {
    const int64_t size[] = {x.size(0), heads, x.size(1) / heads};
    return torch::stable::view(torch::stable::contiguous(x), {size, 3});
  };
  const Tensor student = split(x_student), teacher = split(x_teacher);
  AttentionPair pair(student, student, teacher, teacher, cu_seqlens, seqused);
  pair.reduce(reduction == "mean", /*squared_lengths=*/false);
  if (need_grad) pair.make_gradients(/*symmetric=*/true);

  AttentionMapCuda problem = pair.problem<AttentionMapCuda>(scale_student, scale_teacher);
  problem.symmetric = true;
  const int64_t planes = need_grad ? map_statistics(problem.q_student.dtype, false) : 0;
  const Tensor partial_losses = empty_on(x_student, {map_losses(problem)}, ScalarType::Float);
  const Tensor statistics = empty_on(x_student, {planes, heads, pair.tokens}, ScalarType::Float);
  problem.partial_losses = floats(partial_losses);
  problem.statistics = need_grad ? floats(statistics) : nullptr;
  attention_map_cuda(problem, device.stream());

  Tensor grad = pair.finished(pair.grad_k);
  if (need_grad) {
    const int64_t size[] = {x_student.size(0), x_student.size(1)};
    grad = torch::stable::view(grad, {size, 2});
  }
  return {pair.loss, grad, pair.grad_scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, BERTXFER_CUDA_KEY, m) {
  m.impl("relation_kl.cuda", TORCH_BOX(&relation_kl_cuda_op));
}

}  // namespace bertxfer
