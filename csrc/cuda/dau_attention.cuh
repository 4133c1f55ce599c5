// What the forward and the backward of dau_attention share: the statistics of r, the channel gate,
// the spatial gate.
#pragma once

#include "../common/dau_arguments.h"
#include "launch.cuh"
#include "product.cuh"
#include "small_layers.cuh"
#include "tile.cuh"

namespace mirnet_fast::cuda::dau {

constexpr const char* kOp = "dau_attention";

// ---- statistics of r: one pass ---------------------------------------------------------------
// A group of up to 32 lanes holds a pixel's channels and reduces them by shuffles; the same lanes
// keep the sums of those channels over the pixels. A thread loads kInFlight pixels before it uses
// the first.

constexpr int kStatsThreads = 256, kInFlight = 4;
// Blocks of all images together: four on each multiprocessor of a large GPU.
constexpr int64_t kPrograms = 528;

template <class T>
struct StatsArgs {
  Map<const T> r;
  float* pooled;  // (N, 2, H, W): maximum and mean over the channels
  int* index;     // (N, H, W) of the maximum, or null
  float* sums;    // (N, programs, C)
  int channels, height, width, group, groups, per_row, programs;
};

// The larger of two values and its index; a NaN is the largest, of equals the first.
MIRNET_DEVICE void take_larger(float& value, int& index, float other, int other_index) {
  const bool nan = value != value, other_nan = other != other;
  const bool tie = (nan && other_nan) || value == other;
  if (tie ? other_index < index : other_nan || (!nan && other > value)) {
    value = other;
    index = other_index;
  }
}

// Vectors: 16-byte pieces (V channels) that a lane holds, or 0 for any number of them, whose sums
// are then kept in shared memory, by a whole warp for each pixel.
template <class T, int V, int Vectors>
__global__ void __launch_bounds__(kStatsThreads, 2) stats_kernel(StatsArgs<T> a) {
  constexpr int kKept = Vectors ? Vectors : 1;
  float* const kept = reinterpret_cast<float*>(shared_memory());  // (groups, C) or (warps, C)
  const int group = Vectors ? a.group : 32;
  const int groups = Vectors ? kStatsThreads / group : a.groups, threads = groups * group;
  const int mine = threadIdx.x / group, piece = threadIdx.x % group;
  const int pieces = (a.channels + V - 1) / V;
  const int n = blockIdx.x / a.programs, program = blockIdx.x % a.programs;
  const int steps = a.height * a.per_row;
  const int64_t plane = int64_t(a.height) * a.width;
  float total[kKept][V] = {};
  if constexpr (Vectors == 0) {
    for (int i = threadIdx.x; i < groups * a.channels; i += threads) kept[i] = 0;
    sync_threads();
  }
  for (int step = program; step < steps; step += a.programs) {
    const int h = step / a.per_row;
    const int w = step % a.per_row * groups * kInFlight + mine;
    Pack<T, V> raw[kInFlight][kKept];
    if constexpr (Vectors > 0) {
#pragma unroll
      for (int u = 0; u < kInFlight; ++u)
#pragma unroll
        for (int v = 0; v < Vectors; ++v)
          if (w + u * groups < a.width && piece + v * group < pieces)
            raw[u][v] = fetch<V>(a.r.at(n, h, w + u * groups) + (piece + v * group) * V);
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      // All lanes of a warp stay together for the shuffles.
      const bool inside = w + u * groups < a.width;
      float largest = -INFINITY, sum = 0;
      int first = a.channels - 1;
      const auto see = [&](const Pack<T, V>& pack, int c, int v) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const float value = to_float(pack.value[j]);
          sum += value;
          take_larger(largest, first, value, c + j);
          if constexpr (Vectors > 0)
            total[v][j] += value;
          else
            kept[mine * a.channels + c + j] += value;
        }
      };
      if constexpr (Vectors > 0) {
#pragma unroll
        for (int v = 0; v < Vectors; ++v)
          if (inside && piece + v * group < pieces) see(raw[u][v], (piece + v * group) * V, v);
      } else {
        for (int p = piece; inside && p < pieces; p += group)
          see(fetch<V>(a.r.at(n, h, w + u * groups) + p * V), p * V, 0);
      }
      for (int mask = group / 2; mask >= 1; mask /= 2) {
        sum += shuffle_xor(sum, mask);
        const float other = shuffle_xor(largest, mask);
        take_larger(largest, first, other, shuffle_xor(first, mask));
      }
      if (inside && piece == 0) {
        const int64_t at = int64_t(h) * a.width + w + u * groups;
        a.pooled[2 * n * plane + at] = largest;
        a.pooled[(2 * n + 1) * plane + at] = sum / a.channels;
        if (a.index) a.index[n * plane + at] = first;
      }
    }
  }
  if constexpr (Vectors > 0) {
#pragma unroll
    for (int v = 0; v < Vectors; ++v)
#pragma unroll
      for (int j = 0; j < V; ++j)
        if (piece + v * group < pieces)
          kept[mine * a.channels + (piece + v * group) * V + j] = total[v][j];
  }
  sync_threads();
  for (int c = threadIdx.x; c < a.channels; c += threads) {
    float sum = 0;
    for (int g = 0; g < groups; ++g) sum += kept[g * a.channels + c];
    a.sums[int64_t(blockIdx.x) * a.channels + c] = sum;
  }
}

