// CPU kernel of attention_map: see attention_map.h for the math. One work item is one sequence and head, done by
// one thread, so results do not depend on the number of threads.
#include <algorithm>

#include "../common/cpu/head_groups.h"
#include "attention_map.h"
#include "bf16_strips.h"
#include "strips.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

template <class Kernel>
void run_all(const AttentionMap& p) {
  int64_t longest = 1;
  double operations = 0.0;
  for (int64_t n = 0; n < p.packing.sequences; ++n) {
    const int64_t used = p.packing.used(n);
    longest = std::max(longest, used);
    operations +=
        static_cast<double>(used) * static_cast<double>(used * p.heads * (3 * p.q_student.dim + p.q_teacher.dim));
  }
  for_each_head(p, Kernel::kCopyPlan, operations,
                [&](const GroupRows<AttentionMap>& rows, Ahead& ahead) { return Kernel(rows, longest, ahead); });
}

}  // namespace

void attention_map(const AttentionMap& p) {
#if defined(BERTXFER_BF16_GEMM)
  if (all_bf16(p.q_student, p.k_student, p.q_teacher, p.k_teacher)) return run_all<Bf16Strips>(p);
#endif
  run_all<Strips>(p);
}

}  // namespace BERTXFER_ISA
}  // namespace bertxfer
