// A kernel's work on q and k of two models, head by head. One thread does one head, so that results do not depend on
// the number of threads.
//
// The rows of one head lie a token apart, in pieces of a few cache lines and nearly as many pages, which come from
// memory at half the speed of a copy; where a sequence is short that takes as long as what is made of them. So the rows
// of several neighbouring heads, which are one piece, are copied to where the second-level cache keeps them until it is
// their turn, and as the linear method of attention_score_mse wants them: student and teacher side by side.
//
// Long sequences are read in place: attention maps hide those reads behind their products. docs/kernels.md has what
// each way takes.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "ahead.h"
#include "parallel.h"
#include "rows.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

// Columns of a row [student, zeros, teacher, zeros].
struct PairColumns {
  int64_t teacher_at, columns;
};

// bfloat16 rows fill the tiles of bf16_gemm.h, which sum over 32 columns: both rows as one, or (`apart`) each of them.
// Others fill whole vectors.
inline PairColumns pair_columns(Dtype dtype, int64_t ds, int64_t dt, bool apart = false) {
  if (dtype != Dtype::bf16) return {padded(ds), padded(ds) + padded(dt)};
  const int64_t tile = apart ? 32 : 16, teacher_at = (ds + tile - 1) / tile * tile;
  return {teacher_at, (teacher_at + dt + 31) / 32 * 32};
}

constexpr int64_t kRowsAhead = 4;

// A row of `count` bytes, filled up with zeros to `room`; asks for the one `ahead` bytes further on.
inline void copy_row(const char* from, int64_t count, int64_t room, int64_t ahead, char* to) {
#if defined(__AVX512BW__)
  const auto first_bytes = [](int64_t n) BERTXFER_INLINE { return n >= 64 ? ~0ull : n <= 0 ? 0ull : (1ull << n) - 1; };
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    __builtin_prefetch(from + i + ahead);
    _mm512_storeu_si512(to + i, _mm512_loadu_si512(from + i));
  }
  for (; i < room; i += 64) {
    if (i < count) __builtin_prefetch(from + i + ahead);
    const __m512i bytes = _mm512_maskz_loadu_epi8(first_bytes(count - i), from + i);
    _mm512_mask_storeu_epi8(to + i, first_bytes(room - i), bytes);
  }
#else
  for (int64_t i = 0; i < count; i += 64) __builtin_prefetch(from + i + ahead);
  std::memcpy(to, from, count);
  std::memset(to + count, 0, room - count);
#endif
}

// Rows first..first+count-1 of one head, `ld` bytes apart, each filled up with zeros to `room` bytes.
inline void copy_rows(const PackedView& view, int64_t head, int64_t first, int64_t count, int64_t room, int64_t ld,
                      char* out) {
  const int64_t size = size_of(view.dtype), stride = view.token_stride * size;
  const char* row = static_cast<const char*>(view.data) + head * view.head_stride * size + first * stride;
  for (int64_t i = 0; i < count; ++i, row += stride, out += ld) {
    copy_row(row, view.dim * size, room, kRowsAhead * stride, out);
  }
}

// A few neighbouring heads of one sequence: what a thread takes at a time.
struct HeadGroup {
  int64_t sequence, head, heads;
  bool copied;
};

// Groups first..last-1 of a sequence: what a thread is handed at a time. Neighbouring heads share cache lines and
// pages.
struct Turn {
  int64_t first, last;
};

struct CopyPlan {
  int64_t bytes;  // a thread copies so many at a time
  int64_t heads;  // and only where so many fit into them
  bool apart;     // see pair_columns()
};

