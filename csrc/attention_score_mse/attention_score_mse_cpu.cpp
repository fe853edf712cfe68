// CPU kernel of attention_score_mse: see attention_score_mse.h for the math. One work item is one sequence
// and head, done by one thread, so results do not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <memory>

#include "../common/parallel.h"
#include "attention_score_mse.h"
#include "bf16_gram.h"
#include "gram.h"
#include "tiled.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

// The length from which on Gram matrices are faster than tiles. Tiles do L^2 (D + 2 ds) multiply-adds, Gram matrices
// 1.2 L D^2 + 2 L D ds, and a fixed share beside: 1.4 was measured at 26/64 (about 145 tokens).
int64_t crossover(const AttentionScoreMse& p) {
  const double ds = static_cast<double>(p.q_student.dim), depth = ds + static_cast<double>(p.q_teacher.dim);
  const double gradient = p.grad_q != nullptr ? 2.0 * ds : 0.0;
  return static_cast<int64_t>(1.4 * (1.2 * depth * depth + gradient * depth) / (depth + gradient));
}

// The same on bfloat16 units, where Gram matrices cost little but what is done once for them, D^2 (measured at 26/64:
// 96 tokens).
[[maybe_unused]] int64_t bf16_crossover(const AttentionScoreMse& p) {
  const double ds = static_cast<double>(p.q_student.dim), depth = ds + static_cast<double>(p.q_teacher.dim);
  const double gradient = p.grad_q != nullptr ? 2.0 * ds : 0.0;
  return static_cast<int64_t>(depth * std::sqrt(160.0 / (depth + gradient)));
}

template <class GramKernel>
struct Worker {
  const AttentionScoreMse& p;
  int64_t limit;  // sequences shorter than this go by tiles
  std::unique_ptr<Tiled> tiled;
  std::unique_ptr<GramKernel> gram;

  void operator()(int64_t item) {
    const int64_t n = item / p.heads, head = item % p.heads;
    const int64_t first = p.packing.start(n), used = p.packing.used(n);
    p.sums[item] = used == 0 ? 0.0 : used < limit ? tiled->run(head, first, used) : gram->run(head, first, used);
    if (p.grad_q == nullptr) return;
    const int64_t rest = p.packing.length(n) - used;
    store_zero_rows(rest, p.grad_q, p.q_student.dtype, p.heads, head, first + used, p.q_student.dim);
    store_zero_rows(rest, p.grad_k, p.q_student.dtype, p.heads, head, first + used, p.q_student.dim);
  }
};

template <class GramKernel>
void for_each_head(const AttentionScoreMse& p, int64_t limit) {
  int64_t longest_tiled = 0, longest_gram = 0;
  double operations = 0.0;
  for (int64_t n = 0; n < p.packing.sequences; ++n) {
    const int64_t used = p.packing.used(n);
    int64_t& longest = used < limit ? longest_tiled : longest_gram;
    longest = std::max(longest, used);
    const double depth = static_cast<double>(p.q_student.dim + p.q_teacher.dim);
    operations += static_cast<double>(p.heads * used) * depth * static_cast<double>(used < limit ? 2 * used : 100);
  }
  const auto make_worker = [&] {
    return Worker<GramKernel>{p, limit, longest_tiled > 0 ? std::make_unique<Tiled>(p, longest_tiled) : nullptr,
                              longest_gram > 0 ? std::make_unique<GramKernel>(p, longest_gram) : nullptr};
  };
  for_each_item(p.packing.sequences * p.heads, operations, make_worker, p.heads);
}

}  // namespace

void attention_score_mse(const AttentionScoreMse& p) {
  using Method = AttentionScoreMse::Method;
  const auto limit = [&p](int64_t automatic) {
    return p.method == Method::gram ? 0 : p.method == Method::tiled ? INT64_MAX : automatic;
  };
#if defined(BERTXFER_BF16_GEMM)
  const bool bf16_only = p.q_student.dtype == Dtype::bf16 && p.k_student.dtype == Dtype::bf16 &&
                         p.q_teacher.dtype == Dtype::bf16 && p.k_teacher.dtype == Dtype::bf16;
  if (bf16_only) return for_each_head<Bf16Gram>(p, limit(bf16_crossover(p)));
#endif
  for_each_head<Gram>(p, limit(crossover(p)));
}

}  // namespace BERTXFER_ISA
}  // namespace bertxfer
