// What a thread of varlen_attention takes at a time: a few neighbouring heads of one sequence.
//
// The rows of one head lie a token apart, in pieces of two cache lines and nearly as many pages, and come from memory
// at half the speed of a copy. Those of neighbouring heads are one piece. So the heads of a short sequence are loaded
// together, a block of tokens at a time, into layouts that the second-level cache keeps until it is their turn.
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
  int64_t first, heads;   // of the heads
  int64_t token, length;  // of the sequence

  // step(i, token, count, for_each_head) for blocks of 32 tokens, the i-th of the sequence and those after it, where
  // for_each_head(load) calls load(h, head) for the h-th of the group, which is `head` of all: one tensor after the
  // other, so that what lies side by side in memory is read in turn.
  template <class Step>
  void for_each_block(const Step& step) const {
    const auto for_each_head = [this](const auto& load) {
      for (int64_t h = 0; h < heads; ++h) load(h, first + h);
    };
    for (int64_t i = 0; i < length; i += 32) step(i, token + i, std::min<int64_t>(32, length - i), for_each_head);
  }
};

constexpr int64_t kGroupBytes = 512 * 1024;  // that a thread loads at a time, if more than one head

struct GroupPlan {
  std::vector<Group> all;
  int64_t longest = 0;  // sequence
  int64_t room = 0;     // rows of the largest group, see room_of()
  int64_t columns = 0;  // of a tile of keys of all its heads, see stride_of()

  static constexpr int64_t kKeys = 512;  // keys of a tile

  // Rows that a head takes in a group's layouts, a whole number of tiles of stride_of() where there are several.
  static int64_t room_of(int64_t length) {
    return length <= kKeys ? stride_of(length) : (length + kKeys - 1) / kKeys * stride_of(length);
  }

  // Columns that a tile of keys takes: a multiple of 32 or more, and no power of two.
  static int64_t stride_of(int64_t length) { return spread((std::min(length, kKeys) + 31) / 32 * 32); }

  // `bytes`: that layouts take a token and head.
  GroupPlan(const Packing& packing, int64_t heads, int64_t bytes) {
    const int64_t fair = std::max<int64_t>(1, packing.sequences * heads / (kTurns * num_threads()));
    for (int64_t n = 0; n < packing.sequences; ++n) {
      const int64_t length = packing.length(n);
      if (length == 0) continue;
      const int64_t rows = room_of(length);
      const int64_t most = std::clamp<int64_t>(kGroupBytes / (rows * bytes), 1, fair);
      const int64_t groups = (heads + most - 1) / most;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t first = heads * g / groups, count = heads * (g + 1) / groups - first;
        all.push_back({first, count, packing.start(n), length});
        room = std::max(room, count * rows);
        columns = std::max(columns, count * stride_of(length));
      }
      longest = std::max(longest, length);
    }
  }
};

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
