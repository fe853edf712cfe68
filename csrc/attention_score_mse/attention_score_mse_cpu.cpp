// CPU kernel of attention_score_mse: see attention_score_mse.h for the math. One work item is one sequence
// and head, done by one thread, so results do not depend on the number of threads.
#include <algorithm>
#include <memory>

#include "../common/parallel.h"
#include "../common/vec.h"
#include "attention_score_mse.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

constexpr int64_t kHotTokens = 128;             // rows of A or B that a Gram update keeps in the first-level cache
constexpr int64_t kFlushTokens = 256;           // float32 sums longer than this move to float64
constexpr int64_t kResidentBytes = 512 * 1024;  // A and B stay packed for the second pass while they fit in this
constexpr double kCancellation = 1e-2;
constexpr int64_t kQueryTile = 48;
constexpr int64_t kKeyTile = 256;

// What both methods share of one problem.
struct Shape {
  int64_t ds, dt, depth;       // depth = ds + dt
  int64_t ds_padded, columns;  // whole vectors

  explicit Shape(const AttentionScoreMse& p)
      : ds(p.q_student.dim), dt(p.q_teacher.dim), depth(ds + dt), ds_padded(padded(ds)), columns(padded(depth)) {}
};

// [student, teacher] side by side, zeros up to `columns`.
void load_pair(const PackedView& student, const PackedView& teacher, int64_t head, int64_t first, int64_t count,
               float* out, const Shape& shape) {
  load_rows(student, head, first, count, out, shape.columns, shape.ds);
  load_rows(teacher, head, first, count, out + shape.ds, shape.columns, shape.columns - shape.ds);
}

// G += X^T X for `count` rows of X, upper triangle by blocks of rows (what lies left of a block stays unset).
template <class T>
void add_gram(const T* x, int64_t count, int64_t columns, T* gram) {
  constexpr int64_t kBlock = 16;  // a multiple of every vector's lanes
  for (int64_t i = 0; i < columns; i += kBlock) {
    const int64_t rows = std::min(kBlock, columns - i);
    gemm<T>(rows, columns - i, count, x + i, 1, columns, x + i, columns, gram + i * columns + i, columns, true);
  }
}

class Gram {
 public:
  explicit Gram(const AttentionScoreMse& problem)
      : p_(problem),
        s_(problem),
        block_(
            std::max(kHotTokens, kResidentBytes / (2 * s_.columns * int64_t{sizeof(float)}) / kHotTokens * kHotTokens)),
        a_(block_ * s_.columns),
        b_(block_ * s_.columns),
        narrow_(2 * s_.columns * s_.columns),
        wide_a_(s_.columns * s_.columns),
        wide_b_(s_.columns * s_.columns),
        mixer_(2 * s_.depth * s_.ds_padded),
        out_(kHotTokens * s_.ds_padded) {}

  double run(int64_t head, int64_t first, int64_t length) {
    fill_grams(head, first, length);
    double scale = 0.0;
    double sum = inner_product(scale);
    if (!(sum > kCancellation * scale)) {  // also when it is NaN
      fill_grams_exactly(head, first, length);
      sum = inner_product(scale);
      sum = sum < 0.0 ? 0.0 : sum;
    }
    if (p_.grad_q != nullptr) gradients(head, first, length);
    return sum;
  }

 private:
  void load_block(int64_t head, int64_t first, int64_t count) {
    load_pair(p_.q_student, p_.q_teacher, head, first, count, a_, s_);
    load_pair(p_.k_student, p_.k_teacher, head, first, count, b_, s_);
  }

  void flush() {
    const int64_t size = s_.columns * s_.columns;
    float* narrow_b = narrow_ + size;
    for (int64_t i = 0; i < size; ++i) wide_a_[i] += narrow_[i];
    for (int64_t i = 0; i < size; ++i) wide_b_[i] += narrow_b[i];
    std::fill(narrow_.get(), narrow_ + 2 * size, 0.0f);
  }

