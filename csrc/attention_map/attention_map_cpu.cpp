// CPU kernel of attention_map: see attention_map.h for the math. One work item is one sequence and head, done by
// one thread, so results do not depend on the number of threads.
#include <algorithm>

#include "../common/parallel.h"
#include "attention_map.h"
#include "bf16_strips.h"
#include "strips.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

template <class Kernel>
void for_each_head(const AttentionMap& p) {
  int64_t longest = 1;
  double operations = 0.0;
  for (int64_t n = 0; n < p.packing.sequences; ++n) {
    const int64_t used = p.packing.used(n);
    longest = std::max(longest, used);
    operations +=
        static_cast<double>(used) * static_cast<double>(used * p.heads * (3 * p.q_student.dim + p.q_teacher.dim));
  }
  const auto make_worker = [&] {
    return [&p, kernel = Kernel(p, longest)](int64_t item) mutable {
      const int64_t n = item / p.heads, head = item % p.heads;
      const int64_t first = p.packing.start(n), used = p.packing.used(n);
      p.sums[item] = used == 0 ? 0.0 : kernel.run(head, first, used);
      if (!p.need_grad) return;
      for (void* grad : {p.grad_q, p.grad_k}) {
        if (grad == nullptr) continue;
        store_zero_rows(p.packing.length(n) - used, grad, p.q_student.dtype, p.heads, head, first + used,
                        p.q_student.dim);
      }
    };
  };
  for_each_item(p.packing.sequences * p.heads, operations, make_worker, p.heads);
}

}  // namespace

void attention_map(const AttentionMap& p) {
#if defined(BERTXFER_BF16_GEMM)
  const bool bf16_only = p.q_student.dtype == Dtype::bf16 && p.k_student.dtype == Dtype::bf16 &&
                         p.q_teacher.dtype == Dtype::bf16 && p.k_teacher.dtype == Dtype::bf16;
  if (bf16_only) return for_each_head<Bf16Strips>(p);
#endif
  for_each_head<Strips>(p);
}

}  // namespace BERTXFER_ISA
}  // namespace bertxfer
