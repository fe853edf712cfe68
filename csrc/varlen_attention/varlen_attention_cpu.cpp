// CPU kernels of varlen_attention, see varlen_attention.h. One work item is one sequence and head, done by one thread.
#include <algorithm>

#include "../common/cpu/parallel.h"
#include "bf16_tiles.h"
#include "tiles.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

struct Extent {
  int64_t longest = 0;
  double pairs = 0.0;  // sum of length^2 over sequences and heads
};

Extent extent_of(const VarlenAttention& p) {
  Extent extent;
  for (int64_t n = 0; n < p.packing.sequences; ++n) {
    const int64_t length = p.packing.length(n);
    extent.longest = std::max(extent.longest, length);
    extent.pairs += static_cast<double>(length) * static_cast<double>(length * p.heads);
  }
  return extent;
}

template <class Kernel, class Problem>
void for_each_head(const Problem& problem, const VarlenAttention& p, double operations_per_pair) {
  const Extent extent = extent_of(p);
  if (extent.longest == 0) return;
  for_each_item(p.packing.sequences * p.heads, extent.pairs * operations_per_pair, [&] {
    return [&p, kernel = Kernel(problem, extent.longest)](int64_t item) mutable {
      const int64_t n = item / p.heads;
      if (p.packing.length(n) > 0) kernel.run(item % p.heads, p.packing.start(n), p.packing.length(n));
    };
  });
}

template <class Kernel, class Problem>
void for_each_group(const Problem& problem, const VarlenAttention& p, double operations_per_pair) {
  const GroupPlan groups(p.packing, p.heads, Kernel::group_bytes(p.q.dim));
  for_each_item(static_cast<int64_t>(groups.all.size()), extent_of(p).pairs * operations_per_pair, [&] {
    return [&, kernel = Kernel(problem, groups)](int64_t item) mutable { kernel.run(groups.all[item]); };
  });
}

}  // namespace

void varlen_attention(const VarlenAttention& p) {
  const double operations = 2.0 * static_cast<double>(p.q.dim);
#if defined(BERTXFER_BF16_GEMM)
  if (all_bf16(p.q, p.k, p.v)) return for_each_group<Bf16Forward>(p, p, operations);
#endif
  for_each_head<Forward>(p, p, operations);
}

void varlen_attention_backward(const VarlenAttentionBackward& p) {
  const double operations = 5.0 * static_cast<double>(p.forward.q.dim);
#if defined(BERTXFER_BF16_GEMM)
  if (all_bf16(p.forward.q, p.forward.k, p.forward.v, p.grad)) {
    return for_each_group<Bf16Backward>(p, p.forward, operations);
  }
#endif
  for_each_head<Backward>(p, p.forward, operations);
}

}  // namespace BERTXFER_ISA
}  // namespace bertxfer