// `Problem` has q_student, k_student, q_teacher, k_teacher, grad_q, grad_k, heads, packing and sums.
template <class Problem>
class HeadGroups {
 public:
  HeadGroups(const Problem& p, CopyPlan plan)
      : dtype(p.q_student.dtype),
        columns(pair_columns(dtype, p.q_student.dim, p.q_teacher.dim, plan.apart)),
        same(p.q_student.data == p.k_student.data && p.q_teacher.data == p.k_teacher.data) {
    const bool alike = p.k_student.dtype == dtype && p.q_teacher.dtype == dtype && p.k_teacher.dtype == dtype;
    const int64_t wanted = kTurns * num_threads();
    const int64_t shares = std::max<int64_t>(1, wanted / std::max<int64_t>(1, p.packing.sequences));
    const int64_t fair = std::max<int64_t>(1, p.packing.sequences * p.heads / wanted);  // heads of a turn
    std::vector<int64_t> order(p.packing.sequences);
    for (int64_t n = 0; n < p.packing.sequences; ++n) order[n] = n;
    // The longest first, and the last ones by halves, so that threads finish together.
    std::stable_sort(order.begin(), order.end(),
                     [&p](int64_t n, int64_t m) { return p.packing.used(n) > p.packing.used(m); });
    for (int64_t i = 0; i < p.packing.sequences; ++i) {
      const int64_t n = order[i], halves = p.packing.sequences - i <= num_threads() ? 2 : 1;
      const int64_t used = p.packing.used(n), head_bytes = (same ? 1 : 2) * rows(used) * row_bytes();
      const int64_t fit = alike && used > 0 ? plan.bytes / head_bytes : 0;
      const bool copied = fit >= plan.heads && p.heads >= plan.heads;
      const int64_t share = std::min(fair, (p.heads + halves - 1) / halves);
      const int64_t most = std::max<int64_t>(1, copied ? std::min(fit, share) : share);
      const int64_t groups = (p.heads + most - 1) / most, begin = static_cast<int64_t>(all.size());
      const int64_t pieces = std::min(shares * halves, groups);
      for (int64_t piece = 0; piece < pieces; ++piece) {
        turns.push_back({begin + groups * piece / pieces, begin + groups * (piece + 1) / pieces});
      }
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t head = p.heads * g / groups, next = p.heads * (g + 1) / groups;
        all.push_back({n, head, next - head, copied});
        if (copied) room = std::max(room, (next - head) * rows(used) * row_bytes());
      }
      any_in_place |= !copied;
    }
  }

  // Rows are filled up with zero rows to as many as bf16_gemm.h wants.
  static int64_t rows(int64_t used) { return (used + 31) / 32 * 32; }
  int64_t row_bytes() const { return columns.columns * size_of(dtype); }

  const Dtype dtype;
  const PairColumns columns;
  const bool same;  // q is k on both sides
  std::vector<HeadGroup> all;
  std::vector<Turn> turns;
  int64_t room = 0;           // bytes of the largest copy of q, or of k
  bool any_in_place = false;  // whether some are not copied
};

// The rows of the group that a thread is at.
template <class Problem>
class GroupRows {
 public:
  GroupRows(const Problem& problem, const HeadGroups<Problem>& groups)
      : p_(problem), groups_(groups), local_(problem), q_(groups.room), k_(groups.same ? 0 : groups.room) {}
  GroupRows(const GroupRows&) = delete;
  GroupRows& operator=(const GroupRows&) = delete;

  // The problem as kernels see it, who keep a reference to it: heads and rows count from the group's first.
  const Problem& problem() const { return local_; }

  // Whether there is always a copy.
  bool always_copied() const { return !groups_.any_in_place; }

  // Rows of a head from `first` on, where there is a copy and it is of T's: view.token_stride apart, student and
  // teacher side by side as pair_columns() says, zeros between, with zero rows after the last up to a multiple of 32.
  template <class T>
  const T* copied(const PackedView& view, int64_t head, int64_t first) const {
    constexpr Dtype kDtype = std::is_same_v<T, bf16> ? Dtype::bf16 : Dtype::f32;
    if (!is_copied_ || groups_.dtype != kDtype) return nullptr;
    return static_cast<const T*>(view.data) + head * view.head_stride + first * view.token_stride;
  }

  void load(const HeadGroup& group) {
    const int64_t first = p_.packing.start(group.sequence), head = group.head;
    const int64_t offset = (first * p_.heads + head) * p_.q_student.dim * size_of(p_.q_student.dtype);
    if (p_.grad_q != nullptr) local_.grad_q = static_cast<char*>(p_.grad_q) + offset;
    if (p_.grad_k != nullptr) local_.grad_k = static_cast<char*>(p_.grad_k) + offset;
    local_.q_student = moved(p_.q_student, head, first);
    local_.k_student = moved(p_.k_student, head, first);
    local_.q_teacher = moved(p_.q_teacher, head, first);
    local_.k_teacher = moved(p_.k_teacher, head, first);
    is_copied_ = group.copied;
    if (!is_copied_) return;
    const int64_t used = p_.packing.used(group.sequence);
    copy(group.heads, used, q_, local_.q_student, local_.q_teacher);
    if (groups_.same) {
      local_.k_student = local_.q_student;
      local_.k_teacher = local_.q_teacher;
    } else {
      copy(group.heads, used, k_, local_.k_student, local_.k_teacher);
    }
  }

