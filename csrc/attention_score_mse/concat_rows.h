// Student's and teacher's rows side by side, as the kernels of attention_score_mse multiply them: A = [Qs, Qt] and
// B = [Ks, Kt].
#pragma once

#include <cstring>

#include "../common/cpu/gemm.h"
#include "../common/cpu/head_groups.h"
#include "attention_score_mse.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

// Reads rows of two tensors side by side as floats into out [count, columns], zeros between and after them. The second
// starts at `second_offset`, a whole number of vectors, because right behind the first their stores would overlap.
inline void load_concat_rows(const PackedView& one, const PackedView& second, int64_t head, int64_t first,
                             int64_t count, RowMatrix<float> out, int64_t second_offset) {
  load_rows(one, head, first, count, out.data, out.ld, second_offset);
  load_rows(second, head, first, count, out.data + second_offset, out.ld, out.ld - second_offset);
}

// Rows of A and B in the layout that a kernel multiplies: the group's copy where there is one, or its own.
template <class T>
class ConcatRows {
 public:
  // Copies at most `max_rows` rows of `dtype`, which is T's.
  ConcatRows(const GroupRows<AttentionScoreMse>& rows, Dtype dtype, ConcatLayout layout, int64_t max_rows)
      : rows_(rows),
        p_(rows.problem()),
        dtype_(dtype),
        layout_(layout),
        own_a_(never_copies() ? 0 : padded_rows(max_rows) * layout.columns),
        own_b_(never_copies() ? 0 : padded_rows(max_rows) * layout.columns) {}

  const T *a = nullptr, *b = nullptr;  // [rows, columns]; of bfloat16, zero rows fill them up to a multiple of 32

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
  static int64_t padded_rows(int64_t rows) { return HeadGroups<AttentionScoreMse>::padded_rows(rows); }

  void load(const PackedView& student, const PackedView& teacher, int64_t head, int64_t first, int64_t count,
            float* out) {
    load_concat_rows(student, teacher, head, first, count, {out, layout_.columns}, layout_.teacher_offset);
  }
  void load(const PackedView& student, const PackedView& teacher, int64_t head, int64_t first, int64_t count,
            bf16* out) {
    const int64_t teacher_bytes = 2 * layout_.teacher_offset, row_bytes = 2 * layout_.columns;
    char* rows = reinterpret_cast<char*>(out);
    copy_rows(student, head, first, count, teacher_bytes, row_bytes, rows);
    copy_rows(teacher, head, first, count, row_bytes - teacher_bytes, row_bytes, rows + teacher_bytes);
    std::memset(rows + count * row_bytes, 0, (padded_rows(count) - count) * row_bytes);
  }

  const GroupRows<AttentionScoreMse>& rows_;
  const AttentionScoreMse& p_;
  const Dtype dtype_;
  const ConcatLayout layout_;
  Scratch<T> own_a_, own_b_;  // [padded_rows, columns]
};

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
