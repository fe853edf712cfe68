// What every CUDA kernel of the package uses: launching, number types, sums in a fixed order, tiles of packed
// sequences. Kernels see no torch header; launchers read nothing back from the device, so that CUDA graphs can capture
// them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../types.h"

// BERTXFER_LAUNCH(kernel, blocks, threads, dynamic_shared_bytes, stream, arguments...), on a one-dimensional grid. A
// kernel with several template arguments goes in parentheses. Throws std::runtime_error with the kernel's name.
#define BERTXFER_LAUNCH(kernel, ...) ::bertxfer::launch(#kernel, kernel, __VA_ARGS__)

// T* name: the block's dynamic shared memory.
#ifdef BERTXFER_EMULATED
#define BERTXFER_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::emulator::dynamic_shared())
#else
#define BERTXFER_DYNAMIC_SHARED(T, name)                                    \
  extern __shared__ __align__(128) unsigned char bertxfer_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(bertxfer_dynamic_shared)
#endif

namespace bertxfer {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // told here; whoever asks next is not to find it again
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// A number that the current device tells about itself, say cudaDevAttrMultiProcessorCount.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

// The most shared memory that a block can have on the current device, in bytes.
inline int64_t shared_memory_limit() {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared, void* stream,
            Arguments... arguments) {
  if (blocks <= 0) return;
  if (blocks > INT32_MAX) throw std::runtime_error(std::string(name) + ": more blocks than a grid has");
  constexpr int64_t kGranted = 48 * 1024;  // more has to be asked for
  if (shared > kGranted) {
    const int64_t available = shared_memory_limit();
    if (shared > available) {
      throw std::runtime_error(std::string(name) + ": got a device with " + std::to_string(available) +
                               " bytes of shared memory for a block, want " + std::to_string(shared));
    }
  }
#ifdef BERTXFER_EMULATED
  (void)stream;
  ::emulator::launch(name, blocks, threads, shared, [&] { kernel(arguments...); });
#else
  if (shared > kGranted) {
    const auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), limit, static_cast<int>(shared)), name);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  check_cuda(cudaLaunchKernelEx(&config, kernel, arguments...), name);
#endif
}

// Calls run with a number of the type that `dtype` names.
template <class Run>
void with_dtype(Dtype dtype, Run&& run) {
  switch (dtype) {
    case Dtype::f32: return run(float());
    case Dtype::bf16: return run(__nv_bfloat16());
    case Dtype::f16: return run(__half());
  }
}

template <class T>
__host__ __device__ __forceinline__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

__device__ __forceinline__ float to_float(float x) {
  return x;
}
// How the gradient of T's waits for the backward pass: float16's in float32, whose range it may need until it is
// scaled.
template <class T>
using Grad = std::conditional_t<std::is_same_v<T, __half>, float, T>;

__device__ __forceinline__ float to_float(__half x) {
  return __half2float(x);
}
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

__device__ __forceinline__ void from_float(float x, float& out) {
  out = x;
}
__device__ __forceinline__ void from_float(float x, __half& out) {
  out = __float2half_rn(x);
}
__device__ __forceinline__ void from_float(float x, __nv_bfloat16& out) {
  out = __float2bfloat16_rn(x);
}

template <class T>
__device__ __forceinline__ T from_float(float x) {
  T result;
  from_float(x, result);
  return result;
}

constexpr unsigned kAllLanes = 0xffffffffu;

// The sum over the lanes of a warp, in every lane. Called by all 32.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

// The sum over the threads of a block (whole warps, at most 1024 threads), in every thread. Called by all of them.
template <class T>
__device__ __forceinline__ T block_sum(T value) {
  __shared__ T sums[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  value = warp_sum(value);
  __syncthreads();  // an earlier sum has been read by all
  if (lane == 0) sums[warp] = value;
  __syncthreads();
  return warp_sum(lane < warps ? sums[lane] : T(0));
}

// Whether this block is the grid's last to come here; its threads then see what the others wrote before they came. The
// ticket is 0 when the kernel starts. Called by all threads of the block.
__device__ __forceinline__ bool is_last_block(unsigned* ticket) {
  __shared__ bool last;
  __syncthreads();  // all threads of this block have written
  if (threadIdx.x == 0) {
    __threadfence();  // the block's writes come before its ticket
    last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    __threadfence();  // and the others' tickets before what is read of them
  }
  __syncthreads();
  return last;
}

// A run of N numbers that moves as one load or store; N numbers are 16 bytes, or N is 1.
template <class T, int N>
struct alignas(sizeof(T) * N) Run {
  T values[N];
};

// Numbers of T in 16 bytes.
template <class T>
constexpr int kVector = 16 / sizeof(T);

inline bool is_aligned_16(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// Packed sequences on the device. The host does not know their lengths; indices are kept inside `tokens`.
struct Span {
  int start, length;
};

// First token and used length of sequence n. seqused may be null: the whole length.
__device__ __forceinline__ Span sequence_of(const int32_t* cu_seqlens, const int32_t* seqused, int tokens, int n) {
  const int start = min(max(cu_seqlens[n], 0), tokens), stop = min(cu_seqlens[n + 1], tokens);
  int length = max(stop - start, 0);
  if (seqused != nullptr) length = min(max(seqused[n], 0), length);
  return {start, length};
}

// `block` rows of a sequence, from `row` on; none if row >= length.
struct Tile {
  int sequence, start, length, row;
};

// How many blocks cover the tiles of all sequences, whatever their lengths: see find_tile.
__host__ __device__ inline int64_t tile_slots(int64_t tokens, int64_t sequences, int64_t block) {
  return sequences > 0 ? tokens / block + sequences : 0;
}

// The tile of slot `slot`. Sequence n owns the slots from cu_seqlens[n] / block + n on: room enough for each of its
// tiles, since ceil(len / block) <= (start + len) / block - start / block + 1, at most one idle slot a sequence, and
// found by counting. Called by all threads of the block.
__device__ __forceinline__ Tile find_tile(const int32_t* cu_seqlens, const int32_t* seqused, int tokens, int sequences,
                                          int slot, int block) {
  int owners = 0;
  for (int base = 0; base < sequences; base += blockDim.x) {
    const int n = base + threadIdx.x;
    owners += __syncthreads_count(n < sequences && cu_seqlens[n] / block + n <= slot);
  }
  const int n = max(owners - 1, 0);
  const Span span = sequence_of(cu_seqlens, seqused, tokens, n);
  return {n, span.start, span.length, (slot - span.start / block - n) * block};
}

}  // namespace bertxfer
