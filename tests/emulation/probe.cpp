// Kernels whose faults the emulated GPU must show, and the fragments that it must lay out as PTX
// says.
#include "../../csrc/cuda/tile.cuh"

namespace mirnet_fast::cuda {

// A block turns its values around through shared memory, with or without the barrier.
template <bool Barrier>
void reverse_kernel(const float* from, float* to) {
  float* const kept = reinterpret_cast<float*>(shared_memory());
  kept[threadIdx.x] = from[threadIdx.x];
  if (Barrier) sync_threads();
  to[threadIdx.x] = kept[blockDim.x - 1 - threadIdx.x];
}

// 16 bytes a thread by copy_async, with or without waiting for them.
template <bool Wait>
void copy_kernel(const float* from, float* to) {
  float* const kept = reinterpret_cast<float*>(shared_memory()) + 4 * threadIdx.x;
  copy_async(kept, from + 4 * threadIdx.x, threadIdx.x != 5);
  commit_copies();
  if (Wait) wait_for_copies<0>();
  for (int i = 0; i < 4; ++i) to[4 * threadIdx.x + i] = kept[i];
  wait_for_copies<0>();
}

// Four chunks through two buffers, as csrc/cuda/tile.cuh brings them, with or without the barrier
// after a chunk's use.
template <bool Barrier>
void pipelined_kernel(const float* from, float* to) {
  constexpr int kChunks = 4;
  float* const kept = reinterpret_cast<float*>(shared_memory());
  const int mine = threadIdx.x, other = blockDim.x - 1 - mine, all = blockDim.x;
  const auto start = [&](int chunk) {
    if (chunk < kChunks)
      copy_async(kept + 4 * (chunk % 2 * all + mine), from + 4 * (chunk * all + mine), true);
    commit_copies();
  };
  start(0);
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    start(chunk + 1);
    wait_for_copies<1>();
    sync_threads();
    for (int i = 0; i < 4; ++i)
      to[4 * (chunk * all + mine) + i] = kept[4 * (chunk % 2 * all + other) + i];
    if (Barrier) sync_threads();
  }
}

void stuck_kernel(const float*, float*) {
  if (threadIdx.x != 3) sync_threads();
}

void forgotten_kernel(const float* from, float*) {
  copy_async(shared_memory(), from, true);
  commit_copies();
}

// (16, 32) times (K, 32), both in shared memory in either order of their sides.
template <class T, bool TransposedA, bool TransposedB>
void product_kernel(const float* a, const float* b, float* to) {
  constexpr int K = 32, kLdA = TransposedA ? 24 : 40, kLdB = 40;
  T* const left = reinterpret_cast<T*>(shared_memory());
  T* const right = left + 40 * 40;
  for (int i = threadIdx.x; i < 16 * K; i += 32) {
    const int row = i / K, k = i % K;
    left[TransposedA ? k * kLdA + row : row * kLdA + k] = rounded<T>(a[i]);
  }
  for (int i = threadIdx.x; i < 32 * K; i += 32) {
    const int column = i / K, k = i % K;
    right[TransposedB ? k * kLdB + column : column * kLdB + k] = rounded<T>(b[i]);
  }
  sync_threads();
  WarpTile<T, 1, 4> product;
  product.clear();
  product.template multiply<K, TransposedA, TransposedB>(left, kLdA, right, kLdB);
  product.each_pair([&](int row, int column, float s0, float s1) {
    to[row * 32 + column] = s0;
    to[row * 32 + column + 1] = s1;
  });
}

}  // namespace mirnet_fast::cuda

using namespace mirnet_fast;
using namespace mirnet_fast::cuda;

#pragma GCC visibility push(default)
extern "C" {

int probe(int which, int threads, const float* from, float* to) {
  void (*const kernels[])(const float*, float*) = {
      reverse_kernel<true>,   reverse_kernel<false>,   copy_kernel<true>, copy_kernel<false>,
      pipelined_kernel<true>, pipelined_kernel<false>, stuck_kernel,      forgotten_kernel};
  emulation::run_grid(1, threads, 32 * 1024, 99 * 1024, [&] { kernels[which](from, to); });
  return 0;
}

void product(int dtype, int transposed, const float* a, const float* b, float* to) {
  using Kernel = void (*)(const float*, const float*, float*);
  const Kernel kernels[3][4] = {
      {product_kernel<half, false, false>, product_kernel<half, true, false>,
       product_kernel<half, false, true>, product_kernel<half, true, true>},
      {product_kernel<bf16, false, false>, product_kernel<bf16, true, false>,
       product_kernel<bf16, false, true>, product_kernel<bf16, true, true>},
      {product_kernel<float, false, false>, product_kernel<float, true, false>,
       product_kernel<float, false, true>, product_kernel<float, true, true>},
  };
  emulation::run_grid(1, 32, 32 * 1024, 99 * 1024, [&] { kernels[dtype][transposed](a, b, to); });
}

// How often ldmatrix waits for banks where the rows lie so many bytes apart.
long conflicts(int bytes) {
  const long before = mirnet_emulation_bank_conflicts();
  emulation::run_grid(1, 32, 32 * 1024, 99 * 1024, [&] {
    uint32_t to[4];
    load_matrices(to, shared_memory() + lane() * bytes);
  });
  return mirnet_emulation_bank_conflicts() - before;
}

// What a launch says: on the current stream of a device or not, and with so much shared memory
// after so much was asked for.
const char* launch(bool on_device, bool on_stream, int shared, int asked) {
  void (*const kernel)(int) = [](int) {};
  cudaLaunchConfig_t config{dim3(1), dim3(32), size_t(shared), nullptr, nullptr, 0};
  const auto go = [&] {
    if (asked) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, asked);
    const cudaError_t error = cudaLaunchKernelEx(&config, kernel, 1);
    return error == cudaSuccess ? "done" : cudaGetErrorString(error);
  };
  if (!on_device) return go();
  const emulation::DeviceGuard guard(0);
  void* stream = nullptr;
  emulation::get_current_cuda_stream(0, &stream);
  if (on_stream) config.stream = static_cast<cudaStream_t>(stream);
  return go();
}

void too_much() {
  emulation::run_grid(1, 32, 100 * 1024, 99 * 1024, [] {});
}
}
#pragma GCC visibility pop
