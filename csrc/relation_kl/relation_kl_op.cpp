// Tensor side of relation_kl (MiniLMv2, Wang et al. 2021): attention_map's kernel with q = k = x, re-split into heads.
// See attention_map/attention_map.h for the math; there, a null grad_k makes grad_q receive both gradients.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../attention_map/attention_map.h"
#include "../common/tensor/checks.h"

namespace bertxfer {
namespace {

// [T, D] as [T, heads, D / heads]
PackedView split_heads(const Tensor& x, const char* name, int64_t heads) {
  PackedView view = packed_view(x, name);
  STD_TORCH_CHECK(heads > 0 && view.dim % heads == 0, "heads: got ", heads, ", want a divisor of the width of ", name);
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
                  "x_teacher: got ", shown(x_teacher), ", want [T, Dt] with T of x_student, ", shown(x_student));
  x_student = rows_contiguous(x_student);
  x_teacher = rows_contiguous(x_teacher);
  const int64_t tokens = x_student.size(0);
  const ScalarType dtype = x_student.scalar_type();
  Tensor grad = need_grad ? empty({tokens, x_student.size(1)}, dtype) : empty({0}, dtype);

  AttentionMap problem{};
  problem.packing = packing_of(tokens, cu_seqlens, seqused);
  std::vector<double> sums(problem.packing.sequences * heads);
  problem.q_student = problem.k_student = split_heads(x_student, "x_student", heads);
  problem.q_teacher = problem.k_teacher = split_heads(x_teacher, "x_teacher", heads);
  problem.heads = heads;
  problem.scale_student = static_cast<float>(scale_student);
  problem.scale_teacher = static_cast<float>(scale_teacher);
  problem.kind = AttentionMap::Kind::kl;
  double rows = 0.0;
  for (int64_t n = 0; n < problem.packing.sequences; ++n) rows += static_cast<double>(heads * problem.packing.used(n));
  const double normaliser = normaliser_of(reduction, rows);
  problem.stored_scale = stored_scale(dtype, normaliser, 1.0);
  problem.need_grad = need_grad;
  problem.grad_q = need_grad ? grad.data_ptr() : nullptr;
  problem.grad_k = nullptr;
  problem.sums = sums.data();
  BERTXFER_DISPATCH(attention_map)(problem);

  return {scalar(total_of(sums) * normaliser), grad, grad_scale(normaliser, problem.stored_scale)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, CPU, m) {
  m.impl("relation_kl.cpp", TORCH_BOX(&relation_kl_cpu));
}

}  // namespace bertxfer
