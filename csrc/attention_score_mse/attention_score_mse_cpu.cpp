// CPU kernel of attention_score_mse: see attention_score_mse.h for the math. One work item is one sequence
// and head, done by one thread, so results do not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <memory>

#include "../common/cpu/head_groups.h"
#include "attention_score_mse.h"
#include "bf16_gram.h"
#include "gram.h"
#include "tiled.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

constexpr CopyPlan kCopyPlan{400 * 1024, 2, /*apart=*/false};

// The length from which on Gram matrices are faster than tiles. Tiles do L^2 (D + 2 ds) multiply-adds, Gram matrices
// 1.2 L D^2 + 2 L D ds, and a fixed share beside, hence the 1.13 (docs/kernels.md).
int64_t crossover(const AttentionScoreMse& p) {
  const double ds = static_cast<double>(p.q_student.dim), depth = ds + static_cast<double>(p.q_teacher.dim);
  const double gradient = p.grad_q != nullptr ? 2.0 * ds : 0.0;
  return static_cast<int64_t>(1.13 * (1.2 * depth * depth + gradient * depth) / (depth + gradient));
}

// The same on bfloat16 units, where Gram matrices cost little but what is done once for them, D^2 (docs/kernels.md).
[[maybe_unused]] int64_t bf16_crossover(const AttentionScoreMse& p) {
  const double ds = static_cast<double>(p.q_student.dim), depth = ds + static_cast<double>(p.q_teacher.dim);
  const double gradient = p.grad_q != nullptr ? 2.0 * ds : 0.0;
  return static_cast<int64_t>(depth * std::sqrt(37.0 / (depth + gradient)));
}

// Either kernel, by the length of the sequence.
template <class GramKernel>
class Kernels {
 public:
  // Sequences shorter than `limit` go by tiles.
  Kernels(const GroupRows<AttentionScoreMse>& rows, int64_t limit, int64_t longest_tiled, int64_t longest_gram,
          Ahead& ahead)
      : limit_(limit),
        tiled_(longest_tiled > 0 ? std::make_unique<Tiled>(rows, longest_tiled, ahead) : nullptr),
        gram_(longest_gram > 0 ? std::make_unique<GramKernel>(rows, longest_gram, ahead) : nullptr) {}

  double run(int64_t head, int64_t length) {
    return length < limit_ ? tiled_->run(head, length) : gram_->run(head, length);
  }

 private:
  const int64_t limit_;
  const std::unique_ptr<Tiled> tiled_;
  const std::unique_ptr<GramKernel> gram_;
};

template <class GramKernel>
void run_all(const AttentionScoreMse& p, int64_t limit) {
  int64_t longest_tiled = 0, longest_gram = 0;
  double operations = 0.0;
  for (int64_t n = 0; n < p.packing.sequences; ++n) {
    const int64_t used = p.packing.used(n);
    int64_t& longest = used < limit ? longest_tiled : longest_gram;
    longest = std::max(longest, used);
    const double depth = static_cast<double>(p.q_student.dim + p.q_teacher.dim);
    operations += static_cast<double>(p.heads * used) * depth * static_cast<double>(used < limit ? 2 * used : 100);
  }
  for_each_head(p, kCopyPlan, operations, [&](const GroupRows<AttentionScoreMse>& rows, Ahead& ahead) {
    return Kernels<GramKernel>(rows, limit, longest_tiled, longest_gram, ahead);
  });
}

}  // namespace

void attention_score_mse(const AttentionScoreMse& p) {
  using Method = AttentionScoreMse::Method;
  const auto limit = [&p](int64_t automatic) {
    return p.method == Method::gram ? 0 : p.method == Method::tiled ? INT64_MAX : automatic;
  };
#if defined(BERTXFER_BF16_GEMM)
  if (all_bf16(p.q_student, p.k_student, p.q_teacher, p.k_teacher))
    return run_all<Bf16Gram>(p, limit(bf16_crossover(p)));
#endif
  run_all<Gram>(p, limit(crossover(p)));
}

}  // namespace BERTXFER_ISA
}  // namespace bertxfer
