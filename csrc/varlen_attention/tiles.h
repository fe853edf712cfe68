// varlen_attention in float32: any dtype, every processor.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "../common/cpu/gemm.h"
#include "../common/cpu/rows.h"
#include "dropout.h"
#include "varlen_attention.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

constexpr int64_t kQueryTile = 48;
constexpr int64_t kKeyTile = 256;

class Forward {
 public:
  Forward(const VarlenAttention& problem, int64_t longest)
      : p_(problem),
        dropout_(p_.dropout_p, p_.seed),
        columns_(padded(p_.q.dim)),
        ld_(padded(longest)),
        keys_(p_.q.dim * ld_),
        values_(longest * columns_),
        queries_(kQueryTile * columns_),
        weights_(kQueryTile * kKeyTile),
        mask_(kKeyTile),
        out_(kQueryTile * columns_) {}

  void run(int64_t head, int64_t first, int64_t length) {
    load_transposed(p_.k, head, first, length, p_.scale, keys_, ld_, padded(length));
    load_rows(p_.v, head, first, length, values_, columns_, columns_);
    for (int64_t query = 0; query < length; query += kQueryTile) {
      run_queries(head, first, length, query, std::min(kQueryTile, length - query));
    }
  }

 private:
  void run_queries(int64_t head, int64_t first, int64_t length, int64_t query, int64_t rows) {
    load_rows(p_.q, head, first + query, rows, queries_, columns_, p_.q.dim);
    std::fill(out_.get(), out_ + rows * columns_, 0.0f);
    std::fill(row_max_, row_max_ + rows, -std::numeric_limits<float>::infinity());
    std::fill(row_sum_, row_sum_ + rows, 0.0f);
    for (int64_t key = 0; key < length; key += kKeyTile) {
      const int64_t keys = std::min(kKeyTile, length - key);
      gemm<float>(rows, padded(keys), p_.q.dim, {queries_, columns_, 1}, {keys_ + key, ld_}, {weights_, kKeyTile},
                  false);
      for (int64_t i = 0; i < rows; ++i) {
        softmax_row(i, keys);
        if (p_.dropout_p > 0) drop(i, head, first + query + i, key, keys);
      }
      gemm<float>(rows, columns_, keys, {weights_, kKeyTile, 1}, {values_ + key * columns_, columns_}, {out_, columns_},
                  true);
    }
    finish(head, first + query, rows);
  }

  // Turns row i of the tile into exp(S - row_max) and rescales what the row has summed to the new row_max.
  void softmax_row(int64_t i, int64_t keys) {
    float* row = weights_ + i * kKeyTile;
    float row_max = row_max_[i];
#pragma omp simd reduction(max : row_max)
    for (int64_t j = 0; j < keys; ++j) row_max = row[j] > row_max ? row[j] : row_max;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < keys; ++j) {
      row[j] = fast_exp(row[j] - row_max);
      sum += row[j];
    }
    const float correction = row_sum_[i] > 0.0f ? fast_exp(row_max_[i] - row_max) : 0.0f;
    row_sum_[i] = row_sum_[i] * correction + sum;
    row_max_[i] = row_max;
    float* out = out_ + i * columns_;
    if (correction != 1.0f) {
      for (int64_t d = 0; d < columns_; ++d) out[d] *= correction;
    }
  }

  void drop(int64_t i, int64_t head, int64_t token, int64_t key, int64_t keys) {
    dropout_.row(token, head, p_.heads, key, keys, mask_);
    float* row = weights_ + i * kKeyTile;
    for (int64_t j = 0; j < keys; ++j) row[j] *= mask_[j];
  }

  void finish(int64_t head, int64_t token, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) {
      const float inverse = 1.0f / row_sum_[i];
      for (int64_t d = 0; d < columns_; ++d) out_[i * columns_ + d] *= inverse;
      p_.lse[head * p_.tokens + token + i] = row_max_[i] + std::log(row_sum_[i]);
    }
    store_rows(out_, columns_, rows, {p_.out, p_.q.dtype, p_.heads, p_.q.dim}, head, token);
  }

  const VarlenAttention& p_;
  const Dropout dropout_;
  const int64_t columns_, ld_;
  Scratch<float> keys_;     // [D, ld] scaled
  Scratch<float> values_;   // [longest, columns]
  Scratch<float> queries_;  // [kQueryTile, columns]
  Scratch<float> weights_;  // [kQueryTile, kKeyTile]
  Scratch<float> mask_;     // [kKeyTile]
  Scratch<float> out_;      // [kQueryTile, columns]
  float row_max_[kQueryTile];
  float row_sum_[kQueryTile];
};

