// Tensor-core instructions in the emulator: the last lane of a warp to come does the work of all, from their registers.
// tf32 operands lose the bits that the hardware ignores. Sums are made as tensor cores make them (Fasi et al. 2021,
// "Numerical behavior of NVIDIA tensor cores"): products are exact; they and the accumulator are aligned to the largest
// exponent among them and cut off below it, not rounded; their sum is cut off to a float32 in turn, toward zero.
#include "ptx_emulated.h"

#include <cmath>
#include <vector>

namespace emulator {
namespace {

struct Load {
  uint32_t* r;
  const uint16_t* row;
};

template <bool kTransposed>
void load_matrices(void* const* lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    Load& load = *static_cast<Load*>(lanes[lane]);
    for (int m = 0; m < 4; ++m) {
      for (int i = 0; i < 2; ++i) {
        const int row = kTransposed ? 2 * (lane % 4) + i : lane / 4,
                  column = kTransposed ? lane / 4 : 2 * (lane % 4) + i;
        const uint32_t value = static_cast<Load*>(lanes[8 * m + row])->row[column];
        load.r[m] = i == 0 ? value : load.r[m] | value << 16;
      }
    }
  }
}

struct Product {
  float* d;
  const uint32_t *a, *b;
};

const float* half_table() {
  static const std::vector<float> table = [] {
    std::vector<float> values(1 << 16);
    for (unsigned i = 0; i < values.size(); ++i) values[i] = __half2float(bits<__half>(static_cast<uint16_t>(i)));
    return values;
  }();
  return table.data();
}

float from_bf16(uint32_t x) {
  return __uint_as_float(x << 16);
}
float from_f16(uint32_t x) {
  return half_table()[x];
}
float from_tf32(uint32_t x) {
  return __uint_as_float(x & 0xffffe000u);
}

// Bits below the largest addend's leading one that take part in a sum: one more than a float32 has, as on an A100. An
// H100 keeps at least two more.
constexpr int kBitsBelow = 24;

double power_of_two(int exponent) {
  return bits<double>(static_cast<uint64_t>(exponent + 1023) << 52);
}

float toward_zero(double x) {
  const auto rounded = static_cast<float>(x);
  return std::fabs(static_cast<double>(rounded)) > std::fabs(x) ? std::nextafter(rounded, 0.0f) : rounded;
}

// c + a[0] b[0] + ... + a[kDepth - 1] b[kDepth - 1].
template <int kDepth>
float tensor_core_sum(float c, const float (&a)[kDepth], const float (&b)[kDepth]) {
  double addends[kDepth + 1];
  for (int k = 0; k < kDepth; ++k) addends[k] = static_cast<double>(a[k]) * static_cast<double>(b[k]);
  addends[kDepth] = static_cast<double>(c);
  uint64_t largest = 0;
  for (const double x : addends) largest = std::max(largest, bits<uint64_t>(x) & ~(uint64_t{1} << 63));
  if (largest == 0) return 0.0f;
  const int exponent = static_cast<int>(largest >> 52) - 1023;
  if (exponent == 1024) {  // an infinity or a NaN
    double sum = 0.0;
    for (const double x : addends) sum += x;
    return static_cast<float>(sum);
  }
  const double units_of_one = power_of_two(kBitsBelow - exponent);
  int32_t units = 0;  // below 2^25 each, 17 of them
  for (const double x : addends) units += static_cast<int32_t>(x * units_of_one);
  return toward_zero(static_cast<double>(units) * power_of_two(exponent - kBitsBelow));
}

template <float (*kFrom)(uint32_t), int kDepth>
void multiply(void* const* lanes) {
  float a[16][kDepth], b[8][kDepth];
  constexpr int kEach = kDepth == 16 ? 2 : 1;  // numbers in a register
  for (int lane = 0; lane < 32; ++lane) {
    const Product& p = *static_cast<Product*>(lanes[lane]);
    const int group = lane / 4, thread = lane % 4;
    for (int i = 0; i < kEach; ++i) {
      const auto number = [&](uint32_t x) { return kFrom(kEach == 1 ? x : i == 0 ? x & 0xffffu : x >> 16); };
      for (int r = 0; r < 4; ++r) a[group + 8 * (r % 2)][kEach * thread + i + kDepth / 2 * (r / 2)] = number(p.a[r]);
      for (int r = 0; r < 2; ++r) b[group][kEach * thread + i + kDepth / 2 * r] = number(p.b[r]);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const Product& p = *static_cast<Product*>(lanes[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      p.d[i] = tensor_core_sum(p.d[i], a[row], b[column]);
    }
  }
}

}  // namespace

void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row, bool transposed, Site site) {
  check_shared(shared_row, 16, "ldmatrix");
  Load load{r, static_cast<const uint16_t*>(shared_row)};
  meet("ldmatrix", 0xffffffffu, &load, transposed ? load_matrices<true> : load_matrices<false>, site);
}

void mma(const char* what, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  Product product{d, a, b};
  const Work work = what[0] == 'b'   ? multiply<from_bf16, 16>
                    : what[0] == 'f' ? multiply<from_f16, 16>
                                     : multiply<from_tf32, 8>;
  meet("mma", 0xffffffffu, &product, work, site);
}

}  // namespace emulator
