// The backward of skff_select. Floor: B + 1 maps read, B written, and before that the sums again,
// of each branch with the gradient too.
//
// attend_backward_kernel, one block an image, does the small layers and their gradients;
// spread_kernel writes the branches' gradients, for which it reads no branch.
#pragma once

#include "skff_select.cuh"

namespace mirnet_fast::cuda::skff {

// ---- the small layers, backward ----------------------------------------------------------------

// In float64: differences of shares cancel, and it is a few thousand numbers.
template <class T>
struct AttendBackwardArgs {
  AttendArgs<T> forward;  // sums (N, programs, 1 + B, C); attention is written for spread_kernel
  double *means, *after, *before_grad, *slope_grad,
      *logit_grad;  // (N, C), (N, d) thrice, (N, B, C)
  double* shares;   // (N, B, C)
  float* shift;     // (N, C): what every pixel gets
};

template <class T>
__global__ void __launch_bounds__(kSmallThreads, 1)
    attend_backward_kernel(AttendBackwardArgs<T> b) {
  const AttendArgs<T>& a = b.forward;
  double* const room = reinterpret_cast<double*>(shared_memory());  // (kSumsRoom), (d)
  double* const z = room + kSumsRoom;
  const int n = blockIdx.x, C = a.channels, D = a.squeezed, rows = 1 + a.branches;
  const float* const sums = a.sums + int64_t(n) * a.programs * rows * C;
  double* const means = b.means + int64_t(n) * C;
  double* const shares = b.shares + int64_t(n) * a.branches * C;
  double* const grads = b.logit_grad + int64_t(n) * a.branches * C;
  double* const after = b.after + int64_t(n) * D;
  double* const before_grad = b.before_grad + int64_t(n) * D;
  add_programs(sums, a.programs, int64_t(rows) * C, C, room, means, 1.0 / a.pixels);
  for (int i = 0; i < a.branches; ++i)
    add_programs(sums + int64_t(1 + i) * C, a.programs, int64_t(rows) * C, C, room,
                 grads + int64_t(i) * C, 1.0);
  small_layer(a.reduce_weight, a.reduce_bias, means, a.squeezed, a.channels, z);
  for (int d = threadIdx.x; d < D; d += kSmallThreads)
    after[d] = activated(z[d], slope_of<T, double>(a, d), a.slope == nullptr);
  sync_threads();
  select_layers(a, after, shares);
  for (int c = threadIdx.x; c < C; c += kSmallThreads) {
    double mean = 0;
    for (int i = 0; i < a.branches; ++i)
      mean += shares[int64_t(i) * C + c] * grads[int64_t(i) * C + c];
    for (int i = 0; i < a.branches; ++i) {
      const int64_t at = int64_t(i) * C + c;
      grads[at] = shares[at] * (grads[at] - mean);
      a.attention[int64_t(n) * a.branches * C + at] = float(shares[at]);
    }
  }
  sync_threads();
  for (int d = warp(); d < D; d += kSmallThreads / 32) {
    double sum = 0;
    for (int i = 0; i < a.branches; ++i) {
      const T* const weight = a.select[i].weight;
      for (int c = lane(); c < C; c += 32)
        sum += grads[int64_t(i) * C + c] * to_float(weight[int64_t(c) * D + d]);
    }
    sum = sum_of_warp(sum);
    if (lane() == 0) {
      const bool relu = a.slope == nullptr;
      const double through =
          relu ? (z[d] <= 0 ? 0 : 1) : (z[d] > 0 ? 1 : slope_of<T, double>(a, d));
      before_grad[d] = through == 0 && relu ? 0 : through * sum;
      b.slope_grad[int64_t(n) * D + d] = z[d] > 0 ? 0 : z[d] * sum;
    }
  }
  sync_threads();
  for (int c = threadIdx.x; c < C; c += kSmallThreads) {
    double sum = 0;
    for (int d = 0; d < D; ++d)
      sum += before_grad[d] * to_float(a.reduce_weight[int64_t(d) * C + c]);
    b.shift[int64_t(n) * C + c] = float(sum / a.pixels);
  }
}

// ---- the branches' gradients ------------------------------------------------------------------

template <class T, int B>
struct SpreadArgs {
  Map<const T> grad;
  ForEach<Map<T>, B> outs;
  const float *attention, *shift;
  Walk walk;
  int channels, branches;
};

template <class T, int V, int B, int InFlight>
__global__ void __launch_bounds__(kThreads, 2) spread_kernel(SpreadArgs<T, B> a) {
  const Walker<V> me(a.walk, a.channels);
  if (!me.active) return;
  const int branches = B ? B : a.branches;
  const float* const shares = a.attention + int64_t(me.n) * branches * a.channels + me.c;
  float share[B ? B : 1][V], shift[V];
  const auto take_share = [&](int b, int place) {
#pragma unroll
    for (int j = 0; j < V; ++j) share[place][j] = shares[int64_t(b) * a.channels + j];
  };
#pragma unroll
  for (int j = 0; j < V; ++j) shift[j] = a.shift[int64_t(me.n) * a.channels + me.c + j];
  if constexpr (B > 0) {
#pragma unroll
    for (int b = 0; b < B; ++b) take_share(b, b);
  }
  for (int step = me.program; step < a.walk.steps; step += a.walk.programs) {
    const int h = step / a.walk.per_row;
    const int w = step % a.walk.per_row * me.slots * InFlight + me.slot;
    const auto inside = [&](int u) { return w + u * me.slots < a.walk.width; };
    Pack<T, V> given[InFlight];
#pragma unroll
    for (int u = 0; u < InFlight; ++u)
      if (inside(u)) given[u] = fetch<V>(a.grad.at(me.n, h, w + u * me.slots) + me.c);
    const auto write = [&](int b, int place) {
#pragma unroll
      for (int u = 0; u < InFlight; ++u) {
        if (!inside(u)) continue;
        float value[V];
#pragma unroll
        for (int j = 0; j < V; ++j)
          value[j] = share[place][j] * to_float(given[u].value[j]) + shift[j];
        store<V>(a.outs[b].at(me.n, h, w + u * me.slots) + me.c, value);
      }
    };
    if constexpr (B > 0) {
#pragma unroll
      for (int b = 0; b < B; ++b) write(b, b);
    } else {
      for (int b = 0; b < branches; ++b) {
        take_share(b, 0);
        write(b, 0);
      }
    }
  }
}

}  // namespace mirnet_fast::cuda::skff
