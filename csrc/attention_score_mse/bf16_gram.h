// attention_score_mse by Gram matrices of bfloat16 tensors on the processor's bfloat16 units. The Gram matrices are
// those of gram.h: their products are exact, their sums float32. The right factors of the gradients are not bfloat16
// numbers; split into two that add up to them they keep 16 bits, more than the result does.
#pragma once

#include <algorithm>

#include "../common/bf16_gemm.h"
#include "gram_pair.h"

#if defined(BERTXFER_BF16_GEMM)

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

class Bf16Gram {
 public:
  Bf16Gram(const AttentionScoreMse& problem, int64_t longest)
      : p_(problem),
        ds_(p_.q_student.dim),
        ds_columns_(round_up(ds_, kTile)),
        columns_(round_up(ds_columns_ + p_.q_teacher.dim, kDepthTile)),
        ld_pairs_(spread<uint32_t>(columns_)),
        block_(std::min(kBlock, round_up(longest, kDepthTile))),
        ld_t_(spread<bf16>(block_) / 2),
        grams_(p_, ds_columns_, columns_),
        a_(block_ * columns_),
        b_(block_ * columns_),
        pairs_(block_ / 2 * ld_pairs_),
        rows_t_(columns_ * ld_t_),
        narrow_(2 * columns_ * columns_),
        mixers_(2 * columns_ * ds_columns_),
        rest_(columns_ * ds_columns_),
        mixer_pairs_(4 * columns_ / 2 * ds_columns_),
        out_(block_ * ds_columns_) {}

  double run(int64_t head, int64_t first, int64_t length) {
    look_ahead(p_, head, first, length, ahead_);
    for (int64_t start = 0; start < length; start += block_) {
      const int64_t count = std::min(block_, length - start);
      load_block(head, first + start, count);
      gram_of(a_, round_up(count, kDepthTile), narrow_);
      gram_of(b_, round_up(count, kDepthTile), narrow_ + columns_ * columns_);
      grams_.put(narrow_, narrow_ + columns_ * columns_, start > 0);
    }
    const double sum = grams_.sum_of_squares(head, first, length);
    if (p_.grad_q != nullptr) gradients(head, first, length);
    return sum;
  }

 private:
  static constexpr int64_t kBlock = 256;  // tokens whose products are summed in float32

  void load_block(int64_t head, int64_t first, int64_t count) {
    const int64_t rows = round_up(count, kDepthTile), rest = columns_ - ds_columns_;
    load_bf16_rows(p_.q_student, head, first, count, rows, a_, columns_, ds_columns_);
    load_bf16_rows(p_.q_teacher, head, first, count, rows, a_ + ds_columns_, columns_, rest);
    load_bf16_rows(p_.k_student, head, first, count, rows, b_, columns_, ds_columns_);
    load_bf16_rows(p_.k_teacher, head, first, count, rows, b_ + ds_columns_, columns_, rest);
  }

  // Upper triangle of X^T X, by blocks of 32 rows.
  void gram_of(const bf16* x, int64_t rows, float* gram) {
    pair_rows(x, columns_, rows, columns_, pairs_, ld_pairs_);
    transpose_pairs(pairs_, ld_pairs_, rows / 2, columns_, rows_t_, ld_t_);
    const bf16* x_t = reinterpret_cast<const bf16*>(rows_t_.get());
    for (int64_t i = 0; i < columns_; i += kDepthTile) {
      bf16_gemm(kDepthTile, columns_ - i, rows, x_t + i * 2 * ld_t_, 2 * ld_t_, pairs_ + i, ld_pairs_,
                gram + i * columns_ + i, columns_, false, &ahead_);
    }
  }

  void gradients(int64_t head, int64_t first, int64_t length) {
    float* mixer_k = mixers_ + columns_ * ds_columns_;
    grams_.fill_mixers(mixers_, mixer_k, ds_columns_);
    const int64_t size = columns_ / 2 * ds_columns_;
    split(mixers_, mixer_pairs_, mixer_pairs_ + size);
    split(mixer_k, mixer_pairs_ + 2 * size, mixer_pairs_ + 3 * size);
    for (int64_t start = 0; start < length; start += block_) {
      const int64_t count = std::min(block_, length - start);
      if (length > block_) load_block(head, first + start, count);  // else still there from the first pass
      multiply(a_, count, mixer_pairs_, p_.grad_q, head, first + start);
      multiply(b_, count, mixer_pairs_ + 2 * size, p_.grad_k, head, first + start);
    }
  }

  // mixer = high + low, both rounded to bfloat16, in pairs of rows.
  void split(const float* mixer, uint32_t* high, uint32_t* low) {
    for (int64_t i = 0; i < columns_ * ds_columns_; i += kTile) {
      const Vector<float> x = load(mixer + i);
      bf16 rounded_x[kTile];
      store_floats(x, rounded_x);
      store(x - load_floats(rounded_x), rest_ + i);
    }
    for (int64_t i = 0; i < columns_; i += 2) {
      pair_rounded(mixer + i * ds_columns_, mixer + (i + 1) * ds_columns_, ds_columns_, high + i / 2 * ds_columns_);
      pair_rounded(rest_ + i * ds_columns_, rest_ + (i + 1) * ds_columns_, ds_columns_, low + i / 2 * ds_columns_);
    }
  }

  // `mixer`: its high part, and its low part after it.
  void multiply(const bf16* rows, int64_t count, const uint32_t* mixer, void* grad, int64_t head, int64_t token) {
    const int64_t tall = round_up(count, kDepthTile);
    bf16_gemm(tall, ds_columns_, columns_, rows, columns_, mixer, ds_columns_, out_, ds_columns_, false, &ahead_);
    bf16_gemm(tall, ds_columns_, columns_, rows, columns_, mixer + columns_ / 2 * ds_columns_, ds_columns_, out_,
              ds_columns_, true, &ahead_);
    store_rows(out_, ds_columns_, count, grad, p_.q_student.dtype, p_.heads, head, token, ds_);
  }

  const AttentionScoreMse& p_;
  const int64_t ds_, ds_columns_, columns_, ld_pairs_, block_, ld_t_;
  const Bf16Units units_;
  GramPair grams_;
  Ahead ahead_;
  Scratch<bf16> a_, b_;            // [block, columns]
  Scratch<uint32_t> pairs_;        // [block / 2, ld_pairs]
  Scratch<uint32_t> rows_t_;       // [columns, ld_t]: rows of X^T
  Scratch<float> narrow_;          // [2, columns, columns]
  Scratch<float> mixers_;          // [2, columns, ds_columns]
  Scratch<float> rest_;            // [columns, ds_columns]
  Scratch<uint32_t> mixer_pairs_;  // [2, 2, columns / 2, ds_columns]: of q and k, high and low
  Scratch<float> out_;             // [block, ds_columns]
};

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer

#endif
