// attention_score_mse by Gram matrices in float32: any mixture of dtypes, every processor.
#pragma once

#include <algorithm>

#include "gram_matrices.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

class Gram {
 public:
  Gram(const GroupRows<AttentionScoreMse>& rows, int64_t longest, Prefetcher& prefetcher)
      : p_(rows.problem()),
        prefetcher_(prefetcher),
        ds_(p_.q_student.dim),
        layout_(concat_layout(Dtype::f32, ds_, p_.q_teacher.dim)),
        ds_columns_(layout_.teacher_offset),
        columns_(layout_.columns),
        block_(std::min(longest, std::max(kL1Tokens, kResidentBytes / (2 * columns_ * int64_t{sizeof(float)}) /
                                                         kL1Tokens * kL1Tokens))),
        rows_(rows, Dtype::f32, layout_, block_),
        grams_(p_, ds_columns_, columns_),
        partial_grams_(2 * columns_ * columns_),
        right_factors_(2 * columns_ * ds_columns_),
        out_(kL1Tokens * ds_columns_) {}

  double run(int64_t head, int64_t length) {
    fill_grams(head, length);
    const double sum = grams_.sum_of_squares(head, length);
    if (p_.grad_q != nullptr) gradients(head, length);
    return sum;
  }

 private:
  static constexpr int64_t kL1Tokens = 128;               // rows of A or B that an update keeps in the first cache
  static constexpr int64_t kFlushTokens = 256;            // float32 sums longer than this move to float64
  static constexpr int64_t kResidentBytes = 1792 * 1024;  // A and B stay for the second pass while they fit in this

  void fill_grams(int64_t head, int64_t length) {
    const int64_t size = columns_ * columns_;
    int64_t pending = 0;
    grams_.clear();
    for (int64_t start = 0; start < length; start += block_) {
      const int64_t count = std::min(block_, length - start);
      rows_.load(head, start, count);
      for (int64_t i = 0; i < count; i += kL1Tokens) {
        const int64_t rows = std::min(kL1Tokens, count - i);
        add_gram<float>(rows_.a + i * columns_, rows, columns_, partial_grams_, pending > 0, &prefetcher_);
        add_gram<float>(rows_.b + i * columns_, rows, columns_, partial_grams_ + size, pending > 0, &prefetcher_);
        pending += rows;
        const bool last = start + i + rows == length;
        if (pending >= kFlushTokens || last) {
          grams_.add(partial_grams_, partial_grams_ + size, last);
          pending = 0;
        }
      }
    }
  }

  void gradients(int64_t head, int64_t length) {
    float* right_factor_k = right_factors_ + columns_ * ds_columns_;
    const auto write_to = [this](float* right_factor) {
      return [this, right_factor](int64_t i, int64_t j, Vector<float> x, Vector<float> y) BERTXFER_INLINE {
        store(x, right_factor + i * ds_columns_ + j);
        store(y, right_factor + (i + 1) * ds_columns_ + j);
      };
    };
    grams_.make_right_factors(write_to(right_factors_), write_to(right_factor_k));
    for (int64_t start = 0; start < length; start += block_) {
      const int64_t count = std::min(block_, length - start);
      if (length > block_) rows_.load(head, start, count);  // else still there from the first pass
      for (int64_t i = 0; i < count; i += kL1Tokens) {
        const int64_t rows = std::min(kL1Tokens, count - i);
        multiply(rows_.a + i * columns_, rows, right_factors_, p_.grad_q, head, start + i);
        multiply(rows_.b + i * columns_, rows, right_factor_k, p_.grad_k, head, start + i);
      }
    }
  }

  void multiply(const float* rows, int64_t count, const float* right_factor, void* grad, int64_t head, int64_t token) {
    gemm<float>(count, ds_columns_, columns_, {rows, columns_, 1}, {right_factor, ds_columns_}, {out_, ds_columns_},
                false, &prefetcher_);
    store_rows(out_, ds_columns_, count, {grad, p_.grad_dtype, p_.heads, ds_}, head, token);
  }

  const AttentionScoreMse& p_;
  Prefetcher& prefetcher_;
  const int64_t ds_;
  const ConcatLayout layout_;
  const int64_t ds_columns_, columns_, block_;
  ConcatRows<float> rows_;
  GramMatrices grams_;
  Scratch<float> partial_grams_;  // [2, columns, columns]
  Scratch<float> right_factors_;  // [2, columns, ds_columns]
  Scratch<float> out_;            // [kL1Tokens, ds_columns]
};

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
