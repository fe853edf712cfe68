// CPU kernel of hidden_cosine: the pass between the products, see hidden_cosine.h.
#include <algorithm>
#include <cmath>

#include "../common/cpu/parallel.h"
#include "../common/cpu/rows.h"
#include "hidden_cosine.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

constexpr float kEpsilon = 1e-8f;

float norm(const float* x, int64_t size) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += x[i] * x[i];
  return std::sqrt(sum);
}

// Returns the loss of one row, and turns `student` [width] into its gradient and `teacher` [width] into scratch.
double run_row(float* student, float* teacher, int64_t width, float grad_scale) {
  const float norm_student = norm(student, width), norm_teacher = norm(teacher, width);
  const bool degenerate = (norm_student < kEpsilon) | (norm_teacher < kEpsilon);
  const float inverse_s = 1.0f / (norm_student < kEpsilon ? kEpsilon : norm_student);
  const float inverse_t = 1.0f / (norm_teacher < kEpsilon ? kEpsilon : norm_teacher);
  float square = 0.0f, dot = 0.0f;
#pragma omp simd reduction(+ : square, dot)
  for (int64_t d = 0; d < width; ++d) {
    student[d] *= inverse_s;
    teacher[d] = teacher[d] * inverse_t - student[d];  // v - u
    square += teacher[d] * teacher[d];
    dot += (teacher[d] + student[d]) * student[d];
  }
  const float loss = degenerate ? 1.0f - dot : 0.5f * square;
#pragma omp simd
  for (int64_t d = 0; d < width; ++d) student[d] = -grad_scale * inverse_s * (teacher[d] + loss * student[d]);
  return loss;
}

}  // namespace

void hidden_cosine(const HiddenRows& p) {
  const Scratch<float> bias = load_bias(p);
  const int64_t width = p.width;
  for_each_item(p.blocks(), 10.0 * static_cast<double>(p.rows * width), [&] {
    return [&, rows = Scratch<float>(2 * width)](int64_t block) {
      float *student = rows, *teacher = rows + width;
      float* column_sums = p.column_sums == nullptr ? nullptr : p.column_sums + block * width;
      if (column_sums != nullptr) std::fill(column_sums, column_sums + width, 0.0f);
      double sum = 0.0;
      for (int64_t t = block * kRowBlock; t < std::min(p.rows, (block + 1) * kRowBlock); ++t) {
        load_rows({p.student, p.student_dtype, p.student_stride, 0, width}, 0, t, 1, student, width, width);
        load_rows({p.teacher, p.teacher_dtype, p.teacher_stride, 0, width}, 0, t, 1, teacher, width, width);
        for (int64_t d = 0; d < width; ++d) student[d] += bias[d];
        sum += run_row(student, teacher, width, p.grad_scale);
        if (p.grad == nullptr) continue;
        store_rows(student, width, 1, {p.grad, p.grad_dtype, 1, width}, 0, t);
        for (int64_t d = 0; column_sums != nullptr && d < width; ++d) column_sums[d] += student[d];
      }
      p.losses[block] = sum;
    };
  });
}

}  // namespace BERTXFER_ISA
}  // namespace bertxfer
