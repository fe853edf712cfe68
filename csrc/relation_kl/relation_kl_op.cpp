// Tensor side of relation_kl (MiniLMv2, Wang et al. 2021): attention_map's kernel with q = k = x, re-split into heads.
// See attention_map/attention_map.h for the math; a null grad_k makes grad_q receive both gradients.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../attention_map/attention_map.h"
#include "../common/tensor/loss_scale.h"

namespace bertxfer {
namespace {

// Views x [T, D] as [T, heads, D / heads].
PackedView split_heads(const Tensor& x, const char* name, int64_t heads) {
  PackedView view = packed_view(x, name);
  STD_TORCH_CHECK(heads > 0 && view.dim % heads == 0, "heads: got ", heads, ", want a divisor of ", view.dim,
                  ", the width of ", name);
  view.dim /= heads;
  view.head_stride = view.dim;
  return view;
}

std::tuple<Tensor, Tensor, Tensor> relation_kl_cpu(Tensor x_student,               // [T, Ds]
                                                   Tensor x_teacher,               // [T, Dt]
                                                   Tensor cu_seqlens,              // [N + 1]
                                                   std::optional<Tensor> seqused,  // [N]
                                                   int64_t /*max_seqlen*/, int64_t heads, double scale_student,
                                                   double scale_teacher, std::string reduction, bool need_grad) {
  STD_TORCH_CHECK(x_student.dim() == 2 && x_teacher.dim() == 2 && x_student.size(0) == x_teacher.size(0),
                  "x_student: got ", described(x_student), ", want [T, Ds] beside x_teacher ", described(x_teacher));
  x_student = rows_contiguous(x_student);
  x_teacher = rows_contiguous(x_teacher);
  const int64_t tokens = x_student.size(0);
  const ScalarType dtype = stored_dtype(x_student.scalar_type());
  Tensor grad = need_grad ? empty({tokens, x_student.size(1)}, dtype) : empty({0}, dtype);

  AttentionMap problem{};
  problem.packing = packing_of(tokens, cu_seqlens, seqused);
  problem.q_student = problem.k_student = split_heads(x_student, "x_student", heads);
  problem.q_teacher = problem.k_teacher = split_heads(x_teacher, "x_teacher", heads);
  std::vector<double> losses(problem.packing.sequences * heads);
  problem.heads = heads;
  problem.scale_student = static_cast<float>(scale_student);
  problem.scale_teacher = static_cast<float>(scale_teacher);
  problem.kind = AttentionMap::Kind::kl;
  const double loss_scale = loss_scale_of(reduction, map_row_count(problem.packing, heads));
  problem.grad_scale = static_cast<float>(loss_scale);
  problem.need_grad = need_grad;
  problem.grad_dtype = dtype_of(grad, "grad");
  problem.grad_q = need_grad ? grad.data_ptr() : nullptr;
  problem.grad_k = nullptr;
  problem.losses = losses.data();
  BERTXFER_DISPATCH(attention_map)(problem);
  return {scalar(sum_of(losses) * loss_scale), grad, scalar(1.0)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, CPU, m) {
  m.impl("relation_kl.cpp", TORCH_BOX(&relation_kl_cpu));
}

}  // namespace bertxfer
