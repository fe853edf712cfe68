// hidden_mse on a GPU: the math of hidden_mse.h. Every pointer is the device's, `stream` a cudaStream_t.
#pragma once

#include <cstdint>

#include "../common/types.h"

namespace bertxfer {
namespace cuda {

// A tile of the projected states, the unit of partial sums.
constexpr int64_t kHiddenRows = 128, kHiddenColumns = 128;

struct HiddenMse {
  const void* student;  // [rows, depth], or [rows, width] where there is no weight; row stride below
  Dtype dtype;          // of student, weight and bias
  int64_t student_stride;
  const void* weight;  // [width, depth], row stride below; null: student is compared as it is
  int64_t weight_stride;
  const void* bias;     // [width] or null
  const void* teacher;  // [rows, width]
  Dtype teacher_dtype;
  int64_t teacher_stride;
  int64_t rows, width, depth;
  float scale;            // of direction
  Dtype direction_dtype;  // as dtype, f32 for f16
  void* direction;        // [rows, width] contiguous, scale * (projected - teacher); null: not wanted
  float* sums;            // [tiles of rows, tiles of columns] sums of squared differences
  float* column_sums;     // [tiles of rows, width] column sums of direction; null: not wanted
};

void hidden_mse(const HiddenMse& p, void* stream);

// What the partial sums of all chunks end in, one launch.
struct HiddenMseSums {
  const float* sums;         // [tiles]
  const float* column_sums;  // [row_tiles, width]
  int64_t tiles, row_tiles, width;
  double normaliser;  // of the loss
  float* loss;        // [1]
  float* grad_scale;  // [1]: what stored gradients are still to be multiplied by, 1
  float* grad_bias;   // [width], sums of column_sums over the tiles of rows; null: not wanted
};

void finish_hidden_mse(const HiddenMseSums& p, void* stream);

}  // namespace cuda
}  // namespace bertxfer
