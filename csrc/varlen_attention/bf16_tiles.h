// varlen_attention of bfloat16 tensors on the processor's bfloat16 units. Scores, softmax and sums are float32; weights
// and the gradient with respect to the scores are rounded to bfloat16 before they are multiplied again.
#pragma once

#include <algorithm>
#include <cmath>

#include "../common/cpu/bf16_gemm.h"
#include "../common/cpu/softmax_rows.h"
#include "dropout.h"
#include "group_plan.h"
#include "varlen_attention.h"

#if defined(BERTXFER_BF16_GEMM)

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

// Rows of one head as bf16_gemm.h reads them.
class Bf16Layouts {
 public:
  static constexpr int64_t kRows = 64;  // queries of a tile
  static constexpr int64_t kKeys = GroupPlan::kKeys;
  static constexpr int64_t kShort = 128;  // the most keys at which the units are kept awake

  explicit Bf16Layouts(int64_t dim)
      : depth(round_up(dim, kDepthTile)), columns(round_up(dim, kTile)), block_(kDepthTile * depth) {}

  const int64_t depth;    // of products over the head's columns
  const int64_t columns;  // of results that have them

  // At most kDepthTile tokens from `first` on, filled up with zero rows: as they are [kDepthTile, depth].
  void load(const PackedView& view, int64_t head, int64_t first, int64_t count, bf16* rows) const {
    load_bf16_rows(view, head, first, count, kDepthTile, rows, depth, depth);
  }

  // The same as columns of pairs [depth / 2, ld], and as pairs of rows [kDepthTile / 2, columns]. Either may be null.
  void load(const PackedView& view, int64_t head, int64_t first, int64_t count, uint32_t* transposed, int64_t ld,
            uint32_t* pairs) {
    load(view, head, first, count, block_);
    if (transposed != nullptr) {
      transpose_pairs(reinterpret_cast<const uint32_t*>(block_.get()), depth / 2, kDepthTile, depth / 2, transposed,
                      ld);
    }
    if (pairs != nullptr) pair_rows(block_, depth, kDepthTile, columns, pairs, columns);
  }

 private:
  Scratch<bf16> block_;  // [kDepthTile, depth]
};

class Bf16Forward {
 public:
  // That a token of a head takes: query, key and value.
  static int64_t group_bytes(int64_t dim) { return 6 * round_up(dim, kDepthTile); }

  Bf16Forward(const VarlenAttention& problem, const GroupPlan& groups)
      : p_(problem),
        dropout_(p_.dropout_p, p_.seed),
        layouts_(p_.q.dim),
        ld_(GroupPlan::stride_of(groups.longest)),
        queries_(groups.room * layouts_.depth),
        keys_t_(layouts_.depth / 2 * groups.room),
        value_pairs_(groups.room / 2 * layouts_.columns),
        scores_(kRows * ld_),
        weights_(kRows * ld_),
        mask_(ld_),
        out_(kRows * layouts_.columns) {}

  void run(const Group& group) {
    load_group(group);
    for (int64_t h = 0; h < group.heads; ++h) {
      for (int64_t query = 0; query < group.length; query += kRows) run_queries(group, h, query);
    }
  }

 private:
  static constexpr int64_t kRows = Bf16Layouts::kRows, kKeys = Bf16Layouts::kKeys, kShort = Bf16Layouts::kShort;

  void load_group(const Group& group) {
    room_ = GroupPlan::room_of(group.length);
    stride_ = GroupPlan::stride_of(group.length);
    group.for_each_block([&](int64_t i, int64_t token, int64_t count, const auto& for_each_head) BERTXFER_INLINE {
      for_each_head([&](int64_t h, int64_t head) {
        layouts_.load(p_.k, head, token, count, keys_t_ + column_of(h, i), stride_, nullptr);
      });
      for_each_head([&](int64_t h, int64_t head) {
        layouts_.load(p_.v, head, token, count, nullptr, 0, values_of(h) + i / 2 * layouts_.columns);
      });
      for_each_head([&](int64_t h, int64_t head) {
        layouts_.load(p_.q, head, token, count, queries_ + (h * room_ + i) * layouts_.depth);
      });
    });
  }

  // Where K^T of a key is.
  int64_t column_of(int64_t h, int64_t key) const {
    return (h * room_ + key / kKeys * stride_) * (layouts_.depth / 2) + key % kKeys;
  }
  uint32_t* values_of(int64_t h) const { return value_pairs_ + h * room_ / 2 * layouts_.columns; }

