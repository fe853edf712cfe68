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

// Gradients with respect to scores as the two products with them want them: rows, and pairs of neighbouring rows.
struct PairedGradients {
  static constexpr Digits kDigits = Digits::bfloat16;

  bf16* rows;       // [count, ld]
  uint32_t* pairs;  // [tall / 2, ld], `tall` as fill_up() gets it
  int64_t ld;

  // Rows come in turn.
  template <class At>
  BERTXFER_INLINE void write(int64_t i, int64_t length, const At& at) const {
    bf16* row = rows + i * ld;
    if (i % 2 == 0) {
      for_vectors(length, [&](int64_t j, int64_t) BERTXFER_INLINE { store_floats(at(j), row + j); });
    } else {
      const bf16* before = row - ld;
      uint32_t* pair = pairs + i / 2 * ld;
      for_vectors(length, [&](int64_t j, int64_t) BERTXFER_INLINE {
        const __m256i bits = rounded(at(j), bf16{});
        _mm256_storeu_si256((__m256i*)(row + j), bits);
        _mm512_storeu_si512(pair + j, paired(_mm256_loadu_si256((const __m256i*)(before + j)), bits));
      });
    }
    fill_depth(row, length);
  }

  // Pairs of zeros for rows count..tall-1 of `width` columns; a last row without a partner gets one.
  void fill_up(int64_t count, int64_t tall, int64_t width) const {
    if (count % 2 == 1) {
      const bf16* last = rows + (count - 1) * ld;
      for (int64_t j = 0; j < width; ++j) pairs[count / 2 * ld + j] = last[j].bits;
    }
    for (int64_t i = (count + 1) / 2; i < tall / 2; ++i) std::fill_n(pairs + i * ld, width, 0);
  }

  // Only short rows: between two products of longer ones the units are off for a smaller share of the time.
  void keep_units_awake(int64_t length) const {
    if (length <= 384) keep_bf16_units_awake();
  }
};

class Bf16Strips {
 public:
  // Copies stay smaller than float32's, because here two heads of 256 tokens are faster read in place.
  static constexpr CopyPlan kCopyPlan{200 * 1024, 3, /*apart=*/true};

  Bf16Strips(const GroupRows<AttentionMap>& rows, int64_t longest, Ahead& ahead)
      : group_(rows),
        p_(rows.problem()),
        ahead_(ahead),
        same_(p_.grad_k == nullptr),
        ds_depth_(round_up(p_.q_student.dim, kDepthTile)),
        dt_depth_(round_up(p_.q_teacher.dim, kDepthTile)),
        ds_columns_(round_up(p_.q_student.dim, kTile)),
        ld_(row_of(longest)),
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
        weights_(weights_room(ld_)),
        direction_(p_.need_grad ? rows_ * ld_ : 0),
        direction_pairs_(p_.need_grad ? rows_ / 2 * ld_ : 0),
        grad_q_(p_.need_grad ? (same_ ? ld_ + rows_ : rows_) * ds_columns_ : 0),
        grad_k_t_(p_.need_grad ? ds_columns_ * ld_ : 0) {}

  double run(int64_t head, int64_t length) {
    ld_ = row_of(length);
    load_keys(head, length);
    double sum = 0.0;
    for (int64_t query = 0; query < length; query += rows_) {
      sum += run_rows(head, length, query, std::min(rows_, length - query));
    }
    if (p_.need_grad) store_keys(head, length);
    return sum;
  }

 private:
  static constexpr int64_t kStripBytes = 512 * 1024;  // student's and teacher's strip together
  static constexpr int64_t kMaxDepthTiles = 2;

  // Scores of one query, and the stride of all that has a column per key. Short sequences beside a long one have rows
  // of their own length, so that more of them stay in the nearest cache.
  static int64_t row_of(int64_t length) { return spread(round_up(length, kDepthTile)); }

  void load_keys(int64_t head, int64_t length) {
    for (int64_t key = 0; key < length; key += kDepthTile) {
      const int64_t keys = std::min(kDepthTile, length - key);
      transpose(rows_of(p_.k_teacher, head, key, keys, dt_depth_, block_), dt_depth_, keys_teacher_t_ + key);
      const Rows student = rows_of(p_.k_student, head, key, keys, ds_depth_, block_);
      transpose(student, ds_depth_, keys_student_t_ + key);
      if (p_.need_grad) {
        pair_rows(student.first, student.ld, kDepthTile, ds_columns_, key_pairs_ + key / 2 * ds_columns_, ds_columns_);
      }
    }
  }

  struct Rows {
    const bf16* first;
    int64_t ld;
  };

  // `count` rows of a head, `depth` columns and up to a multiple of kDepthTile rows, filled up with zeros: where they
  // are or copied to `out`.
  Rows rows_of(const PackedView& view, int64_t head, int64_t first, int64_t count, int64_t depth, bf16* out) {
    if (const bf16* copied = group_.copied<bf16>(view, head, first)) return {copied, view.token_stride};
    load_bf16_rows(view, head, first, count, round_up(count, kDepthTile), out, depth, depth);
    return {out, depth};
  }

