// The two Gram matrices of attention_score_mse's linear method, A^T A and B^T B with A = [Qs, Qt] and B = [Ks, Kt], and
// what is made of them: the loss, and the right factors of the gradients. See attention_score_mse.h for the math.
#pragma once

#include <algorithm>

#include "../common/cpu/gemm.h"
#include "pair_rows.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

// G (+)= X^T X for `count` rows of X, upper triangle by blocks of rows (what lies left of a block stays unset).
template <class T>
void add_gram(const T* x, int64_t count, int64_t columns, T* gram, bool accumulate, Ahead* ahead = nullptr) {
  constexpr int64_t kBlock = 16;  // a multiple of every vector's lanes
  for (int64_t i = 0; i < columns; i += kBlock) {
    const int64_t rows = std::min(kBlock, columns - i);
    gemm<T>(rows, columns - i, count, x + i, 1, columns, x + i, columns, gram + i * columns + i, columns, accumulate,
            ahead);
  }
}

// A sum of products of float32 or float64 numbers in float64, a whole vector of columns at a time.
class WideSum {
 public:
  static constexpr int64_t W = kLanes<double>;

  // Columns first..last-1.
  template <class T>
  void add(const T* a, const T* b, int64_t first, int64_t last) {
    int64_t j = first;
    for (; j + 2 * W <= last; j += 2 * W) {
      even_ += load_doubles(a + j) * load_doubles(b + j);
      odd_ += load_doubles(a + j + W) * load_doubles(b + j + W);
    }
    for (; j < last; j += W) even_ += load_doubles(a + j) * load_doubles(b + j);
  }

  double total() const {
    const Vector<double> sum = even_ + odd_;
    double total = 0.0;
    for (int l = 0; l < W; ++l) total += sum[l];
    return total;
  }

 private:
  Vector<double> even_ = {}, odd_ = {};
};

class GramPair {
 public:
  // Matrices of `columns` rows and columns; the student's come first, the teacher's start at `teacher_at`.
  GramPair(const AttentionScoreMse& problem, int64_t teacher_at, int64_t columns)
      : p_(problem),
        ds_(p_.q_student.dim),
        dt_(p_.q_teacher.dim),
        teacher_at_(teacher_at),
        columns_(columns),
        a_(columns * columns),
        b_(columns * columns) {}

  void clear() { narrow_a_ = narrow_b_ = nullptr, any_ = false; }

  // Adds the upper triangles of float32 partial sums. If the only ones are also the last, they are read where they are.
  void add(const float* gram_a, const float* gram_b, bool last) {
    const bool accumulate = any_;
    any_ = true;
    if (last && !accumulate) {
      narrow_a_ = gram_a, narrow_b_ = gram_b;
      return;
    }
    for (int64_t i = 0; i < teacher_at_ + dt_; ++i) {
      const int64_t first = i * columns_ + i / kLanes<float> * kLanes<float>, last = (i + 1) * columns_;
      if (accumulate) {
#pragma omp simd
        for (int64_t j = first; j < last; ++j) {
          a_[j] += gram_a[j];
          b_[j] += gram_b[j];
        }
      } else {
#pragma omp simd
        for (int64_t j = first; j < last; ++j) {
          a_[j] = gram_a[j];
          b_[j] = gram_b[j];
        }
      }
    }
  }

  // ||S - T||^2 of the head whose float32 partial sums were added here. Too small beside ||S||^2 + ||T||^2 to have its
  // digits (or NaN) it makes the matrices again, exactly.
  double sum_of_squares(int64_t head, int64_t length) {
    bool exact = true;
    double sum =
        narrow_a_ != nullptr ? inner_product(narrow_a_, narrow_b_, exact) : inner_product<double>(a_, b_, exact);
    if (exact) return sum;
    fill_exactly(head, length);
    sum = inner_product<double>(a_, b_, exact);
    return sum < 0.0 ? 0.0 : sum;
  }

  // Right factors [columns, ds] of dQs = A right_factor_q and dKs = B right_factor_k: 2 stored_scale ss sigma_i G_ij,
  // with sigma = (ss.., -st..). write(i, j, x, y) gets a vector of row i from column j on, and of row i + 1.
  template <class Write>
  void make_right_factors(const Write& write_q, const Write& write_k) const {
    if (narrow_a_ != nullptr) {
      make_right_factor(narrow_b_, write_q);
      make_right_factor(narrow_a_, write_k);
    } else {
      make_right_factor<double>(b_, write_q);
      make_right_factor<double>(a_, write_k);
    }
  }

 private:
  static constexpr int64_t kExactTokens = 128;
  static constexpr double kCancellation = 1e-2;