  void run_queries(const Group& group, int64_t h, int64_t query) {
    const int64_t depth = layouts_.depth, columns = layouts_.columns, length = group.length;
    const int64_t rows = std::min(kRows, length - query), tall = round_up(rows, kTile);
    const int64_t head = group.first + h, token = group.token + query;
    const bf16* queries = queries_ + (h * room_ + query) * depth;
    for (int64_t key = 0; key < length; key += kKeys) {
      const int64_t keys = std::min(kKeys, length - key);
      bf16_gemm(tall, round_up(keys, kTile), depth, queries, depth, keys_t_ + column_of(h, key), stride_, scores_, ld_,
                false);
      for (int64_t i = 0; i < rows; ++i) {
        if (keys <= kShort && i % 16 == 15) keep_bf16_units_awake();
        if (p_.dropout_p > 0) {
          dropout_.row(token + i, head, p_.heads, key, keys, mask_);
          softmax_row<true>(i, keys, key == 0);
        } else {
          softmax_row<false>(i, keys, key == 0);
        }
      }
      bf16_gemm(tall, columns, round_up(keys, kDepthTile), weights_, ld_, values_of(h) + key / 2 * columns, columns,
                out_, columns, key > 0);
    }
    finish(head, token, rows);
  }

  // Weights of row i of the tile, relative to the highest of the row's first scores, or, where one is far above, to the
  // highest of the tile: then what the row has gathered is made less.
  template <bool DROP>
  void softmax_row(int64_t i, int64_t keys, bool first) {
    const float* scores = scores_ + i * ld_;
    if (first) {
      base_[i] = highest_score(scores, std::min(keys, kFirstColumns), p_.scale);
      total_[i] = 0.0f;
    }
    float sum = weigh<DROP>(i, keys);
    if (!(sum < kFarAbove)) {
      const float before = base_[i];
      base_[i] = highest_score(scores, keys, p_.scale);
      const float less = first ? 0.0f : fast_exp((before - base_[i]) * p_.scale);
      total_[i] *= less;
      if (!first) scale_row(i, less);
      sum = weigh<DROP>(i, keys);
    }
    total_[i] += sum;
  }

  // Returns the sum before dropout.
  template <bool DROP>
  float weigh(int64_t i, int64_t keys) {
    const float* scores = scores_ + i * ld_;
    bf16* weights = weights_ + i * ld_;
    const float base = base_[i], scale = p_.scale * kLog2E;
    Vector<float> sum = {};
    for_vectors(keys, [&](int64_t j, int64_t n) BERTXFER_INLINE {
      const Vector<float> power = (load(scores + j) - base) * scale;
      Vector<float> weight = first_lanes(fast_exp2<kDegree<Digits::bfloat16>>(power), n);
      sum += weight;
      if constexpr (DROP) weight *= load_floats(mask_ + j, n);
      store_floats(weight, weights + j);
    });
    fill_depth(weights, keys);
    return sum_of(sum);
  }

  void scale_row(int64_t i, float factor) {
    float* out = out_ + i * layouts_.columns;
    for_vectors(layouts_.columns, [&](int64_t d, int64_t) BERTXFER_INLINE { store(load(out + d) * factor, out + d); });
  }

  void finish(int64_t head, int64_t token, int64_t rows) {
    constexpr int64_t W = kLanes<double>;
    float* lse = p_.lse + head * p_.tokens + token;
    std::fill(total_ + rows, total_ + round_up(rows, W), 1.0f);  // of rows that are not there
    for (int64_t i = 0; i < rows; i += W) {
      const Vector<double> logs = log_of(load_doubles(total_ + i));
      for (int64_t l = 0; l < std::min(W, rows - i); ++l) {
        lse[i + l] = base_[i + l] * p_.scale + static_cast<float>(logs[l]);
      }
    }
    bf16* out = static_cast<bf16*>(p_.out) + (token * p_.heads + head) * p_.q.dim;
    for (int64_t i = 0; i < rows; ++i, out += p_.heads * p_.q.dim) {
      const float inverse = 1.0f / total_[i];
      const float* row = out_ + i * layouts_.columns;
      for_vectors(p_.q.dim,
                  [&](int64_t d, int64_t n) BERTXFER_INLINE { store_floats(load(row + d) * inverse, out + d, n); });
    }
  }