  void fill_grams(int64_t head, int64_t first, int64_t length) {
    const int64_t size = s_.columns * s_.columns;
    std::fill(wide_a_.get(), wide_a_ + size, 0.0);
    std::fill(wide_b_.get(), wide_b_ + size, 0.0);
    std::fill(narrow_.get(), narrow_ + 2 * size, 0.0f);
    int64_t pending = 0;
    for (int64_t start = 0; start < length; start += block_) {
      const int64_t count = std::min(block_, length - start);
      load_block(head, first + start, count);
      for (int64_t i = 0; i < count; i += kHotTokens) {
        const int64_t hot = std::min(kHotTokens, count - i);
        add_gram<float>(a_ + i * s_.columns, hot, s_.columns, narrow_);
        add_gram<float>(b_ + i * s_.columns, hot, s_.columns, narrow_ + size);
        pending += hot;
        if (pending >= kFlushTokens) {
          flush();
          pending = 0;
        }
      }
    }
    flush();
  }

  void fill_grams_exactly(int64_t head, int64_t first, int64_t length) {
    const int64_t size = s_.columns * s_.columns;
    std::fill(wide_a_.get(), wide_a_ + size, 0.0);
    std::fill(wide_b_.get(), wide_b_ + size, 0.0);
    Scratch<double> wide_rows(kHotTokens * s_.columns);
    for (int64_t start = 0; start < length; start += kHotTokens) {
      const int64_t count = std::min(kHotTokens, length - start);
      load_block(head, first + start, count);
      std::copy(a_.get(), a_ + count * s_.columns, wide_rows.get());
      add_gram<double>(wide_rows, count, s_.columns, wide_a_);
      std::copy(b_.get(), b_ + count * s_.columns, wide_rows.get());
      add_gram<double>(wide_rows, count, s_.columns, wide_b_);
    }
    if (length <= block_) load_block(head, first, length);  // as the float32 pass leaves it
  }

  double sign(int64_t i) const { return i < s_.ds ? p_.scale_student : -p_.scale_teacher; }

  // <A^T A, B^T B> with the signs and scales of A's columns; `scale` receives ||S||^2 + ||T||^2.
  double inner_product(double& scale) const {
    double sum = 0.0, diagonal_blocks = 0.0;
    for (int64_t i = 0; i < s_.depth; ++i) {
      for (int64_t j = i; j < s_.depth; ++j) {
        const double term =
            (i == j ? 1.0 : 2.0) * sign(i) * sign(j) * wide_a_[i * s_.columns + j] * wide_b_[i * s_.columns + j];
        sum += term;
        if ((i < s_.ds) == (j < s_.ds)) diagonal_blocks += term;
      }
    }
    scale = diagonal_blocks;
    return sum;
  }

  // [depth, ds] right factor of a gradient: 2 stored ss sigma_i G[i][j], read from G's upper triangle.
  void fill_mixer(const double* gram, float* mixer) const {
    for (int64_t i = 0; i < s_.depth; ++i) {
      const double factor = 2.0 * p_.stored * p_.scale_student * sign(i);
      for (int64_t j = 0; j < s_.ds; ++j) {
        mixer[i * s_.ds_padded + j] = static_cast<float>(factor * gram[std::min(i, j) * s_.columns + std::max(i, j)]);
      }
      for (int64_t j = s_.ds; j < s_.ds_padded; ++j) mixer[i * s_.ds_padded + j] = 0.0f;
    }
  }

  void gradients(int64_t head, int64_t first, int64_t length) {
    float* mixer_k = mixer_ + s_.depth * s_.ds_padded;
    fill_mixer(wide_b_, mixer_);
    fill_mixer(wide_a_, mixer_k);
    for (int64_t start = 0; start < length; start += block_) {
      const int64_t count = std::min(block_, length - start);
      if (length > block_) load_block(head, first + start, count);  // else still packed from the first pass
      for (int64_t i = 0; i < count; i += kHotTokens) {
        const int64_t hot = std::min(kHotTokens, count - i);
        const int64_t token = first + start + i;
        multiply(a_ + i * s_.columns, hot, mixer_, p_.grad_q, head, token);
        multiply(b_ + i * s_.columns, hot, mixer_k, p_.grad_k, head, token);
      }
    }
  }

