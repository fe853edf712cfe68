// The part of the CUDA driver that Triton and torch call, on the host: see __init__.py. Kernels are loaded and started
// for nothing.
#include <dlfcn.h>

#include <cstdint>

#include "device.h"

#undef cuGetProcAddress

#define SUCCEEDS(name, ...)    \
  CUresult name(__VA_ARGS__) { \
    return CUDA_SUCCESS;       \
  }
#define TELLS(name, type, value, ...)       \
  CUresult name(type* out, ##__VA_ARGS__) { \
    *out = (type)(value);                   \
    return CUDA_SUCCESS;                    \
  }

extern "C" {

SUCCEEDS(succeed)
SUCCEEDS(cuInit, unsigned)
TELLS(cuDriverGetVersion, int, CUDA_VERSION)
TELLS(cuDeviceGet, CUdevice, 0, int)
TELLS(cuDeviceGetCount, int, 1)

CUresult cuDeviceGetAttribute(int* out, CUdevice_attribute attribute, CUdevice) {
  *out = host_gpu::attribute(attribute);
  return CUDA_SUCCESS;
}

TELLS(cuCtxGetCurrent, CUcontext, 1)
TELLS(cuCtxGetLimit, size_t, 1 << 20, CUlimit)
TELLS(cuDevicePrimaryCtxRetain, CUcontext, 1, CUdevice)
SUCCEEDS(cuCtxSetCurrent, CUcontext)
SUCCEEDS(cuCtxSetLimit, CUlimit, size_t)

CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  *flags = 0, *active = 1;
  return CUDA_SUCCESS;
}

TELLS(cuModuleLoadData, CUmodule, 1, const void*)
TELLS(cuModuleLoad, CUmodule, 1, const char*)
TELLS(cuModuleGetFunction, CUfunction, 1, CUmodule, const char*)
SUCCEEDS(cuModuleUnload, CUmodule)
SUCCEEDS(cuFuncSetAttribute, CUfunction, CUfunction_attribute, int)
SUCCEEDS(cuFuncSetCacheConfig, CUfunction, CUfunc_cache)
SUCCEEDS(cuLaunchKernel, CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream,
         void**, void**)
SUCCEEDS(cuLaunchKernelEx, const CUlaunchConfig*, CUfunction, void**, void**)
TELLS(cuOccupancyMaxActiveClusters, int, 1, CUfunction, const CUlaunchConfig*)

CUresult cuFuncGetAttribute(int* out, CUfunction_attribute attribute, CUfunction) {
  *out = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS ? 64 : 0;
  return CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void* out, CUpointer_attribute attribute, CUdeviceptr pointer) {
  if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) {
    *static_cast<CUdeviceptr*>(out) = pointer;
  } else {
    *static_cast<unsigned*>(out) = 0;
  }
  return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult, const char** out) {
  *out = "the host's CUDA driver refuses";
  return CUDA_SUCCESS;
}

CUresult cuGetProcAddress_v2(const char* name, void** out, int, cuuint64_t, CUdriverProcAddressQueryResult* result) {
  static void* self = dlopen("libcuda.so.1", RTLD_NOW);
  *out = dlsym(self, name);
  if (*out == nullptr) *out = reinterpret_cast<void*>(succeed);
  if (result) *result = CU_GET_PROC_ADDRESS_SUCCESS;
  return CUDA_SUCCESS;
}
CUresult cuGetProcAddress(const char* name, void** out, int version, cuuint64_t flags) {
  return cuGetProcAddress_v2(name, out, version, flags, nullptr);
}

}  // extern "C"
