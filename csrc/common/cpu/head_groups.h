// A kernel's work on q and k of two models, head by head, each done by one thread, so that results do not depend on the
// number of threads.
//
// The rows of one head lie a token apart, in pieces of a few cache lines and nearly as many pages, which come from
// memory at half the speed of a copy; where a sequence is short that takes as long as the products. Rows of
// neighbouring heads are contiguous, so several heads are copied at once into the second-level cache, in the layout
// that the linear method of attention_score_mse multiplies: student and teacher side by side (docs/kernels.md).
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "parallel.h"
#include "prefetch.h"
#include "rows.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

// Columns of a row [student, zeros, teacher, zeros].
struct ConcatLayout {
  int64_t teacher_offset, columns;
};

// bfloat16 rows fill the tiles of bf16_gemm.h, which sum over 32 columns: both rows as one, or (`separate_tiles`) each
// of them. Rows of other dtypes fill whole vectors.
inline ConcatLayout concat_layout(Dtype dtype, int64_t ds, int64_t dt, bool separate_tiles = false) {
  if (dtype != Dtype::bf16) return {padded(ds), padded(ds) + padded(dt)};
  const int64_t tile = separate_tiles ? 32 : 16, teacher_offset = (ds + tile - 1) / tile * tile;
  return {teacher_offset, (teacher_offset + dt + 31) / 32 * 32};
}

constexpr int64_t kPrefetchRows = 4;

// Copies a row of `bytes` and fills it up with zeros to `padded_bytes`; prefetches the row `prefetch_offset` bytes on.
inline void copy_row(const char* from, int64_t bytes, int64_t padded_bytes, int64_t prefetch_offset, char* to) {
#if defined(__AVX512BW__)
  const auto first_bytes = [](int64_t n) BERTXFER_INLINE { return n >= 64 ? ~0ull : n <= 0 ? 0ull : (1ull << n) - 1; };
  int64_t i = 0;
  for (; i + 64 <= bytes; i += 64) {
    __builtin_prefetch(from + i + prefetch_offset);
    _mm512_storeu_si512(to + i, _mm512_loadu_si512(from + i));
  }
  for (; i < padded_bytes; i += 64) {
    if (i < bytes) __builtin_prefetch(from + i + prefetch_offset);
    const __m512i line = _mm512_maskz_loadu_epi8(first_bytes(bytes - i), from + i);
    _mm512_mask_storeu_epi8(to + i, first_bytes(padded_bytes - i), line);
  }
#else
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i + prefetch_offset);
  std::memcpy(to, from, bytes);
  std::memset(to + bytes, 0, padded_bytes - bytes);
#endif
}

// Copies rows first..first+count-1 of one head to out, `ld` bytes apart, each filled up with zeros to `padded_bytes`.
inline void copy_rows(const PackedView& view, int64_t head, int64_t first, int64_t count, int64_t padded_bytes,
                      int64_t ld, char* out) {
  const int64_t size = size_of(view.dtype), stride = view.token_stride * size;
  const char* row = static_cast<const char*>(view.data) + head * view.head_stride * size + first * stride;
  for (int64_t i = 0; i < count; ++i, row += stride, out += ld) {
    copy_row(row, view.dim * size, padded_bytes, kPrefetchRows * stride, out);
  }
}

// Neighbouring heads of one sequence, whose rows are copied together or read in place.
struct HeadGroup {
  int64_t sequence, head, heads;
  bool copied;
};

// Groups first..last-1, of one sequence: what a thread is handed at a time, because neighbouring heads share cache
// lines and pages.
struct Turn {
  int64_t first, last;
};

// When heads are copied.
struct CopyPlan {
  int64_t bytes;        // of one copy
  int64_t min_heads;    // that have to fit into it; else rows are read in place
  bool separate_tiles;  // see concat_layout()
};

