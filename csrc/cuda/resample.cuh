// Maps resampled along both axes by csrc/common/axes.h, or by the transposes of those, with a PReLU
// before it or the derivative of one after it. Floor: every input once, every output once; what
// neighbouring pixels share they find in the first-level cache. A thread makes 16 bytes of channels
// of kResampleStrip pixels, one below the other.
#pragma once

#include "../common/axes.h"
#include "launch.cuh"

namespace mirnet_fast::cuda {

constexpr int kResampleThreads = 256, kResampleStrip = 4;

template <class In, class Out, class Axis>
struct ResampleArgs {
  Map<const In> in;
  Map<Out> out;
  Axis rows, cols;
  int height, width;     // of out
  int channels, chunks;  // chunks: blocks a strip
};

// f(index, weight) for what position o of out gathers along an axis.
template <bool Transposed, class Axis, class F>
MIRNET_DEVICE void gathered(const Axis& axis, int o, F f) {
  if constexpr (Transposed)
    axis.read_by(o, f);
  else
    axis.reads(o, f);
}

// A PReLU on what is read.
template <class T>
struct PreluBefore {
  const T* slope;
  int slopes;

  template <int V>
  MIRNET_DEVICE void operator()(int c, float (&value)[V]) const {
#pragma unroll
    for (int j = 0; j < V; ++j) value[j] = prelu(value[j], to_float(slope[slopes > 1 ? c + j : 0]));
  }
};

struct NothingBefore {
  template <int V>
  MIRNET_DEVICE void operator()(int, float (&)[V]) const {}
};

// The resampled map is the gradient of the PReLU of `top`; sums (blocks, channels) for the slope's.
template <class T>
struct PreluGradient {
  static constexpr bool kSums = true;
  Map<const T> top;
  const T* slope;
  float* sums;
  int slopes;

  template <int V>
  MIRNET_DEVICE void operator()(int n, int h, int w, int c, float (&total)[V],
                                float (&through)[V]) const {
    float before[V];
    load<V>(before, top.at(n, h, w) + c);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if (before[j] > 0) continue;
      through[j] += before[j] * total[j];
      total[j] *= to_float(slope[slopes > 1 ? c + j : 0]);
    }
  }
};

struct NothingAfter {
  static constexpr bool kSums = false;

  template <int V>
  MIRNET_DEVICE void operator()(int, int, int, int, float (&)[V], float (&)[V]) const {}
};

template <int V, bool Transposed, class In, class Out, class Axis, class Before, class After>
__global__ void __launch_bounds__(kResampleThreads, 2)
    resample_kernel(ResampleArgs<In, Out, Axis> a, Before before, After after) {
  const int vectors = a.channels / V;
  const int strips = (a.height + kResampleStrip - 1) / kResampleStrip;
  const int strip = blockIdx.x / a.chunks;
  const int first = blockIdx.x % a.chunks * kResampleThreads;
  const int w = (first + int(threadIdx.x)) / vectors;
  const int c = (first + int(threadIdx.x)) % vectors * V;
  const int n = strip / strips;
  float through[V] = {};
  for (int s = 0; s < kResampleStrip; ++s) {
    const int h = strip % strips * kResampleStrip + s;
    if (w >= a.width || h >= a.height) break;
    float total[V] = {};
    gathered<Transposed>(a.rows, h, [&](int y, float row_weight) {
      gathered<Transposed>(a.cols, w, [&](int x, float col_weight) {
        float value[V];
        load<V>(value, a.in.at(n, y, x) + c);
        before(c, value);
#pragma unroll
        for (int j = 0; j < V; ++j) total[j] += row_weight * col_weight * value[j];
      });
    });
    after(n, h, w, c, total, through);
    store<V>(a.out.at(n, h, w) + c, total);
  }
  if constexpr (After::kSums) {
    float* const kept = reinterpret_cast<float*>(shared_memory());
#pragma unroll
    for (int j = 0; j < V; ++j) kept[threadIdx.x * V + j] = through[j];
    sync_threads();
    for (int i = threadIdx.x; i < a.channels; i += kResampleThreads) {
      // The threads that had this channel, in order.
      const int before_it = (i / V - first % vectors + vectors) % vectors;
      float sum = 0;
      for (int t = before_it; t < kResampleThreads; t += vectors) sum += kept[t * V + i % V];
      after.sums[int64_t(blockIdx.x) * a.channels + i] = sum;
    }
  }
}

// Blocks of a resampling with V channels a thread.
inline int64_t resample_chunks(const char* op, const Tensor& out, int V) {
  return row_blocks(error_context(op, out), out.size(3) * (out.size(1) / V), kResampleThreads);
}
inline int64_t resample_blocks(const char* op, const Tensor& out, int V) {
  return out.size(0) * ceil_div(out.size(2), kResampleStrip) * resample_chunks(op, out, V);
}

// out = the resampled in, both with consecutive channels; V: kWide<Out> where all maps are wide,
// or 1.
template <int V, bool Transposed, class In, class Out, class Axis, class Before = NothingBefore,
          class After = NothingAfter>
void resample_by(const char* op, const LaunchContext& context, const Tensor& in, const Tensor& out,
                 const Axis& rows, const Axis& cols, const Before& before = {},
                 const After& after = {}) {
  if (out.numel() == 0) return;
  const ResampleArgs<In, Out, Axis> args{map_of<const In>(in),
                                         map_of<Out>(out),
                                         rows,
                                         cols,
                                         int(out.size(2)),
                                         int(out.size(3)),
                                         int(out.size(1)),
                                         int(resample_chunks(op, out, V))};
  context.launch(error_context(op, in),
                 resample_kernel<V, Transposed, In, Out, Axis, Before, After>,
                 resample_blocks(op, out, V), kResampleThreads,
                 After::kSums ? kResampleThreads * V * sizeof(float) : 0, args, before, after);
}

template <bool Transposed, class In, class Out, class Axis, class Before = NothingBefore>
void resample(const char* op, const LaunchContext& context, const Tensor& in, const Tensor& out,
              const Axis& rows, const Axis& cols, const Before& before = {}) {
  if (wide({&in, &out}))
    resample_by<kWide<Out>, Transposed, In, Out>(op, context, in, out, rows, cols, before);
  else
    resample_by<1, Transposed, In, Out>(op, context, in, out, rows, cols, before);
}

// The same where the resampled map is the gradient of top's PReLU: out becomes the gradient of top;
// the result is sums (blocks, channels) for the slope's.
template <bool Transposed, class T, class Axis>
Tensor resample_through(const char* op, const LaunchContext& context, const Tensor& in,
                        const Tensor& out, const Axis& rows, const Axis& cols, const Tensor& top,
                        const Tensor& slope) {
  const int V = wide({&in, &out, &top}) ? kWide<T> : 1;
  const Tensor sums = scratch(out, {resample_blocks(op, out, V), out.size(1)});
  const PreluGradient<T> after{map_of<const T>(top), static_cast<const T*>(slope.data_ptr()),
                               static_cast<float*>(sums.data_ptr()), int(slope.numel())};
  if (V == 1)
    resample_by<1, Transposed, T, T>(op, context, in, out, rows, cols, NothingBefore{}, after);
  else
    resample_by<kWide<T>, Transposed, T, T>(op, context, in, out, rows, cols, NothingBefore{},
                                            after);
  return sums;
}

}  // namespace mirnet_fast::cuda
