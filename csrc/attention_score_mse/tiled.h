// attention_score_mse by tiles of S - T in float32: less work than Gram matrices for short sequences.
#pragma once

#include <algorithm>

#include "gram_matrices.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

class Tiled {
 public:
  Tiled(const GroupRows<AttentionScoreMse>& rows, int64_t longest, Prefetcher& prefetcher)
      : p_(rows.problem()),
        prefetcher_(prefetcher),
        ds_(p_.q_student.dim),
        layout_(concat_layout(Dtype::f32, ds_, p_.q_teacher.dim)),
        ds_columns_(layout_.teacher_offset),
        depth_(ds_columns_ + p_.q_teacher.dim),
        columns_(layout_.columns),
        key_tile_(std::min(kKeyTile, padded(longest))),
        ld_(conflict_free_stride(key_tile_)),
        rows_(rows, Dtype::f32, layout_, longest),
        keys_t_(depth_ * ld_),
        difference_(kQueryTile * ld_),
        grad_q_(p_.grad_q ? longest * ds_columns_ : 0),
        grad_k_t_(ds_columns_ * ld_) {
    std::fill(keys_t_ + ds_ * ld_, keys_t_ + ds_columns_ * ld_, 0.0f);
  }

  double run(int64_t head, int64_t length) {
    rows_.load(head, 0, length);
    double sum = 0.0;
    for (int64_t key = 0; key < length; key += key_tile_) {
      sum += run_keys(head, length, key, std::min(key_tile_, length - key));
    }
    if (p_.grad_q != nullptr) {
      store_rows(grad_q_, ds_columns_, length, {p_.grad_q, p_.grad_dtype, p_.heads, ds_}, head, 0);
    }
    return sum;
  }

 private:
  static constexpr int64_t kQueryTile = 48;
  static constexpr int64_t kKeyTile = 256;

  double run_keys(int64_t head, int64_t length, int64_t key, int64_t keys) {
    const int64_t width = padded(keys);
    const bool need_grad = p_.grad_q != nullptr;
    load_transposed(p_.k_student, head, key, keys, static_cast<float>(p_.scale_student), keys_t_, ld_, width);
    load_transposed(p_.k_teacher, head, key, keys, static_cast<float>(-p_.scale_teacher), keys_t_ + ds_columns_ * ld_,
                    ld_, width);

    const float factor = static_cast<float>(2.0 * p_.grad_scale * p_.scale_student);
    double sum = 0.0;
    for (int64_t query = 0; query < length; query += kQueryTile) {
      const int64_t rows = std::min(kQueryTile, length - query);
      const float* queries = rows_.a + query * columns_;
      gemm<float>(rows, width, depth_, {queries, columns_, 1}, {keys_t_, ld_}, {difference_, ld_}, false, &prefetcher_);
      sum += square_and_scale(rows, keys, need_grad ? factor : 0.0f);
      if (!need_grad) continue;
      gemm<float>(rows, ds_columns_, keys, {difference_, ld_, 1}, {rows_.b + key * columns_, columns_},
                  {grad_q_ + query * ds_columns_, ds_columns_}, key > 0, &prefetcher_);
      gemm<float>(ds_, width, rows, {queries, 1, columns_}, {difference_, ld_}, {grad_k_t_, ld_}, query > 0,
                  &prefetcher_);
    }
    if (need_grad) {
      store_transposed(grad_k_t_, ld_, keys, {p_.grad_k, p_.grad_dtype, p_.heads, ds_}, head, key);
    }
    return sum;
  }

  // Returns the sum of squares of the tile, and multiplies the tile by `factor`.
  double square_and_scale(int64_t rows, int64_t keys, float factor) {
    double sum = 0.0;
    for (int64_t i = 0; i < rows; ++i) {
      float* row = difference_ + i * ld_;
      Vector<float> squares = {};
      for_vectors(keys, [&](int64_t j, int64_t) BERTXFER_INLINE {  // columns after the last key are zeros
        const Vector<float> x = load(row + j);
        squares += x * x;
        store(x * factor, row + j);
      });
      sum += sum_of(squares);
    }
    return sum;
  }

  const AttentionScoreMse& p_;
  Prefetcher& prefetcher_;
  const int64_t ds_;
  const ConcatLayout layout_;
  const int64_t ds_columns_, depth_, columns_, key_tile_, ld_;
  ConcatRows<float> rows_;
  Scratch<float> keys_t_;      // [depth, ld], scaled, the teacher's negative; rows ds..ds_columns stay zeros
  Scratch<float> difference_;  // [kQueryTile, ld]
  Scratch<float> grad_q_;      // [longest, ds_columns]
  Scratch<float> grad_k_t_;    // [ds_columns, ld]
};

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