  void multiply(const float* rows, int64_t count, const float* mixer, void* grad, int64_t head, int64_t token) {
    gemm<float>(count, s_.ds_padded, s_.depth, rows, s_.columns, 1, mixer, s_.ds_padded, out_, s_.ds_padded, false);
    store_rows(out_, s_.ds_padded, count, grad, p_.q_student.dtype, p_.heads, head, token, s_.ds);
  }

  const AttentionScoreMse& p_;
  const Shape s_;
  const int64_t block_;
  Scratch<float> a_, b_;             // [block, columns]
  Scratch<float> narrow_;            // [2, columns, columns]
  Scratch<double> wide_a_, wide_b_;  // [columns, columns]
  Scratch<float> mixer_;             // [2, depth, ds_padded]
  Scratch<float> out_;               // [kHotTokens, ds_padded]
};

class Tiled {
 public:
  Tiled(const AttentionScoreMse& problem, int64_t longest)
      : p_(problem),
        s_(problem),
        queries_(longest * s_.columns),
        keys_(kKeyTile * s_.ds_padded),
        keys_transposed_(s_.depth * kKeyTile),
        difference_(kQueryTile * kKeyTile),
        grad_q_(p_.grad_q ? longest * s_.ds_padded : 0),
        grad_k_(kKeyTile * s_.ds_padded) {}

  double run(int64_t head, int64_t first, int64_t length) {
    load_pair(p_.q_student, p_.q_teacher, head, first, length, queries_, s_);
    double sum = 0.0;
    for (int64_t key = 0; key < length; key += kKeyTile) {
      sum += run_keys(head, first, length, key, std::min(kKeyTile, length - key));
    }
    if (p_.grad_q != nullptr) {
      store_rows(grad_q_, s_.ds_padded, length, p_.grad_q, p_.q_student.dtype, p_.heads, head, first, s_.ds);
    }
    return sum;
  }

 private:
  double run_keys(int64_t head, int64_t first, int64_t length, int64_t key, int64_t keys) {
    const int64_t width = padded(keys);
    const bool need_grad = p_.grad_q != nullptr;
    load_transposed(p_.k_student, head, first + key, keys, static_cast<float>(p_.scale_student), keys_transposed_,
                    kKeyTile, width);
    load_transposed(p_.k_teacher, head, first + key, keys, static_cast<float>(-p_.scale_teacher),
                    keys_transposed_ + s_.ds * kKeyTile, kKeyTile, width);
    if (need_grad) load_rows(p_.k_student, head, first + key, keys, keys_, s_.ds_padded, s_.ds_padded);

    const float factor = static_cast<float>(2.0 * p_.stored * p_.scale_student);
    double sum = 0.0;
    for (int64_t query = 0; query < length; query += kQueryTile) {
      const int64_t rows = std::min(kQueryTile, length - query);
      const float* queries = queries_ + query * s_.columns;
      gemm<float>(rows, width, s_.depth, queries, s_.columns, 1, keys_transposed_, kKeyTile, difference_, kKeyTile,
                  false);
      sum += square_and_scale(rows, keys, need_grad ? factor : 0.0f);
      if (!need_grad) continue;
      gemm<float>(rows, s_.ds_padded, keys, difference_, kKeyTile, 1, keys_, s_.ds_padded,
                  grad_q_ + query * s_.ds_padded, s_.ds_padded, key > 0);
      // The student's queries are the first ds columns of `queries`; the columns beyond, the teacher's, fall into
      // padding.
      add_grad_k(rows, keys, queries, query > 0);
    }
    if (need_grad) {
      store_rows(grad_k_, s_.ds_padded, keys, p_.grad_k, p_.q_student.dtype, p_.heads, head, first + key, s_.ds);
    }
    return sum;
  }

