// Small kernels around the library's products and partial sums. Every pointer is the device's, `stream` is a
// cudaStream_t.
#pragma once

#include <cstdint>

#include "../types.h"

namespace bertxfer {
namespace cuda {

// result[r] = sum of partials[r, :], in float64 and in a fixed order.
void total(const float* partials,  // [rows, count]
           int64_t count, int64_t rows,
           float* result,  // [rows]
           void* stream);

// sums[i] = terms[i], or += where `accumulate`.
void add(const void* terms,  // [size]
         Dtype dtype,
         float* sums,  // [size]
         int64_t size, bool accumulate, void* stream);

}  // namespace cuda
}  // namespace bertxfer