  // Both matrices from the tensors in float64, where products of float32 numbers are exact.
  void fill_exactly(int64_t head, int64_t length) {
    clear();
    Scratch<float> rows(kExactTokens * columns_);
    Scratch<double> wide_rows(kExactTokens * columns_);
    for (int64_t start = 0; start < length; start += kExactTokens) {
      const int64_t count = std::min(kExactTokens, length - start);
      load_pair(p_.q_student, p_.q_teacher, head, start, count, rows, teacher_at_, columns_);
      std::copy(rows.get(), rows + count * columns_, wide_rows.get());
      add_gram<double>(wide_rows, count, columns_, a_, start > 0);
      load_pair(p_.k_student, p_.k_teacher, head, start, count, rows, teacher_at_, columns_);
      std::copy(rows.get(), rows + count * columns_, wide_rows.get());
      add_gram<double>(wide_rows, count, columns_, b_, start > 0);
    }
  }

  // <A^T A, B^T B> with the signs and scales of A's columns; `exact`: whether float32 sums hold its digits.
  template <class T>
  double inner_product(const T* gram_a, const T* gram_b, bool& exact) const {
    const int64_t end = teacher_at_ + dt_;
    const double student = square(gram_a, gram_b, 0, ds_), teacher = square(gram_a, gram_b, teacher_at_, end);
    const double cross = 2.0 * rectangle(gram_a, gram_b, 0, ds_, teacher_at_, end);
    const double ss = p_.scale_student, st = p_.scale_teacher;
    const double norms = ss * ss * student + st * st * teacher, sum = norms - ss * st * cross;
    exact = sum > kCancellation * norms;
    return sum;
  }

  // The sum of a_ij b_ij over rows and columns first..last-1, of both of which only the blocks on and right of the
  // diagonal are there. `first` is a whole number of float32 vectors; columns that fill up the last one are zeros.
  template <class T>
  double square(const T* a, const T* b, int64_t first, int64_t last) const {
    constexpr int64_t kBlock = kLanes<float>;
    WideSum on, right;
    for (int64_t block = first; block < last; block += kBlock) {
      for (int64_t i = block; i < std::min(block + kBlock, last); ++i) {
        on.add(a + i * columns_, b + i * columns_, block, block + kBlock);
        right.add(a + i * columns_, b + i * columns_, block + kBlock, last);
      }
    }
    return on.total() + 2.0 * right.total();
  }

  // The same of rows first..last-1 and columns left..right-1.
  template <class T>
  double rectangle(const T* a, const T* b, int64_t first, int64_t last, int64_t left, int64_t right) const {
    WideSum sum;
    for (int64_t i = first; i < last; ++i) sum.add(a + i * columns_, b + i * columns_, left, right);
    return sum.total();
  }

  // Fills what lies left of the diagonal from what lies right of it.
  static void mirror(Vector<float>* square) {
    constexpr int W = kLanes<float>;
    Vector<float> mirrored[W];
    Vector<int32_t> column;
    for (int l = 0; l < W; ++l) mirrored[l] = square[l], column[l] = l;
    transpose(mirrored);
    for (int k = 0; k < W; ++k) square[k] = column < k ? mirrored[k] : square[k];
  }

  // scale sigma_i G_ij, square by square: those right of the diagonal are there, those left of it are their mirror
  // images, and those on it are both.
  template <class T, class Write>
  void make_right_factor(const T* gram, const Write& write) const {
    constexpr int64_t W = kLanes<float>;
    const double scale = 2.0 * p_.stored_scale * p_.scale_student;
    for (int64_t i0 = 0; i0 < columns_; i0 += W) {
      const T sigma = static_cast<T>(scale * (i0 < teacher_at_ ? p_.scale_student : -p_.scale_teacher));
      for (int64_t j0 = 0; j0 < teacher_at_; j0 += W) {
        Vector<float> square[W];
        for (int64_t k = 0; k < W; ++k) {
          const T* row = i0 < j0 ? gram + (i0 + k) * columns_ + j0 : gram + (j0 + k) * columns_ + i0;
          for (int64_t l = 0; l < W; ++l) square[k][l] = static_cast<float>(sigma * row[l]);
        }
        if (i0 > j0) transpose(square);
        if (i0 == j0) mirror(square);
        for (int64_t k = 0; k < W; k += 2) write(i0 + k, j0, square[k], square[k + 1]);
      }
    }
  }

  const AttentionScoreMse& p_;
  const int64_t ds_, dt_, teacher_at_, columns_;
  Scratch<double> a_, b_;                                  // [columns, columns], upper triangles
  const float *narrow_a_ = nullptr, *narrow_b_ = nullptr;  // the same in float32, where they are all there is
  bool any_ = false;
};

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