 private:
  static PackedView moved(PackedView view, int64_t head, int64_t first) {
    const int64_t elements = head * view.head_stride + first * view.token_stride;
    view.data = static_cast<const char*>(view.data) + elements * size_of(view.dtype);
    return view;
  }

  // Both views are of the copy afterwards.
  void copy(int64_t heads, int64_t count, char* out, PackedView& student, PackedView& teacher) const {
    const int64_t size = size_of(groups_.dtype), teacher_at = groups_.columns.teacher_at * size;
    const int64_t rows = groups_.rows(count), row_bytes = groups_.row_bytes();
    copy_heads(student, heads, count, teacher_at, out);
    copy_heads(teacher, heads, count, row_bytes - teacher_at, out + teacher_at);
    for (int64_t h = 0; h < heads; ++h) {
      std::memset(out + (h * rows + count) * row_bytes, 0, (rows - count) * row_bytes);
    }
    student.data = out;
    teacher.data = out + teacher_at;
    student.token_stride = teacher.token_stride = groups_.columns.columns;
    student.head_stride = teacher.head_stride = rows * groups_.columns.columns;
  }

  void copy_heads(const PackedView& view, int64_t heads, int64_t count, int64_t room, char* out) const {
    const int64_t size = size_of(view.dtype), stride = view.token_stride * size, head_stride = view.head_stride * size;
    const int64_t row_bytes = groups_.row_bytes(), head_bytes = groups_.rows(count) * row_bytes;
    const char* row = static_cast<const char*>(view.data);
    for (int64_t i = 0; i < count; ++i, row += stride, out += row_bytes) {
      for (int64_t h = 0; h < heads; ++h) {
        copy_row(row + h * head_stride, view.dim * size, room, kRowsAhead * stride, out + h * head_bytes);
      }
    }
  }

  const Problem& p_;
  const HeadGroups<Problem>& groups_;
  Problem local_;
  bool is_copied_ = false;
  Scratch<char> q_, k_;  // [heads, rows, columns]
};

// make_kernel(rows, ahead).run(head, length) for every head of every sequence, and zeros for the gradients of tokens
// that are not used.
template <class Problem, class MakeKernel>
void for_each_head(const Problem& p, CopyPlan plan, double operations, const MakeKernel& make_kernel) {
  using Rows = GroupRows<Problem>;

  struct Worker {
    const Problem& p;
    const HeadGroups<Problem>& groups;
    Rows rows;
    Ahead ahead;
    decltype(make_kernel(std::declval<const Rows&>(), std::declval<Ahead&>())) kernel;

    Worker(const Problem& problem, const HeadGroups<Problem>& all, const MakeKernel& make)
        : p(problem), groups(all), rows(p, groups), kernel(make(rows, ahead)) {}

    void operator()(int64_t item) {
      const Turn& turn = groups.turns[item];
      for (int64_t i = turn.first; i < turn.last; ++i) run(groups.all[i]);
    }

    void run(const HeadGroup& group) {
      const int64_t used = p.packing.used(group.sequence), rest = p.packing.length(group.sequence) - used;
      const Problem& local = rows.problem();
      rows.load(group);
      for (int64_t h = 0; h < group.heads; ++h) {
        ahead.clear();
        for (void* grad : {local.grad_q, local.grad_k}) {
          if (grad == nullptr) continue;
          ahead.write(grad, p.q_student.dtype, p.heads, h, 0, used, p.q_student.dim);
          store_zero_rows(rest, grad, p.q_student.dtype, p.heads, h, used, p.q_student.dim);
        }
        if (!group.copied && h + 1 < group.heads) read_ahead(local, h + 1, used);
        p.sums[group.sequence * p.heads + group.head + h] = used == 0 ? 0.0 : kernel.run(h, used);
      }
    }

    void read_ahead(const Problem& local, int64_t head, int64_t count) {
      ahead.read(local.q_student, head, 0, count);
      ahead.read(local.q_teacher, head, 0, count);
      if (groups.same) return;
      ahead.read(local.k_student, head, 0, count);
      ahead.read(local.k_teacher, head, 0, count);
    }
  };
  const HeadGroups<Problem> groups(p, plan);
  for_each_item(static_cast<int64_t>(groups.turns.size()), operations, [&] { return Worker(p, groups, make_kernel); });
}

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