  const VarlenAttention& p_;
  const Dropout dropout_;
  const Bf16Units units_;
  Bf16Layouts layouts_;
  const int64_t ld_;
  int64_t room_ = 0, stride_ = 0;  // of the present group, see GroupPlan
  Scratch<bf16> queries_;          // [heads, room, depth]
  Scratch<uint32_t> keys_t_;       // [heads, tiles, depth / 2, stride] pairs of K^T
  Scratch<uint32_t> value_pairs_;  // [heads, room / 2, columns]
  Scratch<float> scores_;          // [kRows, ld]
  Scratch<bf16> weights_;          // [kRows, ld]
  Scratch<float> mask_;            // [ld]
  Scratch<float> out_;             // [kRows, columns]
  float base_[kRows], total_[kRows];
};

// Keys by tiles, and for each all the queries, so that the gradients of a tile's keys and values stay near.
class Bf16Backward {
 public:
  // That a token of a head takes: query, upstream gradient, key twice and value.
  static int64_t group_bytes(int64_t dim) { return 10 * round_up(dim, kDepthTile); }

  Bf16Backward(const VarlenAttentionBackward& problem, const GroupPlan& groups)
      : b_(problem),
        p_(problem.forward),
        dropout_(p_.dropout_p, p_.seed),
        layouts_(p_.q.dim),
        most_(round_up(groups.longest, kRows)),
        ld_(GroupPlan::stride_of(groups.longest)),
        queries_(groups.room * layouts_.depth),
        grad_out_(groups.room * layouts_.depth),
        log_sums_(groups.room),
        deltas_(groups.room),
        keys_t_(layouts_.depth / 2 * groups.columns),
        values_t_(layouts_.depth / 2 * groups.columns),
        key_pairs_(groups.columns / 2 * layouts_.columns),
        row_pairs_(kRows / 2 * layouts_.columns),
        queries_t_(most_ / 2 * layouts_.columns),
        grad_out_t_(most_ / 2 * layouts_.columns),
        scores_(kRows * ld_),
        grad_weights_(kRows * ld_),
        grad_scores_(kRows * ld_),
        weight_pairs_(kRows / 2 * ld_),
        grad_score_pairs_(kRows / 2 * ld_),
        masks_(2 * ld_),
        grad_q_(most_ * layouts_.columns),
        grad_k_t_(layouts_.columns * ld_),
        grad_v_t_(layouts_.columns * ld_) {}

  void run(const Group& group) {
    load_group(group);
    for (int64_t h = 0; h < group.heads; ++h) run_head(group, h);
  }

 private:
  static constexpr int64_t kRows = Bf16Layouts::kRows, kKeys = Bf16Layouts::kKeys, kShort = Bf16Layouts::kShort;

  void load_group(const Group& group) {
    const int64_t depth = layouts_.depth;
    room_ = GroupPlan::room_of(group.length);
    stride_ = GroupPlan::stride_of(group.length);
    group.for_each_block([&](int64_t i, int64_t token, int64_t count, const auto& for_each_head) BERTXFER_INLINE {
      if (group.length <= kKeys) {
        for_each_head([&](int64_t h, int64_t head) { load_keys(h, head, i, token, count); });
        for_each_head([&](int64_t h, int64_t head) { load_values(h, head, i, token, count); });
      }
      for_each_head([&](int64_t h, int64_t head) {
        layouts_.load(p_.q, head, token, count, queries_ + (h * room_ + i) * depth);
      });
      for_each_head([&](int64_t h, int64_t head) {
        layouts_.load(b_.grad, head, token, count, grad_out_ + (h * room_ + i) * depth);
      });
      for_each_head([&](int64_t h, int64_t head) { find_sums(head, token, count, h * room_ + i); });
    });
  }

  // At most kDepthTile keys, or values, from column i of a tile on.
  void load_keys(int64_t h, int64_t head, int64_t i, int64_t token, int64_t count) {
    uint32_t* pairs = key_pairs_ + (h * stride_ + i) / 2 * layouts_.columns;
    layouts_.load(p_.k, head, token, count, keys_t_ + tile_of(h) + i, stride_, pairs);
  }
  void load_values(int64_t h, int64_t head, int64_t i, int64_t token, int64_t count) {
    layouts_.load(p_.v, head, token, count, values_t_ + tile_of(h) + i, stride_, nullptr);
  }
  int64_t tile_of(int64_t h) const { return h * stride_ * (layouts_.depth / 2); }

