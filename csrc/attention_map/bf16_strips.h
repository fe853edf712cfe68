// attention_map of bfloat16 tensors on the processor's bfloat16 units. Scores, softmax and loss are float32; the
// gradient with respect to the scores is rounded to bfloat16 before its two products, which add up in float32.
#pragma once

#include <algorithm>

#include "../common/cpu/bf16_gemm.h"
#include "map_rows.h"

#if defined(BERTXFER_BF16_GEMM)

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

// Writes gradients with respect to scores in the layouts of the two products that read them: as rows, and interleaved.
struct InterleavedGradients {
  static constexpr Precision kPrecision = Precision::bfloat16;

  bf16* rows;       // [count, ld]
  uint32_t* pairs;  // [padded_rows / 2, ld], see zero_row_tail()
  int64_t ld;

  // Called for rows in ascending order, because an odd row interleaves with the one before.
  template <class Gradient>
  BERTXFER_INLINE void write(int64_t i, int64_t length, const Gradient& gradient) const {
    bf16* row = rows + i * ld;
    if (i % 2 == 0) {
      for_vectors(length, [&](int64_t j, int64_t) BERTXFER_INLINE { store_floats(gradient(j), row + j); });
    } else {
      const bf16* before = row - ld;
      uint32_t* pair = pairs + i / 2 * ld;
      for_vectors(length, [&](int64_t j, int64_t) BERTXFER_INLINE {
        const __m256i bits = rounded(gradient(j), bf16{});
        _mm256_storeu_si256((__m256i*)(row + j), bits);
        _mm512_storeu_si512(pair + j, interleave(_mm256_loadu_si256((const __m256i*)(before + j)), bits));
      });
    }
    zero_depth_tail(row, length);
  }

  // Interleaves a last row without a partner with zeros, and zeroes rows count..padded_rows-1 of `width` columns.
  void zero_row_tail(int64_t count, int64_t padded_rows, int64_t width) const {
    if (count % 2 == 1) {
      const bf16* last = rows + (count - 1) * ld;
      for (int64_t j = 0; j < width; ++j) pairs[count / 2 * ld + j] = last[j].bits;
    }
    for (int64_t i = (count + 1) / 2; i < padded_rows / 2; ++i) std::fill_n(pairs + i * ld, width, 0);
  }

  // Only short rows come often enough, and gain from it (docs/kernels.md).
  void keep_units_awake(int64_t length) const {
    if (length <= 384) keep_bf16_units_awake();
  }
};

class Bf16Strips {
 public:
  // At least three heads: two of 256 tokens gain nothing (docs/kernels.md).
  static constexpr CopyPlan kCopyPlan{200 * 1024, 3, /*separate_tiles=*/true};

  Bf16Strips(const GroupRows<AttentionMap>& rows, int64_t longest, Prefetcher& prefetcher)
      : group_(rows),
        p_(rows.problem()),
        prefetcher_(prefetcher),
        symmetric_(p_.grad_k == nullptr),
        ds_depth_(round_up(p_.q_student.dim, kDepthTile)),
        dt_depth_(round_up(p_.q_teacher.dim, kDepthTile)),
        ds_columns_(round_up(p_.q_student.dim, kTile)),
        ld_(stride_of(longest)),
        rows_(std::clamp(kStripBytes / (2 * ld_ * int64_t{sizeof(float)}) / kDepthTile, int64_t{1}, kMaxDepthTiles) *
              kDepthTile),
        block_(kDepthTile * std::max(ds_depth_, dt_depth_)),
        keys_student_t_(ds_depth_ / 2 * ld_),
        keys_teacher_t_(dt_depth_ / 2 * ld_),
        key_pairs_(p_.need_grad ? ld_ / 2 * ds_columns_ : 0),
        queries_student_(rows_ * ds_depth_),
        queries_teacher_(rows_ * dt_depth_),
        query_pairs_(rows_ / 2 * ds_depth_),
        queries_t_(rows_ / 2 * ds_depth_),
        student_(rows_ * ld_),
        teacher_(rows_ * ld_),
        weights_(softmax_workspace_size(ld_)),
        grad_scores_(p_.need_grad ? rows_ * ld_ : 0),
        grad_score_pairs_(p_.need_grad ? rows_ / 2 * ld_ : 0),
        grad_q_(p_.need_grad ? (symmetric_ ? ld_ + rows_ : rows_) * ds_columns_ : 0),
        grad_k_t_(p_.need_grad ? ds_columns_ * ld_ : 0) {}

  double run(int64_t head, int64_t length) {
    ld_ = stride_of(length);
    load_keys(head, length);
    double sum = 0.0;
    for (int64_t query = 0; query < length; query += rows_) {
      sum += run_rows(head, length, query, std::min(rows_, length - query));
    }
    if (p_.need_grad) store_key_gradients(p_, head, length, {grad_k_t_, ld_}, {grad_q_, ds_columns_});
    return sum;
  }

 private:
  static constexpr int64_t kStripBytes = 512 * 1024;  // student's and teacher's strip together
  static constexpr int64_t kMaxDepthTiles = 2;

  // The stride of scores and of all that has a column per key. Each sequence has its own, so that more rows of a short
  // one beside a long one stay in the first-level cache.
  static int64_t stride_of(int64_t length) { return conflict_free_stride(round_up(length, kDepthTile)); }

