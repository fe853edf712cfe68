// The part of the CUDA runtime that torch calls, on the host: see __init__.py. Everything has happened when a call
// returns; streams are numbers, events are times. Preloaded, it comes before the real library.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>

#include "device.h"

#undef cudaGetDeviceProperties
#undef cudaStreamGetCaptureInfo

namespace {

constexpr size_t kMemory = size_t(80) << 30;

std::mutex lock;
std::map<const char*, size_t> device_blocks, pinned_blocks;
std::set<cudaStream_t> capturing;
size_t used = 0;

using Event = double;  // seconds

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void* take(size_t bytes) {
  return std::aligned_alloc(512, (bytes + 511) / 512 * 512);
}

bool is_in(const std::map<const char*, size_t>& blocks, const void* pointer) {
  auto found = blocks.upper_bound(static_cast<const char*>(pointer));
  if (found == blocks.begin()) return false;
  --found;
  return pointer < found->first + found->second;
}

// A function of the driver; of those that driver.cpp lacks one that succeeds.
void* of_driver(const char* name) {
  static void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  void* found = driver ? dlsym(driver, name) : nullptr;
  return found || !driver ? found : dlsym(driver, "succeed");
}

thread_local struct {
  dim3 grid, block;
  size_t shared;
  void* stream;
} configuration;

}  // namespace

#define SUCCEEDS(name, ...)       \
  cudaError_t name(__VA_ARGS__) { \
    return cudaSuccess;           \
  }
#define UNSUPPORTED(name, ...)    \
  cudaError_t name(__VA_ARGS__) { \
    return cudaErrorNotSupported; \
  }
#define TELLS(name, type, value) \
  cudaError_t name(type* out) {  \
    *out = value;                \
    return cudaSuccess;          \
  }

extern "C" {

// ---- the device ----

TELLS(cudaGetDeviceCount, int, 1)
TELLS(cudaGetDevice, int, 0)
TELLS(cudaDriverGetVersion, int, CUDART_VERSION)
TELLS(cudaRuntimeGetVersion, int, CUDART_VERSION)
SUCCEEDS(cudaSetDevice, int)
SUCCEEDS(cudaDeviceSynchronize)
SUCCEEDS(cudaDeviceEnablePeerAccess, int, unsigned)
SUCCEEDS(cudaGetLastError)
SUCCEEDS(cudaPeekAtLastError)
SUCCEEDS(cudaProfilerStart)
SUCCEEDS(cudaProfilerStop)

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* out, int) {
  std::memset(out, 0, sizeof *out);
  std::strcpy(out->name, "the host, in place of an H100");
  out->major = 9;
  out->multiProcessorCount = host_gpu::kMultiprocessors;
  out->totalGlobalMem = kMemory;
  out->sharedMemPerBlock = host_gpu::kShared;
  out->sharedMemPerBlockOptin = host_gpu::kSharedOptin;
  out->sharedMemPerMultiprocessor = host_gpu::kSharedMultiprocessor;
  out->regsPerBlock = out->regsPerMultiprocessor = host_gpu::kRegisters;
  out->warpSize = host_gpu::kWarp;
  out->maxThreadsPerBlock = out->maxThreadsDim[0] = out->maxThreadsDim[1] = host_gpu::kBlockThreads;
  out->maxThreadsDim[2] = 64;
  out->maxGridSize[0] = 2147483647;
  out->maxGridSize[1] = out->maxGridSize[2] = 65535;
  out->maxThreadsPerMultiProcessor = host_gpu::kMultiprocessorThreads;
  out->l2CacheSize = host_gpu::kCache;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* out, cudaDeviceAttr attribute, int) {
  *out = host_gpu::attribute(attribute);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char* out, int size, int) {
  std::snprintf(out, size, "0000:00:00.0");
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* out, int, int) {
  *out = 0;
  return cudaSuccess;
}
const char* cudaGetErrorName(cudaError_t) {
  return "cudaError";
}
const char* cudaGetErrorString(cudaError_t) {
  return "the host's CUDA runtime refuses";
}

// ---- memory ----

