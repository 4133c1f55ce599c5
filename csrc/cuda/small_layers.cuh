// The layers on global means, a few thousand numbers an image: one block an image, in F (float64
// where gradients cancel). All threads of the block call; what is written is there for all of them
// after it.
#pragma once

#include "device.cuh"

namespace mirnet_fast::cuda {

constexpr int kSmallThreads = 512;

template <class F>
MIRNET_DEVICE F sum_of_warp(F value) {
#pragma unroll
  for (int mask = 16; mask >= 1; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// result[c] = scale times the sum of at[p * distance + c] over the programs p, in a fixed order.
// room: kSmallThreads values of shared memory.
template <class F>
MIRNET_DEVICE void add_programs(const float* at, int programs, int64_t distance, int channels,
                                F* room, F* result, F scale) {
  // Side by side as many programs as there are threads for, each over every so many.
  const int across = min(channels, kSmallThreads), side = kSmallThreads / across;
  const int place = threadIdx.x / across;
  for (int begin = 0; begin < channels; begin += kSmallThreads) {
    const int c = begin + threadIdx.x % across;
    F sum = 0;
    if (place < side && c < channels)
      for (int p = place; p < programs; p += side) sum += at[p * distance + c];
    room[threadIdx.x] = sum;
    sync_threads();
    if (place == 0 && c < channels) {
      for (int s = 1; s < side; ++s) sum += room[s * across + threadIdx.x];
      result[c] = sum * scale;
    }
    sync_threads();
  }
}

// result[d] = weight (rows, columns) x + bias, a warp for each row; no bias where it is null.
template <class T, class F>
MIRNET_DEVICE void small_layer(const T* weight, const T* bias, const F* x, int rows, int columns,
                               F* result) {
  for (int d = warp(); d < rows; d += kSmallThreads / 32) {
    F sum = 0;
    for (int c = lane(); c < columns; c += 32)
      sum += F(to_float(weight[int64_t(d) * columns + c])) * x[c];
    sum = sum_of_warp(sum);
    if (lane() == 0) result[d] = sum + (bias ? F(to_float(bias[d])) : F(0));
  }
  sync_threads();
}

}  // namespace mirnet_fast::cuda