struct Statistics {
  Tensor pooled, sums;
  OptionalTensor index;
};

template <class T>
Statistics statistics(const LaunchContext& context, const Tensor& r, bool with_index) {
  const int64_t n = r.size(0), channels = r.size(1), height = r.size(2), width = r.size(3);
  const bool aligned = wide({&r});
  const int64_t pieces = aligned ? channels / kWide<T> : channels;
  const bool in_registers = aligned && pieces <= 64;
  int group = 32;
  while (in_registers && group / 2 >= pieces) group /= 2;
  // Of thousands of channels as many warps as shared memory has room for their sums.
  const int groups =
      int(std::clamp<int64_t>(kSharedLimit / sizeof(float) / channels, 1, kStatsThreads / group));
  const int64_t per_row = ceil_div(width, groups * kInFlight);
  MIRNET_CHECK(height * per_row < int64_t(1) << 31, kOp, ": maps of 2**31 rows or more");
  const int64_t programs = std::min(height * per_row, std::max<int64_t>(1, kPrograms / n));
  Statistics result{scratch(r, {n, 2, height, width}), scratch(r, {n, programs, channels}),
                    std::nullopt};
  if (with_index) result.index = scratch(r, {n, height, width}, ScalarType::Int);
  const StatsArgs<T> args{map_of<const T>(r),
                          static_cast<float*>(result.pooled.data_ptr()),
                          with_index ? static_cast<int*>(result.index->data_ptr()) : nullptr,
                          static_cast<float*>(result.sums.data_ptr()),
                          int(channels),
                          int(height),
                          int(width),
                          group,
                          groups,
                          int(per_row),
                          int(programs)};
  const auto go = [&](auto kernel) {
    context.launch(error_context(kOp, r), kernel, n * programs, group * groups,
                   groups * channels * sizeof(float), args);
  };
  if (!aligned)
    go(stats_kernel<T, 1, 0>);
  else if (!in_registers)
    go(stats_kernel<T, kWide<T>, 0>);
  else if (pieces <= 32)
    go(stats_kernel<T, kWide<T>, 1>);
  else
    go(stats_kernel<T, kWide<T>, 2>);
  result.sums = few_sums(error_context(kOp, r), context, result.sums);
  return result;
}

// ---- the spatial gate of a tile of pixels ----------------------------------------------------

constexpr int kDown = 8, kAcross = 16, kPixels = kDown * kAcross;

// Floats of shared memory that it takes.
inline size_t gate_room(int taps, int threads) {
  return size_t(2) * (kDown + taps - 1) * (kAcross + taps - 1) + threads;
}

MIRNET_DEVICE float sigmoid(float x) { return 1 / (1 + expf(-x)); }

// gate[pixel] of the tile from pooled (2, H, W) of its image and the weight (1, 2, taps, taps); 0
// outside the map. All threads call; the gate is there after it.
template <class T>
MIRNET_DEVICE void spatial_gate(const float* pooled, const T* weight, int taps,
                                const PixelTile<kDown, kAcross>& tile, int threads, float* room,
                                float* gate) {
  const int down = kDown + taps - 1, across = kAcross + taps - 1, halo = 2 * down * across;
  float* const parts_of = room + halo;
  for (int i = threadIdx.x; i < halo; i += threads) {
    const int y = tile.h - taps / 2 + i / across % down, x = tile.w - taps / 2 + i % across;
    const bool inside = y >= 0 && y < tile.height && x >= 0 && x < tile.width;
    room[i] =
        inside ? pooled[(int64_t(i / (down * across)) * tile.height + y) * int64_t(tile.width) + x]
               : 0.f;
  }
  sync_threads();
  // The rows of taps are shared out among the threads that have the same pixel.
  const int pixel = threadIdx.x % kPixels, part = threadIdx.x / kPixels, parts = threads / kPixels;
  float logit = 0;
  for (int row = part; row < 2 * taps; row += parts) {
    const float* const from =
        room + (row / taps * down + row % taps + pixel / kAcross) * across + pixel % kAcross;
    for (int x = 0; x < taps; ++x) logit += to_float(weight[row * taps + x]) * from[x];
  }
  parts_of[threadIdx.x] = logit;
  sync_threads();
  if (part == 0) {
    for (int p = 1; p < parts; ++p) logit += parts_of[p * kPixels + pixel];
    gate[pixel] = tile.inside(pixel) ? sigmoid(logit) : 0.f;
  }
  sync_threads();
}

// ---- weights ---------------------------------------------------------------------------------

// As the kernels read them.
struct DenseWeights {
  Dense spatial, squeeze, squeeze_bias, excite, excite_bias, fuse, fuse_bias;

  explicit DenseWeights(const DauWeights& w)
      : spatial(w.spatial),
        squeeze(w.squeeze),
        squeeze_bias(w.squeeze_bias),
        excite(w.excite),
        excite_bias(w.excite_bias),
        fuse(w.fuse),
        fuse_bias(w.fuse_bias) {}
};

}  // namespace mirnet_fast::cuda::dau