  // What rows have of their own; an even number of them, because they are worked on in pairs.
  void find_sums(int64_t head, int64_t token, int64_t count, int64_t row) {
    const int64_t dim = p_.q.dim;
    const bf16* grad_out = grad_out_ + row * layouts_.depth;
    const bf16* out = static_cast<const bf16*>(p_.out) + (token * p_.heads + head) * dim;
    for (int64_t i = 0; i < count; ++i, out += p_.heads * dim, grad_out += layouts_.depth) {
      Vector<float> sum = {};
      for_vectors(dim, [&](int64_t d, int64_t n) BERTXFER_INLINE {
        __builtin_prefetch(out + d + kTokensAhead * p_.heads * dim);
        sum += load_floats(grad_out + d, n) * load_floats(out + d, n);
      });
      deltas_[row + i] = sum_of(sum);
      log_sums_[row + i] = p_.lse[head * p_.tokens + token + i] * kLog2E;
    }
    if (count % 2 == 1) log_sums_[row + count] = deltas_[row + count] = 0.0f;
  }

  void run_head(const Group& group, int64_t h) {
    const int64_t head = group.first + h, first = group.token, length = group.length, dim = p_.q.dim;
    const int64_t tall = round_up(length, kDepthTile);
    for (int64_t query = 0; query < length; query += kRows) {
      transpose_rows(queries_ + h * room_ * layouts_.depth, query, tall, queries_t_);
      transpose_rows(grad_out_ + h * room_ * layouts_.depth, query, tall, grad_out_t_);
    }
    for (int64_t key = 0; key < length; key += kKeys) {
      const int64_t keys = std::min(kKeys, length - key);
      for (int64_t i = 0; i < keys && length > kKeys; i += kDepthTile) {
        load_keys(h, head, i, first + key + i, std::min(kDepthTile, keys - i));
        load_values(h, head, i, first + key + i, std::min(kDepthTile, keys - i));
      }
      for (int64_t query = 0; query < length; query += kRows) {
        run_tile(head, h, first, query, std::min(kRows, length - query), key, keys);
      }
      store_transposed(grad_k_t_, ld_, keys, b_.grad_k, p_.q.dtype, p_.heads, head, first + key, dim);
      store_transposed(grad_v_t_, ld_, keys, b_.grad_v, p_.q.dtype, p_.heads, head, first + key, dim);
    }
    store_rows(grad_q_, layouts_.columns, length, b_.grad_q, p_.q.dtype, p_.heads, head, first, dim);
  }

  // A tile's rows as rows of the transposed matrix, up to `tall`.
  void transpose_rows(const bf16* rows, int64_t query, int64_t tall, uint32_t* out) {
    const int64_t count = std::min(kRows, tall - query), columns = layouts_.columns;
    pair_rows(rows + query * layouts_.depth, layouts_.depth, count, columns, row_pairs_, columns);
    transpose_pairs(row_pairs_, columns, count / 2, columns, out + query / 2 * columns, count / 2);
  }

  void run_tile(int64_t head, int64_t h, int64_t first, int64_t query, int64_t rows, int64_t key, int64_t keys) {
    const int64_t depth = layouts_.depth, columns = layouts_.columns;
    const int64_t tall = round_up(rows, kTile), deep_tall = round_up(rows, kDepthTile), width = round_up(keys, kTile);
    const int64_t row = h * room_ + query;
    bf16_gemm(tall, width, depth, queries_ + row * depth, depth, keys_t_ + tile_of(h), stride_, scores_, ld_, false);
    bf16_gemm(tall, width, depth, grad_out_ + row * depth, depth, values_t_ + tile_of(h), stride_, grad_weights_, ld_,
              false);
    for (int64_t i = 0; i < rows; i += 2) {
      if (keys <= kShort && i % 16 == 14) keep_bf16_units_awake();
      if (p_.dropout_p > 0) {
        dropout_.row(first + query + i, head, p_.heads, key, keys, masks_);
        dropout_.row(first + query + i + 1, head, p_.heads, key, keys, masks_ + ld_);
        differentiate<true>(row, i, keys);
      } else {
        differentiate<false>(row, i, keys);
      }
    }
    for (int64_t i = (rows + 1) / 2; i < deep_tall / 2; ++i) {
      std::fill_n(weight_pairs_ + i * ld_, width, 0);
      std::fill_n(grad_score_pairs_ + i * ld_, width, 0);
    }
    const auto rows_of = [&](const uint32_t* transposed) {
      return reinterpret_cast<const bf16*>(transposed + query / 2 * columns);
    };
    bf16_gemm(columns, width, deep_tall, rows_of(grad_out_t_), deep_tall, weight_pairs_, ld_, grad_v_t_, ld_,
              query > 0);
    bf16_gemm(columns, width, deep_tall, rows_of(queries_t_), deep_tall, grad_score_pairs_, ld_, grad_k_t_, ld_,
              query > 0);
    bf16_gemm(tall, columns, round_up(keys, kDepthTile), grad_scores_, ld_, key_pairs_ + h * stride_ / 2 * columns,
              columns, grad_q_ + query * columns, columns, key > 0);
  }