  // kDepthTile rows as columns of pairs.
  void transpose(const Rows& rows, int64_t depth, uint32_t* out) {
    transpose_pairs(reinterpret_cast<const uint32_t*>(rows.first), rows.ld / 2, kDepthTile, depth / 2, out, ld_);
  }

  double run_rows(int64_t head, int64_t length, int64_t query, int64_t rows) {
    const int64_t width = round_up(length, kTile), tall = round_up(rows, kTile);
    const Rows student = rows_of(p_.q_student, head, query, rows, ds_depth_, queries_student_);
    const Rows teacher = rows_of(p_.q_teacher, head, query, rows, dt_depth_, queries_teacher_);
    bf16_gemm(tall, width, ds_depth_, student.first, student.ld, keys_student_t_, ld_, student_, ld_, false, &ahead_);
    bf16_gemm(tall, width, dt_depth_, teacher.first, teacher.ld, keys_teacher_t_, ld_, teacher_, ld_, false, &ahead_);
    const PairedGradients gradients_to{direction_, direction_pairs_, ld_};
    const double sum = map_strip(p_, student_, teacher_, ld_, rows, length, weights_, gradients_to);
    if (p_.need_grad) {
      gradients_to.fill_up(rows, round_up(rows, kDepthTile), width);
      gradients(head, length, query, rows, student);
    }
    return sum;
  }

  void gradients(int64_t head, int64_t length, int64_t query, int64_t rows, const Rows& student) {
    // What a product sums over comes in whole tiles of depth, its other sides in half of them.
    const int64_t width = round_up(length, kTile), tall = round_up(rows, kTile);
    const int64_t deep_width = round_up(length, kDepthTile), deep_tall = round_up(rows, kDepthTile);
    float* grad_q = same_ ? grad_q_ + query * ds_columns_ : grad_q_.get();
    bf16_gemm(tall, ds_columns_, deep_width, direction_, ld_, key_pairs_, ds_columns_, grad_q, ds_columns_, false);
    if (!same_) {
      store_rows(grad_q, ds_columns_, rows, p_.grad_q, p_.q_student.dtype, p_.heads, head, query, p_.q_student.dim);
    }
    pair_rows(student.first, student.ld, deep_tall, ds_columns_, query_pairs_, ds_columns_);
    transpose_pairs(query_pairs_, ds_columns_, deep_tall / 2, ds_columns_, queries_t_, deep_tall / 2);
    bf16_gemm(ds_columns_, width, deep_tall, reinterpret_cast<const bf16*>(queries_t_.get()), deep_tall,
              direction_pairs_, ld_, grad_k_t_, ld_, query > 0);
  }

  void store_keys(int64_t head, int64_t length) {
    const int64_t ds = p_.q_student.dim;
    if (!same_) {
      store_transposed(grad_k_t_, ld_, length, p_.grad_k, p_.q_student.dtype, p_.heads, head, 0, ds);
    } else {
      add_transposed(grad_k_t_, ld_, length, grad_q_, ds_columns_, ds_columns_);
      store_rows(grad_q_, ds_columns_, length, p_.grad_q, p_.q_student.dtype, p_.heads, head, 0, ds);
    }
  }

  const GroupRows<AttentionMap>& group_;
  const AttentionMap& p_;
  Ahead& ahead_;
  const bool same_;  // q is k, and grad_q receives both gradients
  const int64_t ds_depth_, dt_depth_, ds_columns_;
  int64_t ld_;  // of the longest sequence while memory is allocated, of the present one ever after
  const int64_t rows_;
  const Bf16Units units_;
  Scratch<bf16> block_;                                // [kDepthTile, depth]
  Scratch<uint32_t> keys_student_t_, keys_teacher_t_;  // [depth / 2, ld] pairs of K^T
  Scratch<uint32_t> key_pairs_;                        // [ld / 2, ds_columns]
  Scratch<bf16> queries_student_, queries_teacher_;    // [rows, depth]
  Scratch<uint32_t> query_pairs_;                      // [rows / 2, ds_depth]
  Scratch<uint32_t> queries_t_;                        // [ds_depth, rows / 2]: rows of Q^T
  Scratch<float> student_, teacher_;                   // [rows, ld]
  Scratch<float> weights_;                             // of map_strip
  Scratch<bf16> direction_;                            // [rows, ld] ss G
  Scratch<uint32_t> direction_pairs_;                  // [rows / 2, ld]
  Scratch<float> grad_q_;                              // [rows, ds_columns]; [ld + rows, ds_columns] where q is k
  Scratch<float> grad_k_t_;                            // [ds_columns, ld]
};

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer

#endif
