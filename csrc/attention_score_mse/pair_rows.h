// Student's and teacher's rows side by side, as the kernels of attention_score_mse multiply them: A = [Qs, Qt] and
// B = [Ks, Kt].
#pragma once

#include <cstring>

#include "../common/cpu/head_groups.h"
#include "attention_score_mse.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

// Two tensors' rows side by side as floats, each filled up with zeros: the second starts at column `second_at`, a whole
// number of vectors, so that no two stores overlap, and ends by `columns`.
inline void load_pair(const PackedView& one, const PackedView& second, int64_t head, int64_t first, int64_t count,
                      float* out, int64_t second_at, int64_t columns) {
  load_rows(one, head, first, count, out, columns, second_at);
  load_rows(second, head, first, count, out + second_at, columns, columns - second_at);
}

// Rows of A and B as a kernel multiplies them: the group's copy where there is one, or its own.
template <class T>
class PairRows {
 public:
  // Copies at most `most` rows.
  PairRows(const GroupRows<AttentionScoreMse>& rows, Dtype dtype, int64_t teacher_at, int64_t columns, int64_t most)
      : rows_(rows),
        p_(rows.problem()),
        dtype_(dtype),
        teacher_at_(teacher_at),
        columns_(columns),
        own_a_(never_copies() ? 0 : round_up(most) * columns),
        own_b_(never_copies() ? 0 : round_up(most) * columns) {}

  const T *a = nullptr, *b = nullptr;  // [rows, columns]; of bfloat16, up to a multiple of 32 rows of zeros

  void load(int64_t head, int64_t first, int64_t count) {
    if (const T* copied = rows_.template copied<T>(p_.q_student, head, first)) {
      a = copied;
      b = rows_.template copied<T>(p_.k_student, head, first);
      return;
    }
    load(p_.q_student, p_.q_teacher, head, first, count, own_a_);
    load(p_.k_student, p_.k_teacher, head, first, count, own_b_);
    a = own_a_;
    b = own_b_;
  }

 private:
  bool never_copies() const { return rows_.always_copied() && p_.q_student.dtype == dtype_; }
  static int64_t round_up(int64_t rows) { return HeadGroups<AttentionScoreMse>::rows(rows); }

  void load(const PackedView& student, const PackedView& teacher, int64_t head, int64_t first, int64_t count,
            float* out) {
    load_pair(student, teacher, head, first, count, out, teacher_at_, columns_);
  }
  void load(const PackedView& student, const PackedView& teacher, int64_t head, int64_t first, int64_t count,
            bf16* out) {
    char* rows = reinterpret_cast<char*>(out);
    copy_rows(student, head, first, count, 2 * teacher_at_, 2 * columns_, rows);
    copy_rows(teacher, head, first, count, 2 * (columns_ - teacher_at_), 2 * columns_, rows + 2 * teacher_at_);
    std::memset(rows + 2 * count * columns_, 0, 2 * (round_up(count) - count) * columns_);
  }

  const GroupRows<AttentionScoreMse>& rows_;
  const AttentionScoreMse& p_;
  const Dtype dtype_;
  const int64_t teacher_at_, columns_;
  Scratch<T> own_a_, own_b_;
};

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
