// The two Gram matrices of attention_score_mse's linear method, A^T A and B^T B with A = [Qs, Qt] and B = [Ks, Kt], and
// what is made of them: the loss, and the right factors of the gradients. See attention_score_mse.h for the math.
#pragma once

#include <algorithm>

#include "../common/ahead.h"
#include "../common/gemm.h"
#include "../common/rows.h"
#include "attention_score_mse.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

// Two tensors' rows side by side as floats, each filled up with zeros: the second starts at column `second_at`, a whole
// number of vectors (right behind the first, stores that overlap took up to
// three times as long), and ends by `columns`.
inline void load_pair(const PackedView& one, const PackedView& second, int64_t head, int64_t first, int64_t count,
                      float* out, int64_t second_at, int64_t columns) {
  load_rows(one, head, first, count, out, columns, second_at);
  load_rows(second, head, first, count, out + second_at, columns, columns - second_at);
}

// What the next head will read, and this one will write.
inline void look_ahead(const AttentionScoreMse& p, int64_t head, int64_t first, int64_t length, Ahead& ahead) {
  ahead.clear();
  if (p.grad_q != nullptr) {
    ahead.write(p.grad_q, p.q_student.dtype, p.heads, head, first, length, p.q_student.dim);
    ahead.write(p.grad_k, p.q_student.dtype, p.heads, head, first, length, p.q_student.dim);
  }
  if (head + 1 == p.heads) return;
  for (const PackedView* view : {&p.q_student, &p.q_teacher, &p.k_student, &p.k_teacher}) {
    ahead.read(*view, head + 1, first, length);
  }
}

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

  // Takes over, or adds, the upper triangles of float32 partial sums.
  void put(const float* gram_a, const float* gram_b, bool accumulate) {
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

  // ||S - T||^2 of the head whose float32 partial sums were put here. Too small beside ||S||^2 + ||T||^2 to have its
  // digits (or NaN) it makes the matrices again, exactly.
  double sum_of_squares(int64_t head, int64_t first, int64_t length) {
    bool exact = true;
    double sum = inner_product(exact);
    if (exact) return sum;
    fill_exactly(head, first, length);
    sum = inner_product(exact);
    return sum < 0.0 ? 0.0 : sum;
  }

  // Right factors [columns, ld] with ld = padded(ds), of dQs = A mixer_q and dKs = B mixer_k:
  // 2 stored ss sigma_i G_ij, with sigma = (ss.., -st..).
  void fill_mixers(float* mixer_q, float* mixer_k, int64_t ld) const {
    fill_mixer(b_, mixer_q, ld);
    fill_mixer(a_, mixer_k, ld);
  }

 private:
  static constexpr int64_t kExactTokens = 128;
  static constexpr double kCancellation = 1e-2;

  // Both matrices from the tensors in float64, where products of float32 numbers are exact.
  void fill_exactly(int64_t head, int64_t first, int64_t length) {
    Scratch<float> rows(kExactTokens * columns_);
    Scratch<double> wide_rows(kExactTokens * columns_);
    for (int64_t start = 0; start < length; start += kExactTokens) {
      const int64_t count = std::min(kExactTokens, length - start);
      load_pair(p_.q_student, p_.q_teacher, head, first + start, count, rows, teacher_at_, columns_);
      std::copy(rows.get(), rows + count * columns_, wide_rows.get());
      add_gram<double>(wide_rows, count, columns_, a_, start > 0);
      load_pair(p_.k_student, p_.k_teacher, head, first + start, count, rows, teacher_at_, columns_);
      std::copy(rows.get(), rows + count * columns_, wide_rows.get());
      add_gram<double>(wide_rows, count, columns_, b_, start > 0);
    }
  }

  // <A^T A, B^T B> with the signs and scales of A's columns; `exact`: whether float32 sums hold its digits.
  double inner_product(bool& exact) const {
    const int64_t end = teacher_at_ + dt_;
    double student = 0.0, cross = 0.0, teacher = 0.0;
    for (int64_t i = 0; i < ds_; ++i) {
      const double *a = a_ + i * columns_, *b = b_ + i * columns_;
      student += a[i] * b[i] + 2.0 * dot(a, b, i + 1, ds_);
      cross += 2.0 * dot(a, b, teacher_at_, end);
    }
    for (int64_t i = teacher_at_; i < end; ++i) {
      const double *a = a_ + i * columns_, *b = b_ + i * columns_;
      teacher += a[i] * b[i] + 2.0 * dot(a, b, i + 1, end);
    }
    const double ss = p_.scale_student, st = p_.scale_teacher;
    const double norms = ss * ss * student + st * st * teacher, sum = norms - ss * st * cross;
    exact = sum > kCancellation * norms;
    return sum;
  }

  // mixer[i][j] = factor sigma_i G[i][j], square by square: those right of the diagonal are there, those left of it are
  // their mirror images, and those on it are both.
  void fill_mixer(const double* gram, float* mixer, int64_t ld) const {
    constexpr int64_t W = kLanes<float>;
    const double factor = 2.0 * p_.stored * p_.scale_student;
    for (int64_t i0 = 0; i0 < columns_; i0 += W) {
      const double sigma = factor * (i0 < teacher_at_ ? p_.scale_student : -p_.scale_teacher);
      for (int64_t j0 = 0; j0 < ld; j0 += W) {
        Vector<float> square[W];
        for (int64_t k = 0; k < W; ++k) {
          const double* row = i0 < j0 ? gram + (i0 + k) * columns_ + j0 : gram + (j0 + k) * columns_ + i0;
          for (int64_t l = 0; l < W; ++l) square[k][l] = static_cast<float>(sigma * row[l]);
        }
        if (i0 > j0) transpose(square);
        for (int64_t k = 0; k < W; ++k) store(square[k], mixer + (i0 + k) * ld + j0);
        if (i0 != j0) continue;
        for (int64_t k = 1; k < W; ++k) {
          for (int64_t l = 0; l < k; ++l) mixer[(i0 + k) * ld + j0 + l] = mixer[(i0 + l) * ld + j0 + k];
        }
      }
    }
  }

  static double dot(const double* a, const double* b, int64_t first, int64_t last) {
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = first; j < last; ++j) sum += a[j] * b[j];
    return sum;
  }

  const AttentionScoreMse& p_;
  const int64_t ds_, dt_, teacher_at_, columns_;
  Scratch<double> a_, b_;  // [columns, columns], upper triangles
};

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
