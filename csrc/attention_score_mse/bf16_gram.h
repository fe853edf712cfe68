// attention_score_mse by Gram matrices of bfloat16 tensors on the processor's bfloat16 units. The Gram matrices are
// those of gram.h: their products are exact, their sums float32. The right factors of the gradients do not fit
// bfloat16, so each is split into two bfloat16 matrices that add up to it: 16 bits, more than the result keeps.
#pragma once

#include <algorithm>

#include "../common/cpu/bf16_gemm.h"
#include "gram_matrices.h"

#if defined(BERTXFER_BF16_GEMM)

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

class Bf16Gram {
 public:
  Bf16Gram(const GroupRows<AttentionScoreMse>& rows, int64_t longest, Prefetcher& prefetcher)
      : p_(rows.problem()),
        prefetcher_(prefetcher),
        ds_(p_.q_student.dim),
        layout_(concat_layout(Dtype::bf16, ds_, p_.q_teacher.dim)),
        ds_columns_(layout_.teacher_offset),
        columns_(layout_.columns),
        ld_pairs_(conflict_free_stride<uint32_t>(columns_)),
        block_(std::min(kBlock, round_up(longest, kDepthTile))),
        ld_t_(conflict_free_stride<bf16>(block_) / 2),
        rows_(rows, Dtype::bf16, layout_, block_),
        grams_(p_, ds_columns_, columns_),
        pairs_(block_ / 2 * ld_pairs_),
        rows_t_(columns_ * ld_t_),
        partial_grams_(2 * columns_ * columns_),
        right_factor_pairs_(4 * columns_ / 2 * ds_columns_),
        out_(block_ * ds_columns_) {}

  double run(int64_t head, int64_t length) {
    grams_.clear();
    for (int64_t start = 0; start < length; start += block_) {
      const int64_t count = std::min(block_, length - start);
      rows_.load(head, start, count);
      gram_of(rows_.a, round_up(count, kDepthTile), partial_grams_);
      gram_of(rows_.b, round_up(count, kDepthTile), partial_grams_ + columns_ * columns_);
      grams_.add(partial_grams_, partial_grams_ + columns_ * columns_, start + count == length);
    }
    const double sum = grams_.sum_of_squares(head, length);
    if (p_.grad_q != nullptr) gradients(head, length);
    return sum;
  }

 private:
  static constexpr int64_t kBlock = 256;  // tokens whose products are summed in float32

  // Computes the upper triangle of X^T X [columns, columns] by blocks of 32 rows; x is [rows, columns].
  void gram_of(const bf16* x, int64_t rows, float* gram) {
    interleave_rows({x, columns_}, rows, columns_, {pairs_, ld_pairs_});
    transpose_pairs({pairs_, ld_pairs_}, rows / 2, columns_, {rows_t_, ld_t_});
    const RowMatrix<const bf16> x_t = as_elements({rows_t_, ld_t_});
    for (int64_t i = 0; i < columns_; i += kDepthTile) {
      bf16_gemm(kDepthTile, columns_ - i, rows, x_t.at(i, 0), {pairs_ + i, ld_pairs_},
                {gram + i * columns_ + i, columns_}, false, &prefetcher_);
    }
  }

  void gradients(int64_t head, int64_t length) {
    const int64_t size = columns_ / 2 * ds_columns_;
    const auto write_to = [this, size](uint32_t* high) {
      return [this, high, low = high + size](int64_t i, int64_t j, Vector<float> x, Vector<float> y)
                 BERTXFER_INLINE { split(x, y, high + i / 2 * ds_columns_ + j, low + i / 2 * ds_columns_ + j); };
    };
    grams_.make_right_factors(write_to(right_factor_pairs_), write_to(right_factor_pairs_ + 2 * size));
    for (int64_t start = 0; start < length; start += block_) {
      const int64_t count = std::min(block_, length - start);
      if (length > block_) rows_.load(head, start, count);  // else still there from the first pass
      multiply(rows_.a, count, right_factor_pairs_, p_.grad_q, head, start);
      multiply(rows_.b, count, right_factor_pairs_ + 2 * size, p_.grad_k, head, start);
    }
  }

  // Splits two rows into high + low, both rounded to bfloat16.
  static void split(Vector<float> x, Vector<float> y, uint32_t* high, uint32_t* low) {
    const __m512i rounded_pair = interleave_rounded(x, y);
    const Vector<float> high_x = (Vector<float>)_mm512_slli_epi32(rounded_pair, 16);
    const Vector<float> high_y = (Vector<float>)_mm512_and_si512(rounded_pair, _mm512_set1_epi32(~0xffff));
    _mm512_storeu_si512(high, rounded_pair);
    _mm512_storeu_si512(low, interleave_rounded(x - high_x, y - high_y));
  }

  // `right_factor` is [2, columns / 2, ds_columns]: its high part, then its low part.
  void multiply(const bf16* rows, int64_t count, const uint32_t* right_factor, void* grad, int64_t head,
                int64_t token) {
    bf16_gemm<2>(round_up(count, kTile), ds_columns_, columns_, {rows, columns_}, {right_factor, ds_columns_},
                 {out_, ds_columns_}, false, &prefetcher_);
    store_rows(out_, ds_columns_, count, {grad, p_.grad_dtype, p_.heads, ds_}, head, token);
  }

  const AttentionScoreMse& p_;
  Prefetcher& prefetcher_;
  const int64_t ds_;
  const ConcatLayout layout_;
  const int64_t ds_columns_, columns_, ld_pairs_, block_, ld_t_;
  const Bf16Units units_;
  ConcatRows<bf16> rows_;
  GramMatrices grams_;
  Scratch<uint32_t> pairs_;               // [block / 2, ld_pairs]
  Scratch<uint32_t> rows_t_;              // [columns, ld_t]: rows of X^T
  Scratch<float> partial_grams_;          // [2, columns, columns]
  Scratch<uint32_t> right_factor_pairs_;  // [2, 2, columns / 2, ds_columns]: of q and k, high and low
  Scratch<float> out_;                    // [block, ds_columns]
};

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer

#endif
