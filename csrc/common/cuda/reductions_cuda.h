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

}  // namespace cuda
}  // namespace bertxfer
