// Software prefetching: a kernel lists the rows it will want next, and the cache lines are requested a few at a time
// while it computes.
//
// One head's rows lie a token apart, in as many pages, where the processor's own prefetcher does not follow, and a core
// has only a dozen or so requests in flight: requesting all rows at once would stall the products they should hide
// behind. So a product that is given a Prefetcher steps it once per call of its micro-kernel.
#pragma once

#include <cstdint>

#include "../types.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

class Prefetcher {
 public:
  void clear() { count_ = current_ = 0; }

  // Queues rows first..first+count-1 of one head, to be read.
  void add_reads(const PackedView& view, int64_t head, int64_t first, int64_t count) {
    const int64_t size = size_of(view.dtype);
    const char* row =
        static_cast<const char*>(view.data) + (head * view.head_stride + first * view.token_stride) * size;
    push({row, view.token_stride * size, view.dim * size, count, false});
  }

  // Queues rows first..first+count-1 of one head, to be written.
  void add_writes(const PackedOutput& out, int64_t head, int64_t first, int64_t count) {
    const int64_t size = size_of(out.dtype);
    const char* row = static_cast<const char*>(out.data) + (first * out.heads + head) * out.dim * size;
    push({row, out.token_stride() * size, out.dim * size, count, true});
  }

  void step() {
    for (int line = 0; line < kLinesPerStep && current_ < count_; ++line) {
      const Rows& rows = queue_[current_];
      if (rows.write) {
        __builtin_prefetch(next_, 1, 3);
      } else {
        __builtin_prefetch(next_, 0, 2);
      }
      next_ += 64;
      if (next_ < end_) continue;
      if (++row_ < rows.count) {
        start_row(rows);
      } else if (++current_ < count_) {
        row_ = 0;
        start_row(queue_[current_]);
      }
    }
  }

 private:
  static constexpr int kLinesPerStep = 16;
  static constexpr int kMaxQueued = 8;

  struct Rows {
    const char* first;  // [count] rows of `bytes`, `stride` bytes apart
    int64_t stride, bytes, count;
    bool write;
  };

  void push(const Rows& rows) {
    if (count_ == kMaxQueued || rows.count <= 0 || rows.bytes <= 0) return;
    queue_[count_++] = rows;
    if (current_ + 1 == count_) {
      row_ = 0;
      start_row(rows);
    }
  }

  void start_row(const Rows& rows) {
    const char* start = rows.first + row_ * rows.stride;
    next_ = start - reinterpret_cast<uintptr_t>(start) % 64;
    end_ = start + rows.bytes;
  }

  Rows queue_[kMaxQueued];
  int count_ = 0, current_ = 0;  // of the queue
  int64_t row_ = 0;              // of the current entry
  const char *next_ = nullptr, *end_ = nullptr;
};

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