// The groups of all sequences, and the turns in which threads take them. `Problem` has q_student, k_student, q_teacher,
// k_teacher, grad_dtype, grad_q, grad_k, heads, packing and losses.
template <class Problem>
class HeadGroups {
 public:
  HeadGroups(const Problem& p, CopyPlan plan)
      : dtype(p.q_student.dtype),
        layout(concat_layout(dtype, p.q_student.dim, p.q_teacher.dim, plan.separate_tiles)),
        symmetric(p.q_student.data == p.k_student.data && p.q_teacher.data == p.k_teacher.data) {
    const bool one_dtype = p.k_student.dtype == dtype && p.q_teacher.dtype == dtype && p.k_teacher.dtype == dtype;
    const int64_t sequences = p.packing.sequences, wanted_turns = kTurns * num_threads();
    const int64_t turns_per_sequence = std::max<int64_t>(1, wanted_turns / std::max<int64_t>(1, sequences));
    const int64_t heads_per_turn = std::max<int64_t>(1, sequences * p.heads / wanted_turns);
    std::vector<int64_t> order(sequences);
    for (int64_t n = 0; n < sequences; ++n) order[n] = n;
    // The longest sequences go first, and the last ones by halves, so that threads finish together.
    std::stable_sort(order.begin(), order.end(),
                     [&p](int64_t n, int64_t m) { return p.packing.used(n) > p.packing.used(m); });
    for (int64_t i = 0; i < sequences; ++i) {
      const int64_t n = order[i], halves = sequences - i <= num_threads() ? 2 : 1;
      const int64_t used = p.packing.used(n), head_bytes = (symmetric ? 1 : 2) * padded_rows(used) * row_bytes();
      const int64_t fitting_heads = one_dtype && used > 0 ? plan.bytes / head_bytes : 0;
      const bool copied = fitting_heads >= plan.min_heads && p.heads >= plan.min_heads;
      const int64_t share = std::min(heads_per_turn, (p.heads + halves - 1) / halves);
      const int64_t group_heads = std::max<int64_t>(1, copied ? std::min(fitting_heads, share) : share);
      const int64_t groups = (p.heads + group_heads - 1) / group_heads, begin = static_cast<int64_t>(all.size());
      const int64_t pieces = std::min(turns_per_sequence * halves, groups);
      for (int64_t piece = 0; piece < pieces; ++piece) {
        turns.push_back({begin + groups * piece / pieces, begin + groups * (piece + 1) / pieces});
      }
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t head = p.heads * g / groups, next = p.heads * (g + 1) / groups;
        all.push_back({n, head, next - head, copied});
        if (copied) copy_bytes = std::max(copy_bytes, (next - head) * padded_rows(used) * row_bytes());
      }
      any_in_place |= !copied;
    }
  }

  // Rows of a copy: zero rows fill it up to as many as bf16_gemm.h wants.
  static int64_t padded_rows(int64_t used) { return (used + 31) / 32 * 32; }
  int64_t row_bytes() const { return layout.columns * size_of(dtype); }

  const Dtype dtype;
  const ConcatLayout layout;
  const bool symmetric;  // q is k on both sides
  std::vector<HeadGroup> all;
  std::vector<Turn> turns;
  int64_t copy_bytes = 0;     // of the largest copy of q, or of k
  bool any_in_place = false;  // whether some groups are not copied
};

// The rows of the group that a thread works on.
template <class Problem>
class GroupRows {
 public:
  GroupRows(const Problem& problem, const HeadGroups<Problem>& groups)
      : p_(problem),
        groups_(groups),
        local_(problem),
        q_(groups.copy_bytes),
        k_(groups.symmetric ? 0 : groups.copy_bytes) {}
  GroupRows(const GroupRows&) = delete;
  GroupRows& operator=(const GroupRows&) = delete;

  // The problem as kernels see it, which keep a reference to it: heads and rows count from the group's first.
  const Problem& problem() const { return local_; }

  // Whether every group is copied.
  bool always_copied() const { return !groups_.any_in_place; }

  // Rows [padded_rows, view.token_stride] of a head from `first` on where there is a copy of T's, else null: student
  // and teacher side by side as concat_layout() says, zeros between and after them.
  template <class T>
  const T* copied(const PackedView& view, int64_t head, int64_t first) const {
    constexpr Dtype kDtype = std::is_same_v<T, bf16> ? Dtype::bf16 : Dtype::f32;
    if (!is_copied_ || groups_.dtype != kDtype) return nullptr;
    return static_cast<const T*>(view.data) + head * view.head_stride + first * view.token_stride;
  }

  void load(const HeadGroup& group) {
    const int64_t first = p_.packing.start(group.sequence), head = group.head;
    const int64_t offset = (first * p_.heads + head) * p_.q_student.dim * size_of(p_.grad_dtype);
    if (p_.grad_q != nullptr) local_.grad_q = static_cast<char*>(p_.grad_q) + offset;
    if (p_.grad_k != nullptr) local_.grad_k = static_cast<char*>(p_.grad_k) + offset;
    local_.q_student = shifted(p_.q_student, head, first);
    local_.k_student = shifted(p_.k_student, head, first);
    local_.q_teacher = shifted(p_.q_teacher, head, first);
    local_.k_teacher = shifted(p_.k_teacher, head, first);
    is_copied_ = group.copied;
    if (!is_copied_) return;
    const int64_t used = p_.packing.used(group.sequence);
    copy(group.heads, used, q_, local_.q_student, local_.q_teacher);
    if (groups_.symmetric) {
      local_.k_student = local_.q_student;
      local_.k_teacher = local_.q_teacher;
    } else {
      copy(group.heads, used, k_, local_.k_student, local_.k_teacher);
    }
  }

