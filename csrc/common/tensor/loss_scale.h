// How a sum of terms becomes a loss, and in which dtype its gradient is stored.
//
//   loss = loss_scale sum    d(loss) = loss_scale d(sum)
//
// Operators return the gradient of the loss and a factor that the backward pass multiplies it by (scale_grad.h): 1, but
// for logits_kl. float16 gradients wait in float32 (stored_dtype), because a loss scale may be what brings them into
// float16's range.
#pragma once

#include <string>
#include <vector>

#include "checks.h"

namespace bertxfer {

// 1 for a sum, 1 / terms for a mean, which the operator calls `mean_name`; the mean of no terms is 0.
inline double loss_scale_of(const std::string& reduction, double terms, const char* mean_name = "mean") {
  STD_TORCH_CHECK(reduction == mean_name || reduction == "sum", "reduction: got '", reduction, "', want '", mean_name,
                  "' or 'sum'");
  return reduction == "sum" ? 1.0 : terms > 0 ? 1.0 / terms : 0.0;
}

// The dtype in which the gradient of a tensor of `dtype` waits for the backward pass.
inline ScalarType stored_dtype(ScalarType dtype) {
  return dtype == ScalarType::Half ? ScalarType::Float : dtype;
}

// The sum of partial losses in their order, so that it does not depend on the number of threads.
inline double sum_of(const std::vector<double>& losses) {
  double total = 0.0;
  for (double loss : losses) total += loss;
  return total;
}

// Rows of the attention maps of all sequences and heads.
inline double map_row_count(const Packing& packing, int64_t heads) {
  double rows = 0.0;
  for (int64_t n = 0; n < packing.sequences; ++n) rows += static_cast<double>(heads * packing.used(n));
  return rows;
}

// Entries of the attention maps of all sequences and heads.
inline double map_entry_count(const Packing& packing, int64_t heads) {
  double entries = 0.0;
  for (int64_t n = 0; n < packing.sequences; ++n) {
    const double used = static_cast<double>(packing.used(n));
    entries += static_cast<double>(heads) * used * used;
  }
  return entries;
}

}  // namespace bertxfer