  void add_grad_k(int64_t rows, int64_t keys, const float* queries, bool accumulate) {
    gemm<float>(keys, s_.ds_padded, rows, difference_, 1, kKeyTile, queries, s_.columns, grad_k_, s_.ds_padded,
                accumulate);
  }

  // Sum of squares of the tile, which is left multiplied by `factor`.
  double square_and_scale(int64_t rows, int64_t keys, float factor) {
    double sum = 0.0;
    for (int64_t i = 0; i < rows; ++i) {
      float* row = difference_ + i * kKeyTile;
      float row_sum = 0.0f;
#pragma omp simd reduction(+ : row_sum)
      for (int64_t j = 0; j < keys; ++j) {
        row_sum += row[j] * row[j];
        row[j] *= factor;
      }
      sum += row_sum;
    }
    return sum;
  }

  const AttentionScoreMse& p_;
  const Shape s_;
  Scratch<float> queries_;          // [longest, columns]
  Scratch<float> keys_;             // [kKeyTile, ds_padded]
  Scratch<float> keys_transposed_;  // [depth, kKeyTile]
  Scratch<float> difference_;       // [kQueryTile, kKeyTile]
  Scratch<float> grad_q_;           // [longest, ds_padded]
  Scratch<float> grad_k_;           // [kKeyTile, ds_padded]
};

// The length below which tiles cost fewer multiply-adds than Gram matrices, whose triangles are 0.6 of a square.
int64_t crossover(const AttentionScoreMse& p) {
  const double ds = static_cast<double>(p.q_student.dim), depth = ds + static_cast<double>(p.q_teacher.dim);
  const bool need_grad = p.grad_q != nullptr;
  return static_cast<int64_t>((1.2 * depth * depth + (need_grad ? 2 * depth * ds : 0)) /
                              (depth + (need_grad ? 2 * ds : 0)));
}

}  // namespace

void attention_score_mse(const AttentionScoreMse& p) {
  using Method = AttentionScoreMse::Method;
  const int64_t limit = p.method == Method::gram ? 0 : p.method == Method::tiled ? INT64_MAX : crossover(p);
  int64_t longest_tiled = -1;
  bool any_gram = false;
  double operations = 0.0;
  for (int64_t n = 0; n < p.packing.sequences; ++n) {
    const int64_t used = p.packing.used(n);
    if (used < limit) {
      longest_tiled = std::max(longest_tiled, used);
    } else {
      any_gram = true;
    }
    const double depth = static_cast<double>(p.q_student.dim + p.q_teacher.dim);
    operations += static_cast<double>(p.heads * used) * depth * static_cast<double>(used < limit ? 2 * used : 100);
  }

  struct Worker {
    const AttentionScoreMse& p;
    int64_t limit;
    std::unique_ptr<Tiled> tiled;
    std::unique_ptr<Gram> gram;

    void operator()(int64_t item) {
      const int64_t n = item / p.heads, head = item % p.heads;
      const int64_t first = p.packing.start(n), used = p.packing.used(n);
      p.sums[item] = used == 0 ? 0.0 : used < limit ? tiled->run(head, first, used) : gram->run(head, first, used);
      if (p.grad_q == nullptr) return;
      const int64_t rest = p.packing.length(n) - used;
      store_zero_rows(rest, p.grad_q, p.q_student.dtype, p.heads, head, first + used, p.q_student.dim);
      store_zero_rows(rest, p.grad_k, p.q_student.dtype, p.heads, head, first + used, p.q_student.dim);
    }
  };
  for_each_item(p.packing.sequences * p.heads, operations, [&] {
    return Worker{p, limit, longest_tiled >= 0 ? std::make_unique<Tiled>(p, longest_tiled) : nullptr,
                  any_gram ? std::make_unique<Gram>(p) : nullptr};
  });
}

}  // namespace BERTXFER_ISA
}  // namespace bertxfer
