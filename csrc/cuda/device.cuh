// The primitives of a GPU that the kernels use, each once. With MIRNET_EMULATED, tests/emulation/
// answers on the CPU, so that every kernel runs where there is no GPU. Kernels use no other
// intrinsics.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#if defined(MIRNET_EMULATED)
#include "emulator.h"
#else
#include <cuda_runtime.h>
#endif

#if defined(MIRNET_EMULATED)
#define MIRNET_DEVICE inline
#else
#define MIRNET_DEVICE __device__ __forceinline__
#endif

namespace mirnet_fast::cuda {

using half = __half;
using bf16 = __nv_bfloat16;

constexpr unsigned kEveryLane = 0xffffffffu;

// ---- numbers ---------------------------------------------------------------------------------

MIRNET_DEVICE float to_float(float x) { return x; }
MIRNET_DEVICE float to_float(half x) { return __half2float(x); }
MIRNET_DEVICE float to_float(bf16 x) { return __bfloat162float(x); }

template <class T>
MIRNET_DEVICE T rounded(float x);
template <>
MIRNET_DEVICE float rounded<float>(float x) {
  return x;
}
template <>
MIRNET_DEVICE half rounded<half>(float x) {
  return __float2half_rn(x);
}
template <>
MIRNET_DEVICE bf16 rounded<bf16>(float x) {
  return __float2bfloat16_rn(x);
}

// A NaN goes through; what the slope multiplies is all that is not positive.
MIRNET_DEVICE float prelu(float x, float slope) { return x > 0 ? x : slope * x; }

// V consecutive values in one access; V sizeof(T) is 16 bytes at most, and divides the address.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T value[V];
};

template <int V, class T>
MIRNET_DEVICE Pack<T, V> fetch(const T* from) {
  return *reinterpret_cast<const Pack<T, V>*>(from);
}

template <int V, class T>
MIRNET_DEVICE void load(float (&to)[V], const T* from) {
  const Pack<T, V> pack = fetch<V>(from);
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = to_float(pack.value[i]);
}

template <int V, class T>
MIRNET_DEVICE void store(T* to, const float (&from)[V]) {
  Pack<T, V> pack;
#pragma unroll
  for (int i = 0; i < V; ++i) pack.value[i] = rounded<T>(from[i]);
  *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

// Values of T that fill 16 bytes.
template <class T>
constexpr int kWide = 16 / sizeof(T);

// ---- threads of a block ----------------------------------------------------------------------

#if defined(MIRNET_EMULATED)

MIRNET_DEVICE void sync_threads() { emulation::sync_threads(); }
MIRNET_DEVICE void sync_warp() { emulation::sync_warp(); }

template <class T>
MIRNET_DEVICE T shuffle_xor(T value, int mask) {
  return emulation::shuffle(value, emulation::lane() ^ mask);
}

// The block's dynamic shared memory, the only kind that the kernels use; 16-byte aligned.
MIRNET_DEVICE char* shared_memory() { return emulation::shared_memory(); }

// Of an address that was itself read from memory: else its loads look for the kind of memory.
MIRNET_DEVICE void points_to_global(const void*) {}

// 16 bytes to shared memory, zeros instead where `inside` is false; there after wait_for_copies
// and a barrier.
MIRNET_DEVICE void copy_async(void* shared, const void* global, bool inside) {
  emulation::copy_async(shared, global, inside);
}
MIRNET_DEVICE void commit_copies() { emulation::commit_copies(); }
// All but the last `Pending` groups of this thread's copies.
template <int Pending>
MIRNET_DEVICE void wait_for_copies() {
  emulation::wait_for_copies(Pending);
}

#else

MIRNET_DEVICE void sync_threads() { __syncthreads(); }
MIRNET_DEVICE void sync_warp() { __syncwarp(); }

template <class T>
MIRNET_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kEveryLane, value, mask);
}

// The block's dynamic shared memory, the only kind that the kernels use; 16-byte aligned.
MIRNET_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char mirnet_shared[];
  return mirnet_shared;
}

// Of an address that was itself read from memory: else its loads look for the kind of memory.
MIRNET_DEVICE void points_to_global(const void* address) { __builtin_assume(__isGlobal(address)); }

// 16 bytes to shared memory, zeros instead where `inside` is false; there after wait_for_copies
// and a barrier.
MIRNET_DEVICE void copy_async(void* shared, const void* global, bool inside) {
  if (inside)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                     static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
                 "l"(global)
                 : "memory");
  else
    *static_cast<uint4*>(shared) = make_uint4(0, 0, 0, 0);
}
MIRNET_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All but the last `Pending` groups of this thread's copies.
template <int Pending>
MIRNET_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

#endif

MIRNET_DEVICE int lane() { return threadIdx.x % 32; }
MIRNET_DEVICE int warp() { return threadIdx.x / 32; }

// The sum over the lanes whose numbers differ in the bits of `lanes - 1` times `step`; every lane
// gets it. In the same order every time.
template <int Lanes, int Step = 1>
MIRNET_DEVICE float warp_sum(float value) {
#pragma unroll
  for (int mask = Step * Lanes / 2; mask >= Step; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// ---- tensor cores ----------------------------------------------------------------------------
// Fragments as PTX names them. D (16 x 8): lane 4g + t holds row g columns 2t, 2t + 1 and row g + 8
// the same. A (16 x 16) row-major, B (16 x 8) column-major.

#if defined(MIRNET_EMULATED)

// Four 8 x 8 matrices of 16-bit values; lane 8i + j gives the address of row j of matrix i.
MIRNET_DEVICE void load_matrices(uint32_t (&to)[4], const void* row) {
  emulation::load_matrices(to, row, false);
}
MIRNET_DEVICE void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
  emulation::load_matrices(to, row, true);
}
// d += a b, of 16-bit values.
template <class T>
MIRNET_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulation::multiply<T>(d, a, b0, b1);
}

#else

// Four 8 x 8 matrices of 16-bit values; lane 8i + j gives the address of row j of matrix i.
MIRNET_DEVICE void load_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}
MIRNET_DEVICE void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// d += a b, of 16-bit values.
template <class T>
MIRNET_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
MIRNET_DEVICE void multiply<half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
MIRNET_DEVICE void multiply<bf16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif

}  // namespace mirnet_fast::cuda
