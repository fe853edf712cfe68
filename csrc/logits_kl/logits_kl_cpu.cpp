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

constexpr int64_t kItemElements = 8192;  // of the rows of a work item

// Replaces the -inf of masked classes, so that the difference of two of them is 0 and not NaN.
constexpr float kMaskedLogit = -1e30f;

constexpr float kExpUnderflow = -103.0f;  // below, e^x is 0 in float32

struct Range {
  float min, max;
};

// Writes (row + bias) / temperature to out [classes]; `bias` [classes] may be null.
template <class T>
Range load_logits(const T* row, const T* bias, int64_t classes, float inverse_temperature, float* out) {
  const Vector<float> floor = Vector<float>{} + kMaskedLogit;
  Vector<float> max = floor, negative_min = floor;
  for_vectors(classes, [&](int64_t j, int64_t n) BERTXFER_INLINE {
    Vector<float> x = load_floats(row + j, n);
    if (bias != nullptr) x += load_floats(bias + j, n);
    x = maximum(floor, x * inverse_temperature);  // NaN stays
    store_floats(x, out + j, n);
    // The first element fills an incomplete last vector because it changes neither minimum nor maximum.
    if (n < kLanes<float>) x = last_lanes_filled(x, n, x[0]);
    max = maximum(x, max);
    negative_min = maximum(-x, negative_min);
  });
  return {-max_of(negative_min), max_of(max)};
}

// A student's or teacher's logits.
struct Logits {
  const void* data;  // [rows, classes], row stride below
  Dtype dtype;
  int64_t stride;
  const void* bias;  // [classes] or null
};

Range load_logits(const Logits& logits, int64_t row, int64_t classes, float inverse_temperature, float* out) {
  Range range{};
  with_dtype(logits.dtype, [&](auto tag) {
    using T = decltype(tag);
    range = load_logits(static_cast<const T*>(logits.data) + row * logits.stride, static_cast<const T*>(logits.bias),
                        classes, inverse_temperature, out);
  });
  return range;
}

// Whether the student masks a class that the teacher gives any weight, which makes the divergence infinite.
bool is_infinite(const float* s, const float* t, int64_t classes, float max_t) {
  for (int64_t j = 0; j < classes; ++j) {
    if (s[j] <= kMaskedLogit && t[j] - max_t > kExpUnderflow) return true;
  }
  return false;
}

// Returns the divergence of one row, and turns its logits s [classes] into the gradient. `weights` is [2, ld].
double run_row(float* s, float* t, int64_t classes, Range range_s, Range range_t, float* weights, int64_t ld,
               bool need_grad, float grad_scale) {
  // A row whose classes are all masked has no softmax.
  const bool undefined = range_s.max <= kMaskedLogit || range_t.max <= kMaskedLogit;
  const bool infinite = range_s.min <= kMaskedLogit && is_infinite(s, t, classes, range_t.max);
  const SoftmaxRows row{s, t, ld, /*count=*/1, classes, /*scale_s=*/1.0f, /*scale_t=*/1.0f, weights, ld};
  SoftmaxSums sums;
  sums.shift_s[0] = range_s.max;
  sums.shift_t[0] = range_t.max;
  compute_weights(row, 0, 1, sums);
  const double loss = divergences(row, sums);
  if (need_grad) {
    const DivergenceGradient gradient(row, sums, 0, grad_scale);
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
    const Logits student{p.student, p.student_dtype, p.student_stride, p.bias_student};
    const Logits teacher{p.teacher, p.teacher_dtype, p.teacher_stride, p.bias_teacher};
    return [&p, student, teacher, rows_per_item, ld, scratch = Scratch<float>(4 * ld)](int64_t item) {
      float *s = scratch, *t = scratch + ld, *weights = scratch + 2 * ld;
      const int64_t last = std::min(p.rows, (item + 1) * rows_per_item);
      for (int64_t row = item * rows_per_item; row < last; ++row) {
        const Range range_s = load_logits(student, row, p.classes, p.inverse_temperature, s);
        const Range range_t = load_logits(teacher, row, p.classes, p.inverse_temperature, t);
        p.losses[row] = run_row(s, t, p.classes, range_s, range_t, weights, ld, p.grad != nullptr, p.grad_scale);
        if (p.grad != nullptr) store_rows(s, ld, 1, {p.grad, p.student_dtype, 1, p.classes}, 0, row);
      }
    };
  });
}

}  // namespace BERTXFER_ISA
}  // namespace bertxfer