  // Rows i and i + 1 of the tile: P . M in pairs, scale dS in rows and in pairs.
  template <bool DROP>
  void differentiate(int64_t first, int64_t i, int64_t keys) {
    const float *scores = scores_ + i * ld_, *grads = grad_weights_ + i * ld_;
    bf16* out = grad_scores_ + i * ld_;
    uint32_t *weight_pairs = weight_pairs_ + i / 2 * ld_, *grad_pairs = grad_score_pairs_ + i / 2 * ld_;
    const float scale = p_.scale, exponent = scale * kLog2E;
    const float *log_sums = log_sums_ + first + i, *deltas = deltas_ + first + i;
    for_vectors(keys, [&](int64_t j, int64_t n) BERTXFER_INLINE {
      Vector<float> kept[2], grad[2];
#pragma GCC unroll 2
      for (int r = 0; r < 2; ++r) {
        const Vector<float> power = load(scores + r * ld_ + j) * exponent - log_sums[r];
        const Vector<float> weight = first_lanes(fast_exp2<kDegree<Digits::bfloat16>>(power), n);
        Vector<float> upstream = load(grads + r * ld_ + j);
        kept[r] = weight;
        if constexpr (DROP) {
          const Vector<float> mask = load_floats(masks_ + r * ld_ + j, n);
          upstream *= mask;
          kept[r] *= mask;
        }
        grad[r] = first_lanes(scale * weight * (upstream - deltas[r]), n);
      }
      const __m256i low = rounded(grad[0], bf16{}), high = rounded(grad[1], bf16{});
      _mm256_storeu_si256((__m256i*)(out + j), low);
      _mm256_storeu_si256((__m256i*)(out + ld_ + j), high);
      _mm512_storeu_si512(grad_pairs + j, paired(low, high));
      _mm512_storeu_si512(weight_pairs + j, pair_of(kept[0], kept[1]));
    });
    fill_depth(out, keys);
    fill_depth(out + ld_, keys);
  }

  const VarlenAttentionBackward& b_;
  const VarlenAttention& p_;
  const Dropout dropout_;
  const Bf16Units units_;
  Bf16Layouts layouts_;
  const int64_t most_, ld_;
  int64_t room_ = 0, stride_ = 0;                      // of the present group, see GroupPlan
  Scratch<bf16> queries_, grad_out_;                   // [heads, room, depth]
  Scratch<float> log_sums_, deltas_;                   // [heads, room] log-sum-exps in units of log 2; rowsum(dO . O)
  Scratch<uint32_t> keys_t_, values_t_;                // [heads, depth / 2, stride] pairs of a tile's K^T, V^T
  Scratch<uint32_t> key_pairs_;                        // [heads, stride / 2, columns]
  Scratch<uint32_t> row_pairs_;                        // [kRows / 2, columns]
  Scratch<uint32_t> queries_t_, grad_out_t_;           // for each tile of rows [columns, rows / 2]: rows of Q^T
  Scratch<float> scores_, grad_weights_;               // [kRows, ld]
  Scratch<bf16> grad_scores_;                          // [kRows, ld] scale dS
  Scratch<uint32_t> weight_pairs_, grad_score_pairs_;  // [kRows / 2, ld]
  Scratch<float> masks_;                               // [2, ld]
  Scratch<float> grad_q_;                              // [most, columns]
  Scratch<float> grad_k_t_, grad_v_t_;                 // [columns, ld]
};

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer

#endif
