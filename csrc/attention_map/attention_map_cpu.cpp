// CPU kernel of attention_map: see attention_map.h for the math. One work item is one sequence and head, done by
// one thread, so results do not depend on the number of threads.
#include <algorithm>
#include <cmath>

#include "../common/kl_row.h"
#include "../common/parallel.h"
#include "../common/vec.h"
#include "attention_map.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

constexpr int64_t kStripBytes = 768 * 1024;  // student's and teacher's strip together
constexpr int64_t kMaxRows = 48, kMinRows = 12;
constexpr int64_t kKeyTile = 256;  // keys whose transposed block a product reads at a time

class Strips {
 public:
  Strips(const AttentionMap& problem, int64_t longest)
      : p_(problem),
        ds_columns_(padded(p_.q_student.dim)),
        dt_columns_(padded(p_.q_teacher.dim)),
        ld_(padded(longest)),
        rows_(std::min(kMaxRows, std::max(kMinRows, kStripBytes / (2 * ld_ * int64_t{sizeof(float)})))),
        keys_student_t_(p_.q_student.dim * ld_),
        keys_teacher_t_(p_.q_teacher.dim * ld_),
        keys_(p_.need_grad ? longest * ds_columns_ : 0),
        queries_student_(rows_ * ds_columns_),
        queries_teacher_(rows_ * dt_columns_),
        student_(rows_ * ld_),
        teacher_(rows_ * ld_),
        weights_(2 * ld_),
        grad_q_(rows_ * ds_columns_),
        grad_k_(p_.need_grad ? longest * ds_columns_ : 0) {}

  double run(int64_t head, int64_t first, int64_t length) {
    const int64_t width = padded(length);
    load_transposed(p_.k_student, head, first, length, p_.scale_student, keys_student_t_, ld_, width);
    load_transposed(p_.k_teacher, head, first, length, p_.scale_teacher, keys_teacher_t_, ld_, width);
    if (p_.need_grad) load_rows(p_.k_student, head, first, length, keys_, ds_columns_, ds_columns_);
    double sum = 0.0;
    for (int64_t query = 0; query < length; query += rows_) {
      sum += run_rows(head, first, length, query, std::min(rows_, length - query));
    }
    if (p_.need_grad) {
      void* target = p_.grad_k == nullptr ? p_.grad_q : p_.grad_k;
      store_rows(grad_k_, ds_columns_, length, target, p_.q_student.dtype, p_.heads, head, first, p_.q_student.dim);
    }
    return sum;
  }

 private:
  double run_rows(int64_t head, int64_t first, int64_t length, int64_t query, int64_t rows) {
    const int64_t ds = p_.q_student.dim, dt = p_.q_teacher.dim, width = padded(length);
    load_rows(p_.q_student, head, first + query, rows, queries_student_, ds_columns_, ds_columns_);
    load_rows(p_.q_teacher, head, first + query, rows, queries_teacher_, dt_columns_, dt);
    for (int64_t key = 0; key < width; key += kKeyTile) {
      const int64_t keys = std::min(kKeyTile, width - key);
      gemm<float>(rows, keys, ds, queries_student_, ds_columns_, 1, keys_student_t_ + key, ld_, student_ + key, ld_,
                  false);
      gemm<float>(rows, keys, dt, queries_teacher_, dt_columns_, 1, keys_teacher_t_ + key, ld_, teacher_ + key, ld_,
                  false);
    }
    double sum = 0.0;
    for (int64_t i = 0; i < rows; ++i) sum += run_row(student_ + i * ld_, teacher_ + i * ld_, length);
    if (p_.need_grad) gradients(head, first, length, query, rows);
    return sum;
  }

  // Loss of one row of scores; leaves ss G in `s`.
  double run_row(float* s, float* t, int64_t length) {
    float highest_s = s[0], highest_t = t[0];
#pragma omp simd reduction(max : highest_s, highest_t)
    for (int64_t j = 0; j < length; ++j) {
      highest_s = s[j] > highest_s ? s[j] : highest_s;
      highest_t = t[j] > highest_t ? t[j] : highest_t;
    }
    if (p_.kind == AttentionMap::Kind::kl) {
      return kl_row(s, t, length, highest_s, highest_t, weights_, ld_,
                    p_.need_grad ? p_.stored * p_.scale_student : 0.0f);
    }
    return mse_row(s, t, length, highest_s, highest_t);
  }

