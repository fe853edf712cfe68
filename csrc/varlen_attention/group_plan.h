// How varlen_attention's work is divided: a thread takes a few neighbouring heads of one sequence at a time.
//
// The rows of one head lie a token apart, in pieces of two cache lines and nearly as many pages, and come from memory
// at half the speed of a copy, while those of neighbouring heads are contiguous. So the heads of a short sequence are
// loaded together, a block of tokens at a time, into layouts that stay in the second-level cache (docs/kernels.md).
#pragma once

#include <algorithm>
#include <vector>

#include "../common/cpu/parallel.h"
#include "../common/cpu/vec.h"
#include "../common/types.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

struct Group {
  int64_t first_head, heads;
  int64_t first_token, length;  // of the sequence

  // Calls step(i, token, count, for_each_head) for blocks of at most 32 tokens, the first of which is the i-th of the
  // sequence. for_each_head(load) calls load(h, head) for the h-th head of the group, which is `head` of all. A step
  // loads one tensor after the other, so that contiguous rows are read in turn.
  template <class Step>
  void for_each_block(const Step& step) const {
    const auto for_each_head = [this](const auto& load) {
      for (int64_t h = 0; h < heads; ++h) load(h, first_head + h);
    };
    for (int64_t i = 0; i < length; i += 32) step(i, first_token + i, std::min<int64_t>(32, length - i), for_each_head);
  }
};

constexpr int64_t kGroupBytes = 512 * 1024;  // that a thread loads at a time, if more than one head

struct GroupPlan {
  std::vector<Group> all;
  int64_t longest = 0;      // sequence
  int64_t max_rows = 0;     // of a group's layouts, see head_rows()
  int64_t max_columns = 0;  // of the key tiles of a group's heads, see tile_stride()

  static constexpr int64_t kKeys = 512;  // of a key tile

  // Rows of a head in a group's layouts: a whole number of tiles of tile_stride() where there are several.
  static int64_t head_rows(int64_t length) {
    return length <= kKeys ? tile_stride(length) : (length + kKeys - 1) / kKeys * tile_stride(length);
  }

  // Stride of a key tile: a multiple of 32 or more, and no power of two.
  static int64_t tile_stride(int64_t length) { return conflict_free_stride((std::min(length, kKeys) + 31) / 32 * 32); }

  // `bytes_per_token`: of a group's layouts, for one head.
  GroupPlan(const Packing& packing, int64_t heads, int64_t bytes_per_token) {
    const int64_t heads_per_turn = std::max<int64_t>(1, packing.sequences * heads / (kTurns * num_threads()));
    for (int64_t n = 0; n < packing.sequences; ++n) {
      const int64_t length = packing.length(n);
      if (length == 0) continue;
      const int64_t rows = head_rows(length);
      const int64_t group_heads = std::clamp<int64_t>(kGroupBytes / (rows * bytes_per_token), 1, heads_per_turn);
      const int64_t groups = (heads + group_heads - 1) / group_heads;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t first = heads * g / groups, count = heads * (g + 1) / groups - first;
        all.push_back({first, count, packing.start(n), length});
        max_rows = std::max(max_rows, count * rows);
        max_columns = std::max(max_columns, count * tile_stride(length));
      }
      longest = std::max(longest, length);
    }
  }
};

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
