// Small kernels that end every CUDA loss: its normaliser, found from lengths that only the device knows, and its sum.
// Every pointer is the device's, `stream` is a cudaStream_t.
#pragma once

#include <cstdint>

#include "../types.h"

namespace bertxfer {
namespace cuda {

// result[r] = sum of partials[r, :], in float64 and in a fixed order, times *multiplier (null: 1) and `times`.
void total(const float* partials, int64_t count, int64_t rows, const float* multiplier, float* result, void* stream,
           double times = 1.0);

// result[c] = sum over r of partials[r, c], in the order of r: what column sums of tiles end in.
void column_total(const float* partials, int64_t rows, int64_t columns, float* result, void* stream);

// sums[i] = terms[i], or += where `accumulate`.
void add(const void* terms, Dtype dtype, float* sums, int64_t size, bool accumulate, void* stream);

// What a loss and its stored gradient are multiplied by.
struct Normaliser {
  const int32_t* cu_seqlens;  // [sequences + 1]
  const int32_t* seqused;     // [sequences] or null
  int64_t tokens, sequences, heads;
  bool mean;  // over heads * sum of lengths, or of squared lengths where `pairs`; else the sum
  bool pairs;
  bool whole;      // the gradient is stored whole: its dtype has float32's range
  float stored;    // else: what it is multiplied by
  float* numbers;  // [2]: of the loss, of the stored gradient
  float* factor;   // [1]: what the stored gradient lacks
};

void normaliser(const Normaliser& p, void* stream);

}  // namespace cuda
}  // namespace bertxfer