class Backward {
 public:
  Backward(const VarlenAttentionBackward& problem, int64_t longest)
      : b_(problem),
        p_(problem.forward),
        dropout_(p_.dropout_p, p_.seed),
        columns_(padded(p_.q.dim)),
        ld_(padded(longest)),
        keys_t_(p_.q.dim * ld_),
        values_t_(p_.q.dim * ld_),
        keys_(longest * columns_),
        queries_(kQueryTile * columns_),
        grad_out_(kQueryTile * columns_),
        out_(kQueryTile * columns_),
        weights_(kQueryTile * kKeyTile),
        grad_weights_(kQueryTile * kKeyTile),
        mask_(kKeyTile),
        grad_q_(kQueryTile * columns_),
        grad_k_(longest * columns_),
        grad_v_(longest * columns_) {}

  void run(int64_t head, int64_t first, int64_t length) {
    load_transposed(p_.k, head, first, length, p_.scale, keys_t_, ld_, padded(length));
    load_transposed(p_.v, head, first, length, 1.0f, values_t_, ld_, padded(length));
    load_rows(p_.k, head, first, length, keys_, columns_, columns_);
    for (int64_t query = 0; query < length; query += kQueryTile) {
      run_queries(head, first, length, query, std::min(kQueryTile, length - query));
    }
    store_rows(grad_k_, columns_, length, output(b_.grad_k), head, first);
    store_rows(grad_v_, columns_, length, output(b_.grad_v), head, first);
  }

 private:
  PackedOutput output(void* grad) const { return {grad, p_.q.dtype, p_.heads, p_.q.dim}; }

  void run_queries(int64_t head, int64_t first, int64_t length, int64_t query, int64_t rows) {
    const int64_t token = first + query, dim = p_.q.dim;
    load_rows(p_.q, head, token, rows, queries_, columns_, columns_);
    load_rows(b_.grad, head, token, rows, grad_out_, columns_, columns_);
    load_rows({p_.out, p_.q.dtype, p_.heads * dim, dim, dim}, head, token, rows, out_, columns_, columns_);
    for (int64_t i = 0; i < rows; ++i) {
      float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (int64_t d = 0; d < dim; ++d) sum += grad_out_[i * columns_ + d] * out_[i * columns_ + d];
      delta_[i] = sum;
    }
    for (int64_t key = 0; key < length; key += kKeyTile) {
      const int64_t keys = std::min(kKeyTile, length - key), width = padded(keys);
      gemm<float>(rows, width, dim, {queries_, columns_, 1}, {keys_t_ + key, ld_}, {weights_, kKeyTile}, false);
      gemm<float>(rows, width, dim, {grad_out_, columns_, 1}, {values_t_ + key, ld_}, {grad_weights_, kKeyTile}, false);
      for (int64_t i = 0; i < rows; ++i) differentiate_row(i, head, token + i, key, keys);
      // weights_ now holds P . M, grad_weights_ scale dS
      gemm<float>(keys, columns_, rows, {weights_, 1, kKeyTile}, {grad_out_, columns_},
                  {grad_v_ + key * columns_, columns_}, query > 0);
      gemm<float>(keys, columns_, rows, {grad_weights_, 1, kKeyTile}, {queries_, columns_},
                  {grad_k_ + key * columns_, columns_}, query > 0);
      gemm<float>(rows, columns_, keys, {grad_weights_, kKeyTile, 1}, {keys_ + key * columns_, columns_},
                  {grad_q_, columns_}, key > 0);
    }
    store_rows(grad_q_, columns_, rows, output(b_.grad_q), head, token);
  }

  void differentiate_row(int64_t i, int64_t head, int64_t token, int64_t key, int64_t keys) {
    float* weights = weights_ + i * kKeyTile;
    float* grad = grad_weights_ + i * kKeyTile;
    const float lse = p_.lse[head * p_.tokens + token], delta = delta_[i], scale = p_.scale;
    if (p_.dropout_p > 0) {
      dropout_.row(token, head, p_.heads, key, keys, mask_);
#pragma omp simd
      for (int64_t j = 0; j < keys; ++j) {
        const float weight = fast_exp(weights[j] - lse);
        grad[j] = scale * weight * (grad[j] * mask_[j] - delta);
        weights[j] = weight * mask_[j];
      }
    } else {
#pragma omp simd
      for (int64_t j = 0; j < keys; ++j) {
        const float weight = fast_exp(weights[j] - lse);
        grad[j] = scale * weight * (grad[j] - delta);
        weights[j] = weight;
      }
    }
  }

  const VarlenAttentionBackward& b_;
  const VarlenAttention& p_;
  const Dropout dropout_;
  const int64_t columns_, ld_;
  Scratch<float> keys_t_, values_t_;         // [D, ld], keys scaled
  Scratch<float> keys_;                      // [longest, columns]
  Scratch<float> queries_, grad_out_, out_;  // [kQueryTile, columns]
  Scratch<float> weights_, grad_weights_;    // [kQueryTile, kKeyTile]
  Scratch<float> mask_;                      // [kKeyTile]
  Scratch<float> grad_q_;                    // [kQueryTile, columns]
  Scratch<float> grad_k_, grad_v_;           // [longest, columns]
  float delta_[kQueryTile];
};

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
