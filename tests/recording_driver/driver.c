// A CUDA driver for sm_90 that launches nothing: as much of one as Triton's launcher asks for. It
// keeps a list of the launches with the addresses that they get, and counts what would make the
// host wait or copy.
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

#define MOST_LAUNCHES 65536
#define MOST_ADDRESSES 48

struct launch {
  const char* kernel;
  unsigned blocks, threads, shared;
  int addresses;
  unsigned long long address[MOST_ADDRESSES];
};

struct launch recorded_launches[MOST_LAUNCHES];
long recorded_count = 0, recorded_waits = 0, recorded_copies = 0, recorded_refusals = 0;
int recorded_keeps = 1;  // 0: only counts, so that the time is the launcher's

static int context;
static CUresult nothing(void) { return CUDA_SUCCESS; }

static void note(unsigned long long address) {
  struct launch* next = &recorded_launches[recorded_count];
  if (recorded_keeps && next->addresses < MOST_ADDRESSES)
    next->address[next->addresses++] = address;
}

CUresult cuInit(unsigned flags) { return nothing(); }
CUresult cuDriverGetVersion(int* version) {
  *version = 13000;
  return nothing();
}
CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = "recorded";
  return nothing();
}
CUresult cuGetErrorName(CUresult error, const char** text) {
  *text = "recorded";
  return nothing();
}
CUresult cuDeviceGet(CUdevice* device, int i) {
  *device = i;
  return nothing();
}
CUresult cuDeviceGetCount(int* count) {
  *count = 1;
  return nothing();
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      *value = 232448;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      *value = 233472;
      break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      *value = 132;
      break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
      *value = 32;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
      *value = 65536;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
      *value = 1024;
      break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      *value = 9;
      break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      *value = 0;
      break;
    default:
      *value = 1;
  }
  return nothing();
}
CUresult cuCtxGetCurrent(CUcontext* current) {
  *current = (CUcontext)&context;
  return nothing();
}
CUresult cuCtxSetCurrent(CUcontext current) { return nothing(); }
CUresult cuCtxGetDevice(CUdevice* device) {
  *device = 0;
  return nothing();
}
CUresult cuCtxGetLimit(size_t* value, CUlimit limit) {
  *value = 1 << 20;
  return nothing();
}
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return nothing(); }
CUresult cuCtxPopCurrent(CUcontext* current) {
  *current = (CUcontext)&context;
  return nothing();
}
CUresult cuCtxPushCurrent(CUcontext current) { return nothing(); }
CUresult cuDevicePrimaryCtxRetain(CUcontext* current, CUdevice device) {
  *current = (CUcontext)&context;
  return nothing();
}
CUresult cuStreamGetCtx(CUstream stream, CUcontext* current) {
  *current = (CUcontext)&context;
  return nothing();
}
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
  *status = 0;
  return nothing();
}
CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  *module = malloc(1);
  return nothing();
}
CUresult cuModuleUnload(CUmodule module) { return nothing(); }
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  *function = (CUfunction)strdup(name);
  return nothing();
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return nothing();
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  return nothing();
}
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return nothing(); }
CUresult cuOccupancyMaxActiveClusters(int* count, CUfunction function,
                                      const CUlaunchConfig* config) {
  *count = 132;
  return nothing();
}

// Both come before the launch whose arguments they are.
CUresult cuPointerGetAttribute(void* data, CUpointer_attribute attribute, CUdeviceptr address) {
  *(CUdeviceptr*)data = address;
  note(address);
  return nothing();
}
CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                void* address, const cuuint64_t* sizes, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t* steps,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  // As the driver's documentation has it: a bad map is refused on the host.
  int good = (unsigned long long)address % 16 == 0;
  for (unsigned i = 0; i + 1 < rank; i++)
    good = good && strides[i] % 16 == 0 && strides[i] < 1ULL << 40;
  for (unsigned i = 0; i < rank; i++) good = good && box[i] >= 1 && box[i] <= 256 && sizes[i] >= 1;
  if (!good) {
    recorded_refusals++;
    return CUDA_ERROR_INVALID_VALUE;
  }
  note((unsigned long long)address);
  return nothing();
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** params,
                          void** extra) {
  if (config->gridDimX == 0 || config->gridDimY == 0 || config->gridDimZ == 0 ||
      config->gridDimY > 65535 || config->gridDimZ > 65535 || config->blockDimX > 1024 ||
      config->sharedMemBytes > 232448) {
    recorded_refusals++;
    return CUDA_ERROR_INVALID_VALUE;
  }
  struct launch* next = &recorded_launches[recorded_count];
  next->kernel = (const char*)function;
  next->blocks = config->gridDimX * config->gridDimY * config->gridDimZ;
  next->threads = config->blockDimX;
  next->shared = config->sharedMemBytes;
  if (recorded_count + 1 < MOST_LAUNCHES) recorded_count++;
  return nothing();
}

CUresult cuCtxSynchronize(void) {
  recorded_waits++;
  return nothing();
}
CUresult cuStreamSynchronize(CUstream stream) {
  recorded_waits++;
  return nothing();
}
CUresult cuEventSynchronize(CUevent event) {
  recorded_waits++;
  return nothing();
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t size, CUstream stream) {
  recorded_copies++;
  return nothing();
}
CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t size, CUstream stream) {
  recorded_copies++;
  return nothing();
}
CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t size) {
  recorded_copies++;
  return nothing();
}
