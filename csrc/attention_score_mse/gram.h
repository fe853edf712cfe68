// attention_score_mse by Gram matrices in float32: any mixture of dtypes, every processor.
#pragma once

#include <algorithm>

#include "gram_pair.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

class Gram {
 public:
  Gram(const GroupRows<AttentionScoreMse>& rows, int64_t longest, Ahead& ahead)
      : p_(rows.problem()),
        ahead_(ahead),
        ds_(p_.q_student.dim),
        ds_columns_(pair_columns(Dtype::f32, ds_, p_.q_teacher.dim).teacher_at),
        columns_(pair_columns(Dtype::f32, ds_, p_.q_teacher.dim).columns),
        block_(std::min(longest, std::max(kHotTokens, kResidentBytes / (2 * columns_ * int64_t{sizeof(float)}) /
                                                          kHotTokens * kHotTokens))),
        rows_(rows, Dtype::f32, ds_columns_, columns_, block_),
        grams_(p_, ds_columns_, columns_),
        narrow_(2 * columns_ * columns_),
        right_factors_(2 * columns_ * ds_columns_),
        out_(kHotTokens * ds_columns_) {}

  double run(int64_t head, int64_t length) {
    fill_grams(head, length);
    const double sum = grams_.sum_of_squares(head, length);
    if (p_.grad_q != nullptr) gradients(head, length);
    return sum;
  }

 private:
  static constexpr int64_t kHotTokens = 128;              // rows of A or B that an update keeps in the nearest cache
  static constexpr int64_t kFlushTokens = 256;            // float32 sums longer than this move to float64
  static constexpr int64_t kResidentBytes = 1792 * 1024;  // A and B stay for the second pass while they fit in this

  void fill_grams(int64_t head, int64_t length) {
    const int64_t size = columns_ * columns_;
    int64_t pending = 0;
    grams_.clear();
    for (int64_t start = 0; start < length; start += block_) {
      const int64_t count = std::min(block_, length - start);
      rows_.load(head, start, count);
      for (int64_t i = 0; i < count; i += kHotTokens) {
        const int64_t hot = std::min(kHotTokens, count - i);
        add_gram<float>(rows_.a + i * columns_, hot, columns_, narrow_, pending > 0, &ahead_);
        add_gram<float>(rows_.b + i * columns_, hot, columns_, narrow_ + size, pending > 0, &ahead_);
        pending += hot;
        const bool last = start + i + hot == length;
        if (pending >= kFlushTokens || last) {
          grams_.add(narrow_, narrow_ + size, last);
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
      for (int64_t i = 0; i < count; i += kHotTokens) {
        const int64_t hot = std::min(kHotTokens, count - i);
        multiply(rows_.a + i * columns_, hot, right_factors_, p_.grad_q, head, start + i);
        multiply(rows_.b + i * columns_, hot, right_factor_k, p_.grad_k, head, start + i);
      }
    }
  }

  void multiply(const float* rows, int64_t count, const float* right_factor, void* grad, int64_t head, int64_t token) {
    gemm<float>(count, ds_columns_, columns_, rows, columns_, 1, right_factor, ds_columns_, out_, ds_columns_, false,
                &ahead_);
    store_rows(out_, ds_columns_, count, grad, p_.q_student.dtype, p_.heads, head, token, ds_);
  }

  const AttentionScoreMse& p_;
  Ahead& ahead_;
  const int64_t ds_, ds_columns_, columns_, block_;
  PairRows<float> rows_;
  GramPair grams_;
  Scratch<float> narrow_;         // [2, columns, columns]
  Scratch<float> right_factors_;  // [2, columns, ds_columns]
  Scratch<float> out_;            // [kHotTokens, ds_columns]
};

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