  double mse_row(float* s, float* t, int64_t length, float highest_s, float highest_t) {
    float total_s = 0.0f, total_t = 0.0f;
#pragma omp simd reduction(+ : total_s, total_t)
    for (int64_t j = 0; j < length; ++j) {
      s[j] = fast_exp(s[j] - highest_s);
      t[j] = fast_exp(t[j] - highest_t);
      total_s += s[j];
      total_t += t[j];
    }
    const float inverse_s = 1.0f / total_s, inverse_t = 1.0f / total_t;
    float square = 0.0f, along = 0.0f;
#pragma omp simd reduction(+ : square, along)
    for (int64_t j = 0; j < length; ++j) {
      s[j] *= inverse_s;
      t[j] = s[j] - t[j] * inverse_t;
      square += t[j] * t[j];
      along += t[j] * s[j];
    }
    if (p_.need_grad) {
      const float factor = 2.0f * p_.stored * p_.scale_student;
#pragma omp simd
      for (int64_t j = 0; j < length; ++j) s[j] = factor * s[j] * (t[j] - along);
    }
    return square;
  }

  void gradients(int64_t head, int64_t first, int64_t length, int64_t query, int64_t rows) {
    const int64_t ds = p_.q_student.dim;
    const bool same = p_.grad_k == nullptr;
    float* grad_q = same ? grad_k_ + query * ds_columns_ : grad_q_.get();
    gemm<float>(length, ds_columns_, rows, student_, 1, ld_, queries_student_, ds_columns_, grad_k_, ds_columns_,
                query > 0);
    gemm<float>(rows, ds_columns_, length, student_, ld_, 1, keys_, ds_columns_, grad_q, ds_columns_, same);
    if (!same) store_rows(grad_q, ds_columns_, rows, p_.grad_q, p_.q_student.dtype, p_.heads, head, first + query, ds);
  }

  const AttentionMap& p_;
  const int64_t ds_columns_, dt_columns_, ld_, rows_;
  Scratch<float> keys_student_t_, keys_teacher_t_;    // [ds, ld], [dt, ld], scaled
  Scratch<float> keys_;                               // [longest, ds_columns]
  Scratch<float> queries_student_, queries_teacher_;  // [rows, ds_columns], [rows, dt_columns]
  Scratch<float> student_, teacher_;                  // [rows, ld]
  Scratch<float> weights_;                            // [2, ld] one row of both maps before division
  Scratch<float> grad_q_;                             // [rows, ds_columns]
  Scratch<float> grad_k_;                             // [longest, ds_columns]
};

}  // namespace

void attention_map(const AttentionMap& p) {
  int64_t longest = 0;
  double operations = 0.0;
  for (int64_t n = 0; n < p.packing.sequences; ++n) {
    const int64_t used = p.packing.used(n);
    longest = std::max(longest, used);
    operations +=
        static_cast<double>(used) * static_cast<double>(used * p.heads * (3 * p.q_student.dim + p.q_teacher.dim));
  }
  for_each_item(p.packing.sequences * p.heads, operations, [&] {
    return [&p, strips = Strips(p, std::max<int64_t>(longest, 1))](int64_t item) mutable {
      const int64_t n = item / p.heads, head = item % p.heads;
      const int64_t first = p.packing.start(n), used = p.packing.used(n);
      p.sums[item] = used == 0 ? 0.0 : strips.run(head, first, used);
      if (!p.need_grad) return;
      for (void* grad : {p.grad_q, p.grad_k}) {
        if (grad == nullptr) continue;
        store_zero_rows(p.packing.length(n) - used, grad, p.q_student.dtype, p.heads, head, first + used,
                        p.q_student.dim);
      }
    };
  });
}

}  // namespace BERTXFER_ISA
}  // namespace bertxfer
