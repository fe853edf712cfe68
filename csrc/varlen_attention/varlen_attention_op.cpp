// Tensor side of varlen_attention.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/tensor/checks.h"
#include "varlen_attention.h"

namespace bertxfer {
namespace {

// Checks that x is [T, H, D] as q, in its dtype.
void check_like_q(const Tensor& q, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(q.dim() == 3, "q: got ", described(q), ", want [T, H, D]");
  STD_TORCH_CHECK(x.dim() == 3 && x.size(0) == q.size(0) && x.size(1) == q.size(1) && x.size(2) == q.size(2) &&
                      x.scalar_type() == q.scalar_type(),
                  name, ": got ", described(x), ", want shape and dtype of q, ", described(q));
}

VarlenAttention problem_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens, double scale,
                           double dropout_p, const std::optional<Tensor>& seed) {
  STD_TORCH_CHECK(dropout_p >= 0.0 && dropout_p < 1.0, "dropout_p: got ", dropout_p, ", want 0 <= p < 1");
  STD_TORCH_CHECK(dropout_p == 0.0 || seed, "seed: got none, want one with dropout_p ", dropout_p);
  VarlenAttention problem{};
  problem.q = packed_view(q, "q");
  problem.k = packed_view(k, "k");
  problem.v = packed_view(v, "v");
  problem.packing = packing_of(q.size(0), cu_seqlens, std::nullopt);
  problem.tokens = q.size(0);
  problem.heads = q.size(1);
  problem.scale = static_cast<float>(scale);
  problem.dropout_p = static_cast<float>(dropout_p);
  if (seed) {
    STD_TORCH_CHECK(seed->is_cpu() && seed->scalar_type() == ScalarType::Long && seed->numel() == 1, "seed: got ",
                    described(*seed), ", want one int64 number on the CPU");
    problem.seed = static_cast<uint64_t>(*static_cast<const int64_t*>(seed->data_ptr()));
  }
  return problem;
}

std::tuple<Tensor, Tensor> varlen_attention_cpu(Tensor q,           // [T, H, D]
                                                Tensor k,           // [T, H, D]
                                                Tensor v,           // [T, H, D]
                                                Tensor cu_seqlens,  // [N + 1]
                                                int64_t /*max_seqlen*/, double scale, double dropout_p,
                                                std::optional<Tensor> seed) {
  check_like_q(q, k, "k");
  check_like_q(q, v, "v");
  q = rows_contiguous(q);
  k = rows_contiguous(k);
  v = rows_contiguous(v);
  Tensor out = empty({q.size(0), q.size(1), q.size(2)}, q.scalar_type());
  Tensor lse = empty({q.size(1), q.size(0)}, ScalarType::Float);
  VarlenAttention problem = problem_of(q, k, v, cu_seqlens, scale, dropout_p, seed);
  problem.out = out.data_ptr();
  problem.lse = static_cast<float*>(lse.data_ptr());
  BERTXFER_DISPATCH(varlen_attention)(problem);
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> varlen_attention_backward_cpu(Tensor grad,        // [T, H, D]
                                                                 Tensor q,           // [T, H, D]
                                                                 Tensor k,           // [T, H, D]
                                                                 Tensor v,           // [T, H, D]
                                                                 Tensor out,         // [T, H, D]
                                                                 Tensor lse,         // [H, T]
                                                                 Tensor cu_seqlens,  // [N + 1]
                                                                 int64_t /*max_seqlen*/, double scale, double dropout_p,
                                                                 std::optional<Tensor> seed) {
  check_like_q(q, k, "k");
  check_like_q(q, v, "v");
  check_like_q(q, out, "out");
  check_like_q(q, grad, "grad");
  STD_TORCH_CHECK(lse.scalar_type() == ScalarType::Float && lse.is_contiguous() && lse.numel() == q.size(0) * q.size(1),
                  "lse: got ", described(lse), ", want contiguous float32 [", q.size(1), ", ", q.size(0), "]");
  STD_TORCH_CHECK(out.is_contiguous(), "out: got a strided tensor, want a contiguous one");
  q = rows_contiguous(q);
  k = rows_contiguous(k);
  v = rows_contiguous(v);
  grad = rows_contiguous(grad);
  const auto empty_like_q = [&] { return empty({q.size(0), q.size(1), q.size(2)}, q.scalar_type()); };
  Tensor grad_q = empty_like_q(), grad_k = empty_like_q(), grad_v = empty_like_q();
  VarlenAttentionBackward problem{};
  problem.forward = problem_of(q, k, v, cu_seqlens, scale, dropout_p, seed);
  problem.forward.out = out.data_ptr();
  problem.forward.lse = static_cast<float*>(lse.data_ptr());
  problem.grad = packed_view(grad, "grad");
  problem.grad_q = grad_q.data_ptr();
  problem.grad_k = grad_k.data_ptr();
  problem.grad_v = grad_v.data_ptr();
  BERTXFER_DISPATCH(varlen_attention_backward)(problem);
  return {grad_q, grad_k, grad_v};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, CPU, m) {
  m.impl("varlen_attention.cpp", TORCH_BOX(&varlen_attention_cpu));
  m.impl("varlen_attention_backward.cpp", TORCH_BOX(&varlen_attention_backward_cpu));
}

}  // namespace bertxfer
