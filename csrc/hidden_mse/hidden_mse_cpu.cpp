// CPU kernel of hidden_mse: the pass between the products, see hidden_mse.h.
#include <algorithm>
#include <type_traits>

#include "../common/cpu/parallel.h"
#include "../common/cpu/rows.h"
#include "hidden_mse.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

// float16 gradients wait in float32.
template <class T>
using Grad = std::conditional_t<std::is_same_v<T, f16>, float, T>;

template <class Student, class Teacher>
void run_block(const HiddenRows& p, const float* bias, int64_t block) {
  const int64_t first = block * kRowBlock, last = std::min(p.rows, first + kRowBlock);
  float* column_sums = p.column_sums == nullptr ? nullptr : p.column_sums + block * p.width;
  if (column_sums != nullptr) std::fill(column_sums, column_sums + p.width, 0.0f);
  double sum = 0.0;
  for (int64_t t = first; t < last; ++t) {
    const Student* student = static_cast<const Student*>(p.student) + t * p.student_stride;
    const Teacher* teacher = static_cast<const Teacher*>(p.teacher) + t * p.teacher_stride;
    Grad<Student>* grad = p.grad == nullptr ? nullptr : static_cast<Grad<Student>*>(p.grad) + t * p.width;
    Vector<float> squares = {};
    for_vectors(p.width, [&](int64_t d, int64_t n) BERTXFER_INLINE {
      const Vector<float> r = load_floats(student + d, n) + load_floats(bias + d, n) - load_floats(teacher + d, n);
      squares += r * r;
      if (grad != nullptr) store_floats(p.grad_scale * r, grad + d, n);
      if (column_sums != nullptr) store_floats(load_floats(column_sums + d, n) + p.grad_scale * r, column_sums + d, n);
    });
    sum += sum_of(squares);
  }
  p.losses[block] = sum;
}

}  // namespace

void hidden_mse(const HiddenRows& p) {
  const Scratch<float> bias = load_bias(p);
  with_dtype(p.student_dtype, [&](auto student_tag) {
    with_dtype(p.teacher_dtype, [&](auto teacher_tag) {
      for_each_item(p.blocks(), 4.0 * static_cast<double>(p.rows * p.width), [&] {
        return [&](int64_t block) { run_block<decltype(student_tag), decltype(teacher_tag)>(p, bias, block); };
      });
    });
  });
}

}  // namespace BERTXFER_ISA
}  // namespace bertxfer
