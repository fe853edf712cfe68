// CPU kernel of logits_kl, see logits_kl.h. One work item is a block of rows.
#include <algorithm>
#include <limits>

#include "../common/cpu/parallel.h"
#include "../common/cpu/rows.h"
#include "../common/cpu/softmax_rows.h"
#include "logits_kl.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

constexpr int64_t kItemElements = 8192;  // a work item is as many rows as hold about so many numbers
// Stands for -inf, which masked classes have: differences of two of them are 0 and not NaN.
constexpr float kLowest = -1e30f;

constexpr float kVanishes = -103.0f;  // below, e^x is 0 in float32

struct Range {
  float lowest, highest;
};

// out = (row + bias) / temperature
template <class T>
Range load_logits(const T* row, const T* bias, int64_t classes, float inverse_temperature, float* out) {
  const Vector<float> floor = Vector<float>{} + kLowest;
  Vector<float> highest = floor, least = floor;  // `least` is the highest of -x
  for_vectors(classes, [&](int64_t j, int64_t n) BERTXFER_INLINE {
    Vector<float> x = load_floats(row + j, n);
    if (bias != nullptr) x += load_floats(bias + j, n);
    x = larger(floor, x * inverse_temperature);  // NaN stays
    store_floats(x, out + j, n);
    // An incomplete last vector repeats its first number where it has none.
    if (n < kLanes<float>) x = last_lanes_filled(x, n, x[0]);
    highest = larger(x, highest);
    least = larger(-x, least);
  });
  return {-highest_of(least), highest_of(highest)};
}

Range load_logits(const void* data, Dtype dtype, int64_t row, int64_t stride, const void* bias, int64_t classes,
                  float inverse_temperature, float* out) {
  Range range{};
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    range = load_logits(static_cast<const T*>(data) + row * stride, static_cast<const T*>(bias), classes,
                        inverse_temperature, out);
  });
  return range;
}

// Whether the student rules out (s at kLowest) a class that the teacher gives any weight: the divergence is infinite.
bool contradicts(const float* s, const float* t, int64_t classes, float highest_t) {
  for (int64_t j = 0; j < classes; ++j) {
    if (s[j] <= kLowest && t[j] - highest_t > kVanishes) return true;
  }
  return false;
}

// The divergence of one row; leaves the gradient in s.
double run_row(float* s, float* t, int64_t classes, Range range_s, Range range_t, float* weights, int64_t ld,
               bool need_grad) {
  // A row in which no class is possible has no softmax.
  const bool undefined = range_s.highest <= kLowest || range_t.highest <= kLowest;
  const bool infinite = range_s.lowest <= kLowest && contradicts(s, t, classes, range_t.highest);
  const RowPairs row{s, t, ld, /*count=*/1, classes, /*scale_s=*/1.0f, /*scale_t=*/1.0f, weights, ld};
  RowSums sums;
  sums.base_s[0] = range_s.highest;
  sums.base_t[0] = range_t.highest;
  weigh(row, 0, 1, sums);
  const double loss = divergences(row, sums);
  if (need_grad) {
    const DivergenceGradient gradient(row, sums, 0, 1.0f);
    for_vectors(classes, [&](int64_t j, int64_t) BERTXFER_INLINE { store(gradient(j), s + j); });
  }
  if (!undefined) return infinite && loss == loss ? std::numeric_limits<double>::infinity() : loss;
  std::fill(s, s + classes, std::numeric_limits<float>::quiet_NaN());
  return std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

void logits_kl(const LogitsKl& p) {
  const int64_t rows_per_item = std::max<int64_t>(1, kItemElements / std::max<int64_t>(1, p.classes));
  const int64_t ld = padded(p.classes);
  const double operations = 40.0 * static_cast<double>(p.rows) * static_cast<double>(p.classes);
  for_each_item((p.rows + rows_per_item - 1) / rows_per_item, operations, [&] {
    return [&p, rows_per_item, ld, scratch = Scratch<float>(4 * ld)](int64_t item) {
      float *s = scratch, *t = scratch + ld, *weights = scratch + 2 * ld;
      const int64_t last = std::min(p.rows, (item + 1) * rows_per_item);
      for (int64_t row = item * rows_per_item; row < last; ++row) {
        const Range range_s = load_logits(p.student, p.student_dtype, row, p.student_stride, p.bias_student, p.classes,
                                          p.inverse_temperature, s);
        const Range range_t = load_logits(p.teacher, p.teacher_dtype, row, p.teacher_stride, p.bias_teacher, p.classes,
                                          p.inverse_temperature, t);
        p.sums[row] = run_row(s, t, p.classes, range_s, range_t, weights, ld, p.grad != nullptr);
        if (p.grad != nullptr) store_rows(s, ld, 1, p.grad, p.student_dtype, 1, 0, row, p.classes);
      }
    };
  });
}

}  // namespace BERTXFER_ISA
}  // namespace bertxfer
