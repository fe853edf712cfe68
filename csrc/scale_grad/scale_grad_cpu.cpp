// CPU kernel of scale_grad.
#include <algorithm>

#include "../common/cpu/parallel.h"
#include "../common/cpu/vec.h"
#include "scale_grad.h"

namespace bertxfer {
namespace BERTXFER_ISA {

void scale_grad(const ScaleGrad& p) {
  constexpr int64_t kBlock = 16384;
  with_dtype(p.grad_dtype, [&](auto in_tag) {
    with_dtype(p.out_dtype, [&](auto out_tag) {
      using In = decltype(in_tag);
      using Out = decltype(out_tag);
      const In* grad = static_cast<const In*>(p.grad);
      Out* out = static_cast<Out*>(p.out);
      for_each_item((p.size + kBlock - 1) / kBlock, 4.0 * static_cast<double>(p.size), [&] {
        return [&](int64_t block) {
          const int64_t end = std::min(p.size, (block + 1) * kBlock);
#pragma omp simd
          for (int64_t i = block * kBlock; i < end; ++i) from_float(to_float(grad[i]) * p.scale, out[i]);
        };
      });
    });
  });
}

}  // namespace BERTXFER_ISA
}  // namespace bertxfer