  void load_keys(int64_t head, int64_t length) {
    for (int64_t key = 0; key < length; key += kDepthTile) {
      const int64_t keys = std::min(kDepthTile, length - key);
      transpose(rows_of(p_.k_teacher, head, key, keys, dt_depth_, block_), dt_depth_, keys_teacher_t_ + key);
      const Rows student = rows_of(p_.k_student, head, key, keys, ds_depth_, block_);
      transpose(student, ds_depth_, keys_student_t_ + key);
      if (p_.need_grad) {
        interleave_rows(student, kDepthTile, ds_columns_, {key_pairs_ + key / 2 * ds_columns_, ds_columns_});
      }
    }
  }

  using Rows = RowMatrix<const bf16>;

  // `count` rows of a head, filled up with zeros to `depth` columns and a multiple of kDepthTile rows: in place where
  // the group was copied, else copied to `out`.
  Rows rows_of(const PackedView& view, int64_t head, int64_t first, int64_t count, int64_t depth, bf16* out) {
    if (const bf16* copied = group_.copied<bf16>(view, head, first)) return {copied, view.token_stride};
    load_bf16_rows(view, head, first, count, round_up(count, kDepthTile), {out, depth}, depth);
    return {out, depth};
  }

  // Writes kDepthTile rows as columns of pairs, out [depth / 2, ld].
  void transpose(const Rows& rows, int64_t depth, uint32_t* out) {
    transpose_pairs(as_pairs(rows), kDepthTile, depth / 2, {out, ld_});
  }

  double run_rows(int64_t head, int64_t length, int64_t query, int64_t rows) {
    const int64_t width = round_up(length, kTile), tile_rows = round_up(rows, kTile);
    const Rows student = rows_of(p_.q_student, head, query, rows, ds_depth_, queries_student_);
    const Rows teacher = rows_of(p_.q_teacher, head, query, rows, dt_depth_, queries_teacher_);
    bf16_gemm(tile_rows, width, ds_depth_, student, {keys_student_t_, ld_}, {student_, ld_}, false, &prefetcher_);
    bf16_gemm(tile_rows, width, dt_depth_, teacher, {keys_teacher_t_, ld_}, {teacher_, ld_}, false, &prefetcher_);
    const InterleavedGradients grad_scores{grad_scores_, grad_score_pairs_, ld_};
    const double sum = map_strip(p_, {student_, teacher_, ld_, rows, length}, weights_, grad_scores);
    if (p_.need_grad) {
      grad_scores.zero_row_tail(rows, round_up(rows, kDepthTile), width);
      gradients(head, length, query, rows, student);
    }
    return sum;
  }

  void gradients(int64_t head, int64_t length, int64_t query, int64_t rows, const Rows& student) {
    // A product sums over whole tiles of depth; its other sides are multiples of half of one.
    const int64_t width = round_up(length, kTile), tile_rows = round_up(rows, kTile);
    const int64_t depth_columns = round_up(length, kDepthTile), depth_rows = round_up(rows, kDepthTile);
    float* grad_q = symmetric_ ? grad_q_ + query * ds_columns_ : grad_q_.get();
    bf16_gemm(tile_rows, ds_columns_, depth_columns, {grad_scores_, ld_}, {key_pairs_, ds_columns_},
              {grad_q, ds_columns_}, false);
    if (!symmetric_) {
      const PackedOutput out{p_.grad_q, p_.grad_dtype, p_.heads, p_.q_student.dim};
      store_rows(grad_q, ds_columns_, rows, out, head, query);
    }
    interleave_rows(student, depth_rows, ds_columns_, {query_pairs_, ds_columns_});
    transpose_pairs({query_pairs_, ds_columns_}, depth_rows / 2, ds_columns_, {queries_t_, depth_rows / 2});
    bf16_gemm(ds_columns_, width, depth_rows, as_elements({queries_t_, depth_rows / 2}), {grad_score_pairs_, ld_},
              {grad_k_t_, ld_}, query > 0);
  }

  const GroupRows<AttentionMap>& group_;
  const AttentionMap& p_;
  Prefetcher& prefetcher_;
  const bool symmetric_;  // q is k, and grad_q receives both gradients
  const int64_t ds_depth_, dt_depth_, ds_columns_;
  int64_t ld_;  // of the longest sequence while memory is allocated, then of the current one
  const int64_t rows_;
  const Bf16Units units_;
  Scratch<bf16> block_;                                // [kDepthTile, depth]
  Scratch<uint32_t> keys_student_t_, keys_teacher_t_;  // [depth / 2, ld] pairs of K^T
  Scratch<uint32_t> key_pairs_;                        // [ld / 2, ds_columns]
  Scratch<bf16> queries_student_, queries_teacher_;    // [rows, depth]
  Scratch<uint32_t> query_pairs_;                      // [rows / 2, ds_depth]
  Scratch<uint32_t> queries_t_;                        // [ds_depth, rows / 2]: rows of Q^T
  Scratch<float> student_, teacher_;                   // [rows, ld]
  Scratch<float> weights_;                             // workspace of map_strip
  Scratch<bf16> grad_scores_;                          // [rows, ld] ss G
  Scratch<uint32_t> grad_score_pairs_;                 // [rows / 2, ld]
  Scratch<float> grad_q_;                              // [rows, ds_columns]; [ld + rows, ds_columns] where q is k
  Scratch<float> grad_k_t_;                            // [ds_columns, ld]
};

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer

#endif
