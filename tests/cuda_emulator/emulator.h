// Runs CUDA kernels on the CPU, to test them without a GPU: included before every .cu file, which g++ then compiles as
// it is. See emulator.cpp for what it checks. Slow: a hundred nanoseconds for each meeting of a thread with others.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
// Static: one for all threads of a block, which share one thread of the operating system. Thread-local: then all of
// them lie side by side in the library's block of thread-local memory, which is found and poisoned before each block.
#define __shared__ static thread_local
#define __constant__ static
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (::emulator::position().thread)
#define blockIdx (::emulator::position().block)
#define blockDim (::emulator::position().block_size)
#define gridDim (::emulator::position().grid_size)

namespace emulator {

struct Position {
  dim3 thread, block, block_size, grid_size;
};

const Position& position();

// Runs `kernel` for each thread of each block, one block after the other. Throws std::runtime_error where the kernel
// does what a GPU would hang on, or would answer at random.
void launch(const char* name, int64_t blocks, int threads, int64_t shared, const std::function<void()>& kernel);

// The block's dynamic shared memory.
void* dynamic_shared();

// Ends the kernel with an error that names kernel, block and thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// A place in the source, to tell which meeting a thread waits at.
struct Site {
  const char* file;
  int line;
};

// A default argument: the place of the call. In this form alone; with a type before the braces it is that of the
// callee.
#define BERTXFER_SITE ::emulator::Site site = {__builtin_FILE(), __builtin_LINE()}

// Waits for all threads of the block, which have to come to the same site; the number of them with a true predicate.
int block_barrier(bool predicate, Site site);

// Waits for the lanes of `mask`, which have to come to the same site. The last to come runs `work` with what each lane
// brought, null for lanes outside of the mask; null: nothing to do.
using Work = void (*)(void* const* lanes);
void meet(const char* what, unsigned mask, void* brought, Work work, Site site);

// Fails unless [pointer, pointer + bytes) is shared memory and aligned to its size.
void check_shared(const void* pointer, int bytes, const char* what);

void cp_async(void* shared, const void* global, int bytes, bool valid);
void cp_async_commit();
void cp_async_wait(int groups);

template <class T>
struct Shuffle {
  T value, result;
  int source;
};

template <class T>
void shuffle(void* const* lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes[lane] == nullptr) continue;
    auto& mine = *static_cast<Shuffle<T>*>(lanes[lane]);
    if (lanes[mine.source] == nullptr) fail("lane %d shuffles from lane %d outside of the mask", lane, mine.source);
    mine.result = static_cast<Shuffle<T>*>(lanes[mine.source])->value;
  }
}

template <class T>
T shuffle_from(const char* what, unsigned mask, T value, int source, Site site) {
  Shuffle<T> shuffled{value, value, source & 31};
  meet(what, mask, &shuffled, shuffle<T>, site);
  return shuffled.result;
}

unsigned ballot(unsigned mask, bool predicate, Site site);

inline int lane() {
  return static_cast<int>(position().thread.x % 32);
}

}  // namespace emulator

inline void __syncthreads(BERTXFER_SITE) {
  emulator::block_barrier(false, site);
}
inline int __syncthreads_count(bool predicate, BERTXFER_SITE) {
  return emulator::block_barrier(predicate, site);
}
inline int __syncthreads_or(bool predicate, BERTXFER_SITE) {
  return emulator::block_barrier(predicate, site) != 0;
}
inline int __syncthreads_and(bool predicate, BERTXFER_SITE) {
  return emulator::block_barrier(!predicate, site) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, BERTXFER_SITE) {
  emulator::meet("__syncwarp", mask, &mask, nullptr, site);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, BERTXFER_SITE) {
  const int lane = emulator::lane();
  return emulator::shuffle_from("__shfl_sync", mask, value, lane / width * width + (source & (width - 1)), site);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, BERTXFER_SITE) {
  const int lane = emulator::lane(), source = lane ^ bits;
  const bool inside = source / width <= lane / width;
  return emulator::shuffle_from("__shfl_xor_sync", mask, value, inside ? source : lane, site);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned offset, int width = 32, BERTXFER_SITE) {
  const int lane = emulator::lane(), source = lane + static_cast<int>(offset);
  const bool inside = source / width == lane / width;
  return emulator::shuffle_from("__shfl_down_sync", mask, value, inside ? source : lane, site);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned offset, int width = 32, BERTXFER_SITE) {
  const int lane = emulator::lane(), source = lane - static_cast<int>(offset);
  const bool inside = source >= lane / width * width;
  return emulator::shuffle_from("__shfl_up_sync", mask, value, inside ? source : lane, site);
}

inline unsigned __ballot_sync(unsigned mask, bool predicate, BERTXFER_SITE) {
  return emulator::ballot(mask, predicate, site);
}
inline int __any_sync(unsigned mask, bool predicate, BERTXFER_SITE) {
  return emulator::ballot(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, bool predicate, BERTXFER_SITE) {
  return emulator::ballot(mask, !predicate, site) == 0;
}

// Fences order what one thread sees of another; here all run in one.
inline void __threadfence() {}
inline void __threadfence_block() {}

inline unsigned atomicAdd(unsigned* address, unsigned value) {
  const unsigned before = *address;
  *address += value;
  return before;
}

template <class T>
T __ldg(const T* pointer) {
  return *pointer;
}
template <class T>
T __ldcs(const T* pointer) {
  return *pointer;
}
template <class T>
void __stcs(T* pointer, T value) {
  *pointer = value;
}

inline int min(int a, int b) {
  return a < b ? a : b;
}
inline int max(int a, int b) {
  return a > b ? a : b;
}
inline unsigned min(unsigned a, unsigned b) {
  return a < b ? a : b;
}
inline unsigned max(unsigned a, unsigned b) {
  return a > b ? a : b;
}
inline long min(long a, long b) {
  return a < b ? a : b;
}
inline long max(long a, long b) {
  return a > b ? a : b;
}
inline long long min(long long a, long long b) {
  return a < b ? a : b;
}
inline long long max(long long a, long long b) {
  return a > b ? a : b;
}
inline float min(float a, float b) {
  return std::fmin(a, b);
}
inline float max(float a, float b) {
  return std::fmax(a, b);
}
inline double min(double a, double b) {
  return std::fmin(a, b);
}
inline double max(double a, double b) {
  return std::fmax(a, b);
}

inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}
inline float __expf(float x) {
  return std::exp(x);
}
inline float __logf(float x) {
  return std::log(x);
}
inline float __log2f(float x) {
  return std::log2(x);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline float __frcp_rn(float x) {
  return 1.0f / x;
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}

namespace emulator {
template <class To, class From>
To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "want numbers of one size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace emulator

inline unsigned __float_as_uint(float x) {
  return emulator::bits<unsigned>(x);
}
inline float __uint_as_float(unsigned x) {
  return emulator::bits<float>(x);
}
inline int __float_as_int(float x) {
  return emulator::bits<int>(x);
}
inline float __int_as_float(int x) {
  return emulator::bits<float>(x);
}
