// skff_select: global means of the branches' sum, the small layers and the softmax over the
// branches, the weighted sum. Floor: 2B + 1 maps; the backward reads B + 1 and writes B.
//
// pool_kernel (skff_select.cuh) reads all branches once and leaves partial sums, in a fixed order;
// attend_kernel, one block an image, adds them and does the small layers: of a few hundred
// kilobytes, not worth a map's launch; combine_kernel reads the branches again.
#include "skff_select.cuh"
#include "skff_select_backward.cuh"

namespace mirnet_fast::cuda {

namespace skff {

template <class T>
__global__ void __launch_bounds__(kSmallThreads, 1) attend_kernel(AttendArgs<T> a) {
  float* const room = reinterpret_cast<float*>(shared_memory());  // (kSumsRoom), (C), (d)
  float* const means = room + kSumsRoom;
  float* const z = means + a.channels;
  const int n = blockIdx.x;
  add_programs(a.sums + int64_t(n) * a.programs * a.channels, a.programs, a.channels, a.channels,
               room, means, 1 / a.pixels);
  small_layer(a.reduce_weight, a.reduce_bias, means, a.squeezed, a.channels, z);
  for (int d = threadIdx.x; d < a.squeezed; d += kSmallThreads)
    z[d] = activated(z[d], slope_of<T, float>(a, d), a.slope == nullptr);
  sync_threads();
  select_layers(a, z, a.attention + int64_t(n) * a.branches * a.channels);
}

// ---- the weighted sum ------------------------------------------------------------------------

template <class T, int B>
struct CombineArgs {
  ForEach<Map<const T>, B> maps;
  Map<T> out;
  const float* attention;
  Walk walk;
  int channels, branches;
};

template <class T, int V, int B, int InFlight>
__global__ void __launch_bounds__(kThreads, B == 4 ? 1 : 2) combine_kernel(CombineArgs<T, B> a) {
  const Walker<V> me(a.walk, a.channels);
  if (!me.active) return;
  const int branches = B ? B : a.branches;
  const float* const shares = a.attention + int64_t(me.n) * branches * a.channels + me.c;
  float share[B ? B : 1][V];
  const auto take_share = [&](int b, int place) {
#pragma unroll
    for (int j = 0; j < V; ++j) share[place][j] = shares[int64_t(b) * a.channels + j];
  };
  if constexpr (B > 0) {
#pragma unroll
    for (int b = 0; b < B; ++b) take_share(b, b);
  }
  for (int step = me.program; step < a.walk.steps; step += a.walk.programs) {
    const int h = step / a.walk.per_row;
    const int w = step % a.walk.per_row * me.slots * InFlight + me.slot;
    const auto inside = [&](int u) { return w + u * me.slots < a.walk.width; };
    const auto at = [&](int b, int u) { return a.maps[b].at(me.n, h, w + u * me.slots) + me.c; };
    if constexpr (B > 0) {
      Pack<T, V> raw[InFlight][B];
#pragma unroll
      for (int u = 0; u < InFlight; ++u)
#pragma unroll
        for (int b = 0; b < B; ++b)
          if (inside(u)) raw[u][b] = fetch<V>(at(b, u));
#pragma unroll
      for (int u = 0; u < InFlight; ++u) {
        float total[V] = {};
#pragma unroll
        for (int b = 0; b < B; ++b)
#pragma unroll
          for (int j = 0; j < V; ++j) total[j] += share[b][j] * to_float(raw[u][b].value[j]);
        if (inside(u)) store<V>(a.out.at(me.n, h, w + u * me.slots) + me.c, total);
      }
    } else {
      for (int u = 0; u < InFlight && inside(u); ++u) {
        float total[V] = {};
        for (int b = 0; b < branches; ++b) {
          const Pack<T, V> raw = fetch<V>(at(b, u));
          take_share(b, 0);
#pragma unroll
          for (int j = 0; j < V; ++j) total[j] += share[0][j] * to_float(raw.value[j]);
        }
        store<V>(a.out.at(me.n, h, w + u * me.slots) + me.c, total);
      }
    }
  }
}

}  // namespace skff

Tensor skff_select(std::vector<Tensor> branches, Tensor reduce_weight, OptionalTensor reduce_bias,
                   OptionalTensor slope, std::vector<Tensor> select_weights,
                   std::vector<Tensor> select_biases) {
  using namespace skff;
  const SkffWeights w{reduce_weight, reduce_bias, slope, select_weights, select_biases};
  check_skff(kOp, branches, w);
  const Tensor& first = branches[0];
  const LaunchContext context(first);
  const Tensor out = map_out(first, shape_of(first));
  if (out.numel() == 0) return laid_out_like(out, first);
  const std::vector<Tensor> maps = maps_in(branches);
  const Tensor attention = scratch(first, {first.size(0), int64_t(maps.size()), first.size(1)});
  by_dtype(kOp, first, [&](auto tag) {
    using T = typename decltype(tag)::type;
    Tables tables(context, first);
    const Tensor sums = pool<T, false>(context, tables, maps, nullptr);
    DenseWeights weights;
    AttendArgs<T> attend = weights.args<T>(w, first, sums, tables);
    attend.attention = static_cast<float*>(attention.data_ptr());
    const size_t shared = (kSumsRoom + attend.channels + attend.squeezed) * sizeof(float);
    context.launch(error_context(kOp, first), attend_kernel<T>, first.size(0), kSmallThreads,
                   shared, attend);
    by_width<T>(all_wide(maps) && wide({&out}), maps.size(), [&](auto width, auto count) {
      constexpr int V = decltype(width)::value, B = decltype(count)::value;
      constexpr int kInFlight = loads_in_flight(B, false);
      const Walk walk = walk_over<kInFlight>(first, V);
      CombineArgs<T, B> args{};
      tables.list(args.maps, maps_of<const T>(maps));
      args.out = map_of<T>(out);
      args.attention = attend.attention;
      args.walk = walk;
      args.channels = attend.channels;
      args.branches = attend.branches;
      context.launch(error_context(kOp, first), combine_kernel<T, V, B, kInFlight>,
                     blocks_of(walk, first.size(0)), kThreads, 0, args);
    });
  });
  return laid_out_like(out, first);
}

std::vector<Tensor> skff_select_backward(Tensor grad, std::vector<Tensor> branches,
                                         Tensor reduce_weight, OptionalTensor reduce_bias,
                                         OptionalTensor slope, std::vector<Tensor> select_weights,
                                         std::vector<Tensor> select_biases) {
  using namespace skff;
  const SkffWeights w{reduce_weight, reduce_bias, slope, select_weights, select_biases};
  check_skff(kOp, branches, w);
  const Tensor& first = branches[0];
  check(kOp, "grad", grad, shape_of(first), first);
  const LaunchContext context(first);
  const int64_t n = first.size(0), C = first.size(1), D = reduce_weight.size(0),
                B = int64_t(branches.size());
  std::vector<Tensor> outs;
  for (int64_t b = 0; b < B; ++b) outs.push_back(map_out(first, shape_of(first)));
  const auto doubles = [&](const Shape& shape) {
    return scratch(first, shape, ScalarType::Double);
  };
  const Tensor means = doubles({n, C}), after = doubles({n, D}), before_grad = doubles({n, D});
  const Tensor slope_grad = doubles({n, D}), logit_grad = doubles({n, B * C}),
               shares = doubles({n, B, C});
  const Tensor shift = scratch(first, {n, C}), attention = scratch(first, {n, B, C});
  if (n > 0) {
    const std::vector<Tensor> maps = maps_in(branches);
    const Tensor given = map_in(grad);
    by_dtype(kOp, first, [&](auto tag) {
      using T = typename decltype(tag)::type;
      Tables tables(context, first);
      const Tensor sums = pool<T, true>(context, tables, maps, &given);
      DenseWeights weights;
      AttendBackwardArgs<T> small{
          weights.args<T>(w, first, sums, tables),     static_cast<double*>(means.data_ptr()),
          static_cast<double*>(after.data_ptr()),      static_cast<double*>(before_grad.data_ptr()),
          static_cast<double*>(slope_grad.data_ptr()), static_cast<double*>(logit_grad.data_ptr()),
          static_cast<double*>(shares.data_ptr()),     static_cast<float*>(shift.data_ptr())};
      small.forward.attention = static_cast<float*>(attention.data_ptr());
      context.launch(error_context(kOp, first), attend_backward_kernel<T>, n, kSmallThreads,
                     (kSumsRoom + D) * sizeof(double), small);
      by_width<T>(all_wide(outs) && wide({&given}), outs.size(), [&](auto width, auto count) {
        constexpr int V = decltype(width)::value, kCount = decltype(count)::value, kInFlight = 4;
        SpreadArgs<T, kCount> args{};
        args.grad = map_of<const T>(given);
        tables.list(args.outs, maps_of<T>(outs));
        args.attention = small.forward.attention;
        args.shift = small.shift;
        args.walk = walk_over<kInFlight>(first, V);
        args.channels = int(C);
        args.branches = int(B);
        context.launch(error_context(kOp, first), spread_kernel<T, V, kCount, kInFlight>,
                       blocks_of(args.walk, n), kThreads, 0, args);
      });
    });
  }
  std::vector<Tensor> gradients;
  for (int64_t b = 0; b < B; ++b) gradients.push_back(laid_out_like(outs[b], branches[b]));
  gradients.push_back(products(kOp, context, before_grad, 0, means, reduce_weight));
  if (reduce_bias) gradients.push_back(gradient_of(*reduce_bias, summed(before_grad, {0})));
  if (slope)
    gradients.push_back(gradient_of(
        *slope, slope->numel() == 1 ? summed(slope_grad, {0, 1}) : summed(slope_grad, {0})));
  for (int64_t b = 0; b < B; ++b)
    gradients.push_back(products(kOp, context, logit_grad, b * C, after, select_weights[b]));
  for (int64_t b = 0; b < int64_t(select_biases.size()); ++b) {
    Tensor whole = logit_grad;
    gradients.push_back(
        gradient_of(select_biases[b], summed(torch::stable::narrow(whole, 1, b * C, C), {0})));
  }
  return gradients;
}

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cuda, MIRNET_DISPATCH, m) {
  m.impl("skff_select", TORCH_BOX(&skff_select));
  m.impl("skff_select_backward", TORCH_BOX(&skff_select_backward));
}

}  // namespace mirnet_fast::cuda
