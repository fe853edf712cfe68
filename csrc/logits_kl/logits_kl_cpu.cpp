// CPU kernel of logits_kl, see logits_kl.h. One work item is a block of rows.
#include <algorithm>
#include <limits>

#include "../common/kl_row.h"
#include "../common/parallel.h"
#include "../common/vec.h"
#include "logits_kl.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

constexpr int64_t kItemElements = 8192;  // a work item is as many rows as hold about so many numbers
// Stands for -inf, which masked classes have: differences of two of them are 0 and not NaN.
constexpr float kLowest = -1e30f;
constexpr double kInfinite = 1e20;  // no divergence of finite logits is as large; one with kLowest in it is

// out = (row + bias) / temperature; returns the highest entry
template <class T>
float load_logits(const T* row, const T* bias, int64_t classes, float inverse_temperature, float* out) {
  float highest = kLowest;
#pragma omp simd reduction(max : highest)
  for (int64_t j = 0; j < classes; ++j) {
    float x = to_float(row[j]);
    if (bias != nullptr) x += to_float(bias[j]);
    x *= inverse_temperature;
    x = x < kLowest ? kLowest : x;
    out[j] = x;
    highest = x > highest ? x : highest;
  }
  return highest;
}

float load_logits(const void* data, Dtype dtype, int64_t row, int64_t stride, const void* bias, int64_t classes,
                  float inverse_temperature, float* out) {
  float highest = 0.0f;
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    highest = load_logits(static_cast<const T*>(data) + row * stride, static_cast<const T*>(bias), classes,
                          inverse_temperature, out);
  });
  return highest;
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
        const float highest_s = load_logits(p.student, p.student_dtype, row, p.student_stride, p.bias_student,
                                            p.classes, p.inverse_temperature, s);
        const float highest_t = load_logits(p.teacher, p.teacher_dtype, row, p.teacher_stride, p.bias_teacher,
                                            p.classes, p.inverse_temperature, t);
        const double loss = kl_row(s, t, p.classes, highest_s, highest_t, weights, ld, p.grad == nullptr ? 0.0f : 1.0f);
        p.sums[row] = loss > kInfinite ? std::numeric_limits<double>::infinity() : loss;
        if (p.grad != nullptr) store_rows(s, ld, 1, p.grad, p.student_dtype, 1, 0, row, p.classes);
      }
    };
  });
}

}  // namespace BERTXFER_ISA
}  // namespace bertxfer