cudaError_t cudaMalloc(void** out, size_t bytes) {
  const std::lock_guard<std::mutex> guard(lock);
  if (used + bytes > kMemory || (*out = take(bytes)) == nullptr) return cudaErrorMemoryAllocation;
  device_blocks[static_cast<char*>(*out)] = bytes;
  used += bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
  const std::lock_guard<std::mutex> guard(lock);
  const auto found = device_blocks.find(static_cast<char*>(pointer));
  if (found == device_blocks.end()) return cudaSuccess;
  used -= found->second;
  device_blocks.erase(found);
  std::free(pointer);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** out, size_t bytes, unsigned) {
  const std::lock_guard<std::mutex> guard(lock);
  *out = take(bytes);
  pinned_blocks[static_cast<char*>(*out)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* pointer) {
  const std::lock_guard<std::mutex> guard(lock);
  pinned_blocks.erase(static_cast<char*>(pointer));
  std::free(pointer);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  *total = kMemory;
  *available = kMemory - used;
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* out, const void* pointer) {
  const std::lock_guard<std::mutex> guard(lock);
  std::memset(out, 0, sizeof *out);
  out->type = is_in(device_blocks, pointer)   ? cudaMemoryTypeDevice
              : is_in(pinned_blocks, pointer) ? cudaMemoryTypeHost
                                              : cudaMemoryTypeUnregistered;
  out->devicePointer = out->hostPointer = const_cast<void*>(pointer);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memmove(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, cudaMemcpyDefault);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind, cudaStream_t) {
  for (size_t i = 0; i < height; ++i) {
    std::memmove(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch, width);
  }
  return cudaSuccess;
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(to, value, bytes);
}
cudaError_t cudaGetSymbolAddress(void** out, const void*) {
  static char memory[1 << 16];
  *out = memory;
  return cudaSuccess;
}
SUCCEEDS(cudaMemcpyToSymbol, const void*, const void*, size_t, size_t, cudaMemcpyKind)
SUCCEEDS(cudaHostRegister, void*, size_t, unsigned)
SUCCEEDS(cudaHostUnregister, void*)
UNSUPPORTED(cudaDeviceGetDefaultMemPool, cudaMemPool_t*, int)
UNSUPPORTED(cudaMemPoolGetAttribute, cudaMemPool_t, cudaMemPoolAttr, void*)
UNSUPPORTED(cudaMemPoolSetAttribute, cudaMemPool_t, cudaMemPoolAttr, void*)
UNSUPPORTED(cudaMemPoolSetAccess, cudaMemPool_t, const cudaMemAccessDesc*, size_t)
UNSUPPORTED(cudaMemPoolTrimTo, cudaMemPool_t, size_t)

// ---- streams, events, graphs ----

cudaError_t cudaStreamCreate(cudaStream_t* out) {
  static uintptr_t last = 0x1000;
  const std::lock_guard<std::mutex> guard(lock);
  *out = reinterpret_cast<cudaStream_t>(last += 16);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* out, unsigned, int) {
  return cudaStreamCreate(out);
}
cudaError_t cudaStreamGetPriority(cudaStream_t, int* out) {
  *out = 0;
  return cudaSuccess;
}
cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t callback, void* data, unsigned) {
  callback(stream, cudaSuccess, data);
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void* data) {
  function(data);
  return cudaSuccess;
}
SUCCEEDS(cudaStreamDestroy, cudaStream_t)
SUCCEEDS(cudaStreamQuery, cudaStream_t)
SUCCEEDS(cudaStreamSynchronize, cudaStream_t)
SUCCEEDS(cudaStreamWaitEvent, cudaStream_t, cudaEvent_t, unsigned)

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned) {
  *out = reinterpret_cast<cudaEvent_t>(new Event(0));
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* out) {
  return cudaEventCreateWithFlags(out, 0);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<Event*>(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  *reinterpret_cast<Event*>(event) = now();
  return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}
cudaError_t cudaEventElapsedTime(float* out, cudaEvent_t begin, cudaEvent_t end) {
  *out = static_cast<float>((*reinterpret_cast<Event*>(end) - *reinterpret_cast<Event*>(begin)) * 1e3);
  return cudaSuccess;
}
SUCCEEDS(cudaEventQuery, cudaEvent_t)
SUCCEEDS(cudaEventSynchronize, cudaEvent_t)

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const std::lock_guard<std::mutex> guard(lock);
  capturing.insert(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* out) {
  const std::lock_guard<std::mutex> guard(lock);
  capturing.erase(stream);
  *out = reinterpret_cast<cudaGraph_t>(1);
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* out) {
  const std::lock_guard<std::mutex> guard(lock);
  *out = capturing.count(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t**, const cudaGraphEdgeData**,
                                     size_t* count) {
  if (id) *id = 1;
  if (graph) *graph = reinterpret_cast<cudaGraph_t>(1);
  if (count) *count = 0;
  return cudaStreamIsCapturing(stream, status);
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  thread_local cudaStreamCaptureMode current = cudaStreamCaptureModeGlobal;
  std::swap(current, *mode);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* out, cudaGraph_t, unsigned long long) {
  *out = reinterpret_cast<cudaGraphExec_t>(1);
  return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, size_t* count) {
  *count = 1;
  return cudaSuccess;
}
SUCCEEDS(cudaGraphDestroy, cudaGraph_t)
SUCCEEDS(cudaGraphExecDestroy, cudaGraphExec_t)
SUCCEEDS(cudaGraphLaunch, cudaGraphExec_t, cudaStream_t)
SUCCEEDS(cudaGraphDebugDotPrint, cudaGraph_t, const char*, unsigned)

// ---- kernels: registered, asked about and launched for nothing ----

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* out, const void*) {
  std::memset(out, 0, sizeof *out);
  out->maxThreadsPerBlock = 1024;
  out->binaryVersion = out->ptxVersion = 90;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* out, const void*, int, size_t, unsigned) {
  *out = 2;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* out, const void*) {
  *out = nullptr;
  return cudaSuccess;
}
SUCCEEDS(cudaFuncSetAttribute, const void*, cudaFuncAttribute, int)
SUCCEEDS(cudaLaunchKernelExC, const cudaLaunchConfig_t*, const void*, void**)
SUCCEEDS(cudaLaunchKernel, const void*, dim3, dim3, void**, size_t, cudaStream_t)
SUCCEEDS(__cudaLaunchKernel, cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t)

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  configuration = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = configuration.grid, *block = configuration.block, *shared = configuration.shared;
  *static_cast<void**>(stream) = configuration.stream;
  return cudaSuccess;
}
void** __cudaRegisterFatBinary(void*) {
  static void* handle[1];
  return handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) {
  return 1;
}
void __cudaRegisterFunction(void**, const char*, char*, const char*, int, void*, void*, void*, void*, int*) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** out, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *out = of_driver(name);
  if (result) *result = *out ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return *out ? cudaSuccess : cudaErrorNotSupported;
}

}  // extern "C"
