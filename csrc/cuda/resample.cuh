// Maps resampled along both axes by csrc/shared/taps.h, or by the transposes of those: one pixel and
// 16 bytes of channels a thread. Floor: every input once, every output once; what neighbouring
// pixels share they find in the first-level cache.
#pragma once

#include "../shared/taps.h"
#include "common.cuh"

namespace mirnet_fast::cuda {

constexpr int kResampleThreads = 256;

template <class In, class Out, class Axis>
struct ResampleArgs {
  Map<const In> in;
  Map<Out> out;
  Axis rows, cols;
  int height, width;  // of out
  int channels, chunks;   // chunks: blocks a row
};

// f(index, weight) for what position o of out gathers along an axis.
template <bool Transposed, class Axis, class F>
MIRNET_DEVICE void gathered(const Axis& axis, int o, F f) {
  if constexpr (Transposed)
    axis.read_by(o, f);
  else
    axis.reads(o, f);
}

// after(n, h, w, c, total) may change the totals before they are rounded.
template <int V, bool Transposed, class In, class Out, class Axis, class After>
__global__ void __launch_bounds__(kResampleThreads)
    resample_kernel(ResampleArgs<In, Out, Axis> a, After after) {
  const int vectors = a.channels / V;
  const int row = blockIdx.x / a.chunks;
  const int i = blockIdx.x % a.chunks * kResampleThreads + threadIdx.x;
  const int w = i / vectors;
  if (w >= a.width) return;
  const int c = i % vectors * V;
  const int n = row / a.height, h = row % a.height;
  float total[V] = {};
  gathered<Transposed>(a.rows, h, [&](int y, float row_weight) {
    gathered<Transposed>(a.cols, w, [&](int x, float col_weight) {
      float value[V];
      load<V>(value, a.in.at(n, y, x) + c);
#pragma unroll
      for (int j = 0; j < V; ++j) total[j] += row_weight * col_weight * value[j];
    });
  });
  after(n, h, w, c, total);
  store<V>(a.out.at(n, h, w) + c, total);
}

struct Unchanged {
  template <int V>
  MIRNET_DEVICE void operator()(int, int, int, int, float (&)[V]) const {}
};

// out = the resampled in, both with consecutive channels.
template <bool Transposed, class In, class Out, class Axis, class After = Unchanged>
void resample(const char* op, const Place& place, const Tensor& in, const Tensor& out,
              const Axis& rows, const Axis& cols, bool aligned, const After& after = {}) {
  if (out.numel() == 0) return;
  ResampleArgs<In, Out, Axis> args{map_of<const In>(in), map_of<Out>(out), rows, cols,
                                   int(out.size(2)), int(out.size(3)), int(out.size(1)), 0};
  const auto go = [&](auto width) {
    constexpr int V = decltype(width)::value;
    args.chunks = int(ceil_div(out.size(3) * (args.channels / V), kResampleThreads));
    const int64_t blocks = out.size(0) * out.size(2) * args.chunks;
    place.launch(told(op, in), resample_kernel<V, Transposed, In, Out, Axis, After>,
                 blocks, kResampleThreads, 0, args, after);
  };
  if (aligned)
    go(Width<kWide<Out>>{});
  else
    go(Width<1>{});
}

}  // namespace mirnet_fast::cuda
