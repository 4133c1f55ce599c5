// Functions of both the CPU and the GPU.
#pragma once

#if defined(__CUDACC__)
#define MIRNET_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MIRNET_HOST_DEVICE inline
#endif