 private:
  static PackedView shifted(PackedView view, int64_t head, int64_t first) {
    const int64_t elements = head * view.head_stride + first * view.token_stride;
    view.data = static_cast<const char*>(view.data) + elements * size_of(view.dtype);
    return view;
  }

  // Copies `count` rows of all heads to `out` and makes both views point there.
  void copy(int64_t heads, int64_t count, char* out, PackedView& student, PackedView& teacher) const {
    const int64_t size = size_of(groups_.dtype), teacher_offset = groups_.layout.teacher_offset * size;
    const int64_t rows = groups_.padded_rows(count), row_bytes = groups_.row_bytes();
    copy_heads(student, heads, count, teacher_offset, out);
    copy_heads(teacher, heads, count, row_bytes - teacher_offset, out + teacher_offset);
    for (int64_t h = 0; h < heads; ++h) {
      std::memset(out + (h * rows + count) * row_bytes, 0, (rows - count) * row_bytes);
    }
    student.data = out;
    teacher.data = out + teacher_offset;
    student.token_stride = teacher.token_stride = groups_.layout.columns;
    student.head_stride = teacher.head_stride = rows * groups_.layout.columns;
  }

  void copy_heads(const PackedView& view, int64_t heads, int64_t count, int64_t padded_bytes, char* out) const {
    const int64_t size = size_of(view.dtype), stride = view.token_stride * size, head_stride = view.head_stride * size;
    const int64_t row_bytes = groups_.row_bytes(), head_bytes = groups_.padded_rows(count) * row_bytes;
    const char* row = static_cast<const char*>(view.data);
    for (int64_t i = 0; i < count; ++i, row += stride, out += row_bytes) {
      for (int64_t h = 0; h < heads; ++h) {
        copy_row(row + h * head_stride, view.dim * size, padded_bytes, kPrefetchRows * stride, out + h * head_bytes);
      }
    }
  }

  const Problem& p_;
  const HeadGroups<Problem>& groups_;
  Problem local_;
  bool is_copied_ = false;
  Scratch<char> q_, k_;  // [heads, padded_rows, columns] of dtype
};

// Calls make_kernel(rows, prefetcher).run(head, length) for every head of every sequence, and zeroes the gradients of
// tokens that are not used.
template <class Problem, class MakeKernel>
void for_each_head(const Problem& p, CopyPlan plan, double operations, const MakeKernel& make_kernel) {
  using Rows = GroupRows<Problem>;

  struct Worker {
    const Problem& p;
    const HeadGroups<Problem>& groups;
    Rows rows;
    Prefetcher prefetcher;
    decltype(make_kernel(std::declval<const Rows&>(), std::declval<Prefetcher&>())) kernel;

    Worker(const Problem& problem, const HeadGroups<Problem>& all, const MakeKernel& make)
        : p(problem), groups(all), rows(p, groups), kernel(make(rows, prefetcher)) {}

    void operator()(int64_t item) {
      const Turn& turn = groups.turns[item];
      for (int64_t i = turn.first; i < turn.last; ++i) run(groups.all[i]);
    }

    void run(const HeadGroup& group) {
      const int64_t used = p.packing.used(group.sequence), rest = p.packing.length(group.sequence) - used;
      const Problem& local = rows.problem();
      rows.load(group);
      for (int64_t h = 0; h < group.heads; ++h) {
        prefetcher.clear();
        for (void* grad : {local.grad_q, local.grad_k}) {
          if (grad == nullptr) continue;
          const PackedOutput out{grad, p.grad_dtype, p.heads, p.q_student.dim};
          prefetcher.add_writes(out, h, 0, used);
          store_zero_rows(rest, out, h, used);
        }
        if (!group.copied && h + 1 < group.heads) prefetch_reads(local, h + 1, used);
        p.losses[group.sequence * p.heads + group.head + h] = used == 0 ? 0.0 : kernel.run(h, used);
      }
    }

    void prefetch_reads(const Problem& local, int64_t head, int64_t count) {
      prefetcher.add_reads(local.q_student, head, 0, count);
      prefetcher.add_reads(local.q_teacher, head, 0, count);
      if (groups.symmetric) return;
      prefetcher.add_reads(local.k_student, head, 0, count);
      prefetcher.add_reads(local.k_teacher, head, 0, count);
    }
  };
  const HeadGroups<Problem> groups(p, plan);
  for_each_item(static_cast<int64_t>(groups.turns.size()), operations, [&] { return Worker(p, groups, make_kernel); });
}

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
