// Dropout of varlen_attention's maps: a function of an entry's position, so that the backward pass can compute it
// again.
#pragma once

#include <cstdint>

#include "../common/cpu/vec.h"

namespace bertxfer {
namespace BERTXFER_ISA {
namespace {

// An entry's mask depends on the seed, the token of its query, its head and its column.
class Dropout {
 public:
  Dropout(float p, uint64_t seed)
      : threshold_(static_cast<uint32_t>(p * 4294967296.0)), keep_(1.0f / (1.0f - p)), seed_(seed) {}

  // Sets out[j] to 0 or 1 / (1 - p) for columns first..first+count-1 of one row.
  void row(int64_t token, int64_t head, int64_t heads, int64_t first, int64_t count, float* out) const {
    const uint64_t key = mix64(seed_ ^ mix64(static_cast<uint64_t>(token * heads + head) + 0x9e3779b97f4a7c15ull));
    const uint32_t low = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      const uint32_t bits = mix32((static_cast<uint32_t>(first + j) * 0x9e3779b9u + low) ^ high);
      out[j] = bits >= threshold_ ? keep_ : 0.0f;
    }
  }

 private:
  static uint64_t mix64(uint64_t x) {  // splitmix64's finaliser
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
  }
  static uint32_t mix32(uint32_t x) {  // two rounds of multiply and xor-shift: every input bit reaches every output bit
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
  }

  uint32_t threshold_;
  float keep_;
  uint64_t seed_;
};

}  // namespace
}  // namespace BERTXFER_ISA
}  // namespace bertxfer
