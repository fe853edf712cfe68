// Kernels with one mistake each, which the emulator has to notice; test_cuda_emulated.py calls them. Each function
// returns what went wrong, or an empty string; `out` is [64].
#include <string>

#include "../../csrc/common/cuda/cuda.cuh"
#include "../../csrc/common/cuda/ptx.cuh"

namespace {

using bertxfer::kAllLanes;

// Thread t hands its number to thread 63 - t.
template <bool kBarrier>
__global__ void reversed(float* out) {
  __shared__ float numbers[64];
  numbers[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = numbers[63 - threadIdx.x];
}

__global__ void half_a_barrier(float* out) {
  if (threadIdx.x < 32) __syncthreads();
  out[threadIdx.x] = 0.0f;
}

__global__ void two_barriers(float* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 0.0f;
}

__global__ void lanes_apart(float* out) {
  const float one = 1.0f;
  if (threadIdx.x % 2 == 0) {
    out[threadIdx.x] = __shfl_xor_sync(kAllLanes, one, 2);
  } else {
    out[threadIdx.x] = __shfl_xor_sync(kAllLanes, one, 4);
  }
}

__global__ void beyond_shared_memory(float* out) {
  BERTXFER_DYNAMIC_SHARED(float, numbers);
  numbers[threadIdx.x + 1] = out[threadIdx.x] = 0.0f;
}

// Each lane copies 16 bytes of `in`, and reads the first number of them back.
template <bool kWait>
__global__ void copied(const float* in, float* out) {
  __shared__ __align__(16) float numbers[32 * 4];
  bertxfer::ptx::cp_async_16(numbers + 4 * threadIdx.x, in, true);
  bertxfer::ptx::cp_async_commit();
  if (kWait) bertxfer::ptx::cp_async_wait<0>();
  out[threadIdx.x] = numbers[4 * threadIdx.x];
}

__global__ void unaligned_matrix(float* out) {
  BERTXFER_DYNAMIC_SHARED(float, numbers);
  uint32_t r[4];
  bertxfer::ptx::ldmatrix_x4(r, numbers + 1);
  out[threadIdx.x] = __uint_as_float(r[0]);
}

template <class Launch>
const char* run(Launch launch) {
  static std::string message;
  message.clear();
  try {
    launch();
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}

}  // namespace

#define PLANTED(name, ...)                                                                          \
  extern "C" __attribute__((visibility("default"))) const char* name([[maybe_unused]] float* out) { \
    return run([&] { BERTXFER_LAUNCH(__VA_ARGS__); });                                              \
  }

PLANTED(right, reversed<true>, 1, 64, 0, nullptr, out)
PLANTED(missing_barrier, reversed<false>, 1, 64, 0, nullptr, out)
PLANTED(half_a_barrier_, half_a_barrier, 1, 64, 0, nullptr, out)
PLANTED(two_barriers_, two_barriers, 1, 64, 0, nullptr, out)
PLANTED(lanes_apart_, lanes_apart, 1, 64, 0, nullptr, out)
PLANTED(beyond_shared_memory_, beyond_shared_memory, 1, 64, 64 * sizeof(float), nullptr, out)
PLANTED(waited, copied<true>, 1, 32, 0, nullptr, out, out + 32)
PLANTED(not_waited, copied<false>, 1, 32, 0, nullptr, out, out + 32)
PLANTED(unaligned_matrix_, unaligned_matrix, 1, 32, 1024, nullptr, out)
