// What the host says of itself where it plays an H100, asked through the runtime or the driver.
#pragma once

#include <cuda.h>

#include <map>

namespace host_gpu {

constexpr int kMultiprocessors = 132, kCache = 50 << 20, kWarp = 32;
constexpr int kShared = 48 << 10, kSharedOptin = 227 << 10, kSharedMultiprocessor = 228 << 10;
constexpr int kRegisters = 65536, kBlockThreads = 1024, kMultiprocessorThreads = 2048;

// By the driver's number, which is the runtime's too (cudaDeviceAttr); of what nobody here asks 0.
inline int attribute(int number) {
  static const std::map<int, int> known = {
      {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, kMultiprocessors},
      {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, kShared},
      {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, kSharedOptin},
      {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, kSharedMultiprocessor},
      {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, kRegisters},
      {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR, kRegisters},
      {CU_DEVICE_ATTRIBUTE_WARP_SIZE, kWarp},
      {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, kBlockThreads},
      {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, kMultiprocessorThreads},
      {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 9},
      {CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, kCache},
      {CU_DEVICE_ATTRIBUTE_CLOCK_RATE, 1980000},
      {CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, 2619000},
      {CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, 5120},
  };
  const auto found = known.find(number);
  return found == known.end() ? 0 : found->second;
}

}  // namespace host_gpu
