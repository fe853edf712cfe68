// Fetching ahead: the cache lines a kernel will want next, asked for a few at a time while it computes.
//
// One head's rows lie a token apart, in as many pages, where the processor's own prefetcher does not follow, and a core
// has only a dozen or so requests in flight: asked for all at once, they hold up the work they should hide behind.
// So a product that is given an Ahead steps it once per call of its micro-kernel.
#pragma once

#include <cstdint>

#include "../types.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

class Ahead {
 public:
  void clear() { waiting_ = now_ = 0; }

  // Rows first..first+count-1 of one head.
  void read(const PackedView& view, int64_t head, int64_t first, int64_t count) {
    const int64_t size = size_of(view.dtype);
    const char* row =
        static_cast<const char*>(view.data) + (head * view.head_stride + first * view.token_stride) * size;
    push({row, view.token_stride * size, view.dim * size, count, false});
  }

  // Rows of a contiguous [T, heads, dim] tensor that will be written.
  void write(const void* out, Dtype dtype, int64_t heads, int64_t head, int64_t first, int64_t count, int64_t dim) {
    const int64_t size = size_of(dtype);
    const char* row = static_cast<const char*>(out) + (first * heads + head) * dim * size;
    push({row, heads * dim * size, dim * size, count, true});
  }

  void step() {
    for (int line = 0; line < kLines && now_ < waiting_; ++line) {
      const Rows& rows = rows_[now_];
      if (rows.write) {
        __builtin_prefetch(at_, 1, 3);
      } else {
        __builtin_prefetch(at_, 0, 2);
      }
      at_ += 64;
      if (at_ < end_) continue;
      if (++row_ < rows.count) {
        aim(rows);
      } else if (++now_ < waiting_) {
        row_ = 0;
        aim(rows_[now_]);
      }
    }
  }

 private:
  static constexpr int kLines = 16;
  static constexpr int kMost = 8;

  struct Rows {
    const char* first;
    int64_t stride, bytes, count;
    bool write;
  };

  void push(const Rows& rows) {
    if (waiting_ == kMost || rows.count <= 0 || rows.bytes <= 0) return;
    rows_[waiting_++] = rows;
    if (now_ + 1 == waiting_) {
      row_ = 0;
      aim(rows);
    }
  }

  void aim(const Rows& rows) {
    const char* start = rows.first + row_ * rows.stride;
    at_ = start - reinterpret_cast<uintptr_t>(start) % 64;
    end_ = start + rows.bytes;
  }

  Rows rows_[kMost];
  int waiting_ = 0, now_ = 0;
  int64_t row_ = 0;
  const char *at_ = nullptr, *end_ = nullptr;
};

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
