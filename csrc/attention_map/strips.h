// attention_map in float32: any mixture of dtypes, every processor.
#pragma once

#include <algorithm>

#include "map_rows.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

// Writes gradients with respect to scores over the scores.
struct FloatGradients {
  static constexpr Precision kPrecision = Precision::float32;

  float* rows;  // [count, ld]
  int64_t ld;

  template <class Gradient>
  BERTXFER_INLINE void write(int64_t i, int64_t length, const Gradient& gradient) const {
    for_vectors(length, [&](int64_t j, int64_t) BERTXFER_INLINE { store(gradient(j), rows + i * ld + j); });
  }
  void keep_units_awake(int64_t) const {}
};

class Strips {
 public:
  // Fewer bytes than for attention_score_mse, because longer sequences hide their reads behind their products.
  static constexpr CopyPlan kCopyPlan{200 * 1024, 2, /*separate_tiles=*/true};

  Strips(const GroupRows<AttentionMap>& rows, int64_t longest, Prefetcher& prefetcher)
      : group_(rows),
        p_(rows.problem()),
        prefetcher_(prefetcher),
        ds_columns_(padded(p_.q_student.dim)),
        dt_columns_(padded(p_.q_teacher.dim)),
        ld_(conflict_free_stride(longest)),
        rows_(std::clamp(kStripBytes / (2 * ld_ * int64_t{sizeof(float)}), kMinRows, kMaxRows)),
        keys_student_t_(p_.q_student.dim * ld_),
        keys_teacher_t_(p_.q_teacher.dim * ld_),
        keys_(p_.need_grad ? longest * ds_columns_ : 0),
        queries_student_(rows_ * ds_columns_),
        queries_teacher_(rows_ * dt_columns_),
        student_(rows_ * ld_),
        teacher_(rows_ * ld_),
        weights_(softmax_workspace_size(ld_)),
        grad_q_(p_.need_grad ? (p_.grad_k == nullptr ? longest : rows_) * ds_columns_ : 0),
        grad_k_t_(p_.need_grad ? ds_columns_ * ld_ : 0) {}

  double run(int64_t head, int64_t length) {
    const int64_t width = padded(length);
    load_transposed(p_.k_student, head, 0, length, 1.0f, keys_student_t_, ld_, width);
    load_transposed(p_.k_teacher, head, 0, length, 1.0f, keys_teacher_t_, ld_, width);
    const Rows keys = p_.need_grad ? rows_of(p_.k_student, head, 0, length, ds_columns_, keys_) : Rows{};
    double sum = 0.0;
    for (int64_t query = 0; query < length; query += rows_) {
      sum += run_rows(head, length, query, std::min(rows_, length - query), keys);
    }
    if (p_.need_grad) store_key_gradients(p_, head, length, {grad_k_t_, ld_}, {grad_q_, ds_columns_});
    return sum;
  }

 private:
  static constexpr int64_t kStripBytes = 768 * 1024;  // student's and teacher's strip together
  static constexpr int64_t kMaxRows = 48, kMinRows = 12;
  static constexpr int64_t kKeyTile = 256;  // keys whose transposed block a product reads at a time

  using Rows = RowMatrix<const float>;

  // `count` rows of a head, filled up with zeros to `columns`: in place where the group was copied, else copied to
  // `out`.
  Rows rows_of(const PackedView& view, int64_t head, int64_t first, int64_t count, int64_t columns, float* out) {
    if (const float* copied = group_.copied<float>(view, head, first)) return {copied, view.token_stride};
    load_rows(view, head, first, count, out, columns, columns);
    return {out, columns};
  }

  double run_rows(int64_t head, int64_t length, int64_t query, int64_t rows, const Rows& all_keys) {
    const int64_t ds = p_.q_student.dim, dt = p_.q_teacher.dim, width = padded(length);
    const Rows student = rows_of(p_.q_student, head, query, rows, ds_columns_, queries_student_);
    const Rows teacher = rows_of(p_.q_teacher, head, query, rows, dt_columns_, queries_teacher_);
    for (int64_t key = 0; key < width; key += kKeyTile) {
      const int64_t keys = std::min(kKeyTile, width - key);
      gemm<float>(rows, keys, ds, {student.data, student.ld, 1}, {keys_student_t_ + key, ld_}, {student_ + key, ld_},
                  false, &prefetcher_);
      gemm<float>(rows, keys, dt, {teacher.data, teacher.ld, 1}, {keys_teacher_t_ + key, ld_}, {teacher_ + key, ld_},
                  false, &prefetcher_);
    }
    const FloatGradients grad_scores{student_, ld_};
    const double sum = map_strip(p_, {student_, teacher_, ld_, rows, length}, weights_, grad_scores);
    if (p_.need_grad) gradients(head, length, query, rows, student, all_keys);
    return sum;
  }

  // student_ holds ss G, with zeros beyond `length` because the keys there are zeros.
  void gradients(int64_t head, int64_t length, int64_t query, int64_t rows, const Rows& queries, const Rows& keys) {
    const int64_t ds = p_.q_student.dim;
    const bool symmetric = p_.grad_k == nullptr;
    float* grad_q = symmetric ? grad_q_ + query * ds_columns_ : grad_q_.get();
    gemm<float>(ds, padded(length), rows, {queries.data, 1, queries.ld}, {student_, ld_}, {grad_k_t_, ld_}, query > 0);
    gemm<float>(rows, ds_columns_, length, {student_, ld_, 1}, keys, {grad_q, ds_columns_}, false);
    if (symmetric) return;
    store_rows(grad_q, ds_columns_, rows, {p_.grad_q, p_.grad_dtype, p_.heads, ds}, head, query);
  }

  const GroupRows<AttentionMap>& group_;
  const AttentionMap& p_;
  Prefetcher& prefetcher_;
  const int64_t ds_columns_, dt_columns_, ld_, rows_;
  Scratch<float> keys_student_t_, keys_teacher_t_;    // [ds, ld], [dt, ld]
  Scratch<float> keys_;                               // [longest, ds_columns]
  Scratch<float> queries_student_, queries_teacher_;  // [rows, ds_columns], [rows, dt_columns]
  Scratch<float> student_, teacher_;                  // [rows, ld]
  Scratch<float> weights_;                            // workspace of map_strip
  Scratch<float> grad_q_;                             // [rows, ds_columns]; [longest, ds_columns] where q is k
  Scratch<float> grad_k_t_;                           // [ds_columns, ld]
};

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
