// How a sum of terms becomes a loss, and how much of its gradient is stored.
//
//   loss = loss_scale sum    stored gradient = grad_scale d(sum)    d(loss) = factor (stored gradient)
//
// Operators return the stored gradient and `factor`; the backward pass multiplies them (scale_grad.h).
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

// What a kernel multiplies d(sum) by before it stores it. Dtypes with float32's range store the gradient of the loss
// itself, so that a backward pass with nothing in front of the loss has nothing to do. float16 stores `safe` times
// d(sum), which stays inside its range, unless the loss asks for more.
inline float grad_scale_of(ScalarType dtype, double loss_scale, double safe) {
  const bool whole = dtype != ScalarType::Half || loss_scale >= safe;
  return static_cast<float>(whole ? loss_scale : safe);
}

// `factor`, a float32 scalar.
inline Tensor remaining_factor(double loss_scale, float grad_scale) {
  return scalar(static_cast<float>(loss_scale) == grad_scale ? 1.0 : loss_scale / grad_scale);
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
