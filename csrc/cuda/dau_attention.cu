// dau_attention: spatial gate and channel gate on r, the 1x1 convolution of both, plus x. Floor: 4
// maps.
//
// stats_kernel reads r once (dau_attention.cuh). gate_kernel adds its partial sums, does the small
// layers and writes each image's fuse weight with the channel gate already in its second half: a
// product's operand that needs nothing more. apply_kernel does the k x k gate on the two small maps
// from shared memory, multiplies r by both halves at once, and adds bias and x, whose tile was
// copied before anything else. Tile: 8 x 16 pixels by up to 128 outputs (64 in float32), each
// warp's part 32 by 32 of both halves; of r and the weights kDeep channels at a time are in shared
// memory, twice.
#include "dau_attention.cuh"
#include "dau_attention_backward.cuh"

namespace mirnet_fast::cuda {

namespace dau {

// ---- channel gate and weights ----------------------------------------------------------------

template <class T>
struct GateArgs {
  const float* sums;  // (N, programs, C)
  const T *squeeze, *squeeze_bias, *excite, *excite_bias, *fuse;
  float* gate;  // (N, C)
  T* weights;   // (N, C, 2 C)
  int channels, squeezed, programs, parts;
  float pixels;
};

// Each of an image's `parts` blocks does all of the small layers, and some of the weight's rows.
template <class T>
__global__ void __launch_bounds__(kSmallThreads, 1) gate_kernel(GateArgs<T> a) {
  const int C = a.channels, n = blockIdx.x / a.parts, part = blockIdx.x % a.parts;
  float* const room = reinterpret_cast<float*>(shared_memory());  // (kSumsRoom), (C), (C), (d)
  float* const means = room + kSumsRoom;
  float* const gate = means + C;
  float* const hidden = gate + C;
  add_programs(a.sums + int64_t(n) * a.programs * C, a.programs, C, C, room, means, 1 / a.pixels);
  small_layer(a.squeeze, a.squeeze_bias, means, a.squeezed, C, hidden);
  for (int d = threadIdx.x; d < a.squeezed; d += kSmallThreads)
    hidden[d] = hidden[d] <= 0 ? 0 : hidden[d];
  sync_threads();
  small_layer(a.excite, a.excite_bias, hidden, C, a.squeezed, gate);
  for (int c = threadIdx.x; c < C; c += kSmallThreads) {
    gate[c] = sigmoid(gate[c]);
    if (part == 0) a.gate[int64_t(n) * C + c] = gate[c];
  }
  sync_threads();
  for (int o = part; o < C; o += a.parts)
    for (int c = threadIdx.x; c < 2 * C; c += kSmallThreads) {
      const int64_t at = int64_t(o) * 2 * C + c;
      const T weight = a.fuse[at];
      a.weights[int64_t(n) * C * 2 * C + at] =
          c < C ? weight : rounded<T>(gate[c - C] * to_float(weight));
    }
}

// ---- both gates, the product and the residual -------------------------------------------------

template <class T>
struct ApplyArgs {
  Map<const T> r, x;  // x.data is null where there is nothing to add
  Map<T> out;
  const float* pooled;
  const T *spatial, *weights, *bias;
  int channels, taps, height, width;
};

constexpr int kWarpsDown = 4, kWarpChannels = 32;
template <int N>
constexpr int kThreads = 32 * kWarpsDown * N / kWarpChannels;

template <class T, int N>
struct ApplyShared {
  static constexpr int kLd = kRow<T, kDeep<T>>;
  static constexpr int kStage = (kPixels + 2 * N) * kLd;
  static constexpr int kOutputs = kPixels * kRow<T, N>;
  static size_t bytes(int taps) {
    return (2 * kStage + kOutputs) * sizeof(T) +
           (kPixels + gate_room(taps, kThreads<N>)) * sizeof(float);
  }
};

template <class T, int N, bool Aligned>
__global__ void __launch_bounds__(kThreads<N>, 512 / kThreads<N>) apply_kernel(ApplyArgs<T> a) {
  constexpr int K = kDeep<T>, kLd = kRow<T, K>, kAll = kThreads<N>;
  using Shared = ApplyShared<T, N>;
  T* const staged = reinterpret_cast<T*>(shared_memory());
  T* const outputs = staged + 2 * Shared::kStage;
  float* const gate = reinterpret_cast<float*>(outputs + Shared::kOutputs);
  const int C = a.channels, parts = (C + N - 1) / N;
  const int first = blockIdx.x % parts * N;
  const PixelTile<kDown, kAcross> tile(blockIdx.x / parts, a.height, a.width);
  const int warp_m = warp() % kWarpsDown * 32, warp_n = warp() / kWarpsDown * kWarpChannels;
  const auto pixels = [&](int buffer) { return staged + buffer * Shared::kStage; };
  const auto weights = [&](int buffer) { return pixels(buffer) + kPixels * kLd; };
  const auto row_of = [&](const auto& map) {
    return [&tile, &map](int i) {
      return tile.inside(i) ? map.at(tile.n, tile.row(i), tile.column(i)) : nullptr;
    };
  };

  if (a.x.data) {
    copy_rows<T, N, Aligned>(outputs, kPixels, kAll, first, C, row_of(a.x));
    commit_copies();
  }
  WarpTile<T, 2, kWarpChannels / 8> left, right;
  left.clear();
  right.clear();
  pipelined((C + K - 1) / K,
            [&](int chunk, int buffer) {
              copy_rows<T, K, Aligned>(pixels(buffer), kPixels, kAll, chunk * K, C, row_of(a.r));
              copy_rows<T, K, Aligned>(
                  weights(buffer), 2 * N, kAll, chunk * K, C, [&](int i) -> const T* {
                    const int o = first + i % N;
                    return o < C ? a.weights + ((int64_t(tile.n) * C + o) * 2 + i / N) * C
                                 : nullptr;
                  });
            },
            [](int, int) {},
            [&](int buffer) {
              left.template multiply<K>(pixels(buffer) + warp_m * kLd, kLd,
                                        weights(buffer) + warp_n * kLd, kLd);
              right.template multiply<K>(pixels(buffer) + warp_m * kLd, kLd,
                                         weights(buffer) + (N + warp_n) * kLd, kLd);
            },
            [&] {
              spatial_gate(a.pooled + int64_t(tile.n) * 2 * a.height * a.width, a.spatial, a.taps,
                           tile, kAll, gate + kPixels, gate);
            });

  // The spatial gate is a factor of the first half's sums.
  left.each_row([&](int row) {
    const float share = gate[warp_m + row];
    return [share](int, float& s0, float& s1) {
      s0 *= share;
      s1 *= share;
    };
  });
  right.add(left);
  right.each_row([&](int row) {
    T* const to = outputs + (warp_m + row) * kRow<T, N>;
    return [=, &a](int column, float s0, float s1) {
      const float sums[2] = {s0, s1};
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int local = warp_n + column + j, o = first + local;
        float total = sums[j];
        if (a.bias && o < a.channels) total += to_float(a.bias[o]);
        if (a.x.data) total += to_float(to[local]);
        to[local] = rounded<T>(total);
      }
    };
  });
  sync_threads();
  write_rows<T, N, Aligned>(outputs, kPixels, kAll, first, C, row_of(a.out));
}

template <class T>
Tensor channel_gate(const LaunchContext& context, const Tensor& r, const Tensor& sums,
                    const DenseWeights& w, int64_t squeezed, const Tensor& weights) {
  const int64_t n = r.size(0), channels = r.size(1), parts = ceil_div(channels, 16);
  const Tensor gate = scratch(r, {n, channels});
  const GateArgs<T> args{static_cast<const float*>(sums.data_ptr()),
                         w.squeeze.data<T>(),
                         w.squeeze_bias.data<T>(),
                         w.excite.data<T>(),
                         w.excite_bias.data<T>(),
                         w.fuse.data<T>(),
                         static_cast<float*>(gate.data_ptr()),
                         static_cast<T*>(weights.data_ptr()),
                         int(channels),
                         int(squeezed),
                         int(sums.size(1)),
                         int(parts),
                         float(r.size(2) * r.size(3))};
  context.launch(error_context(kOp, r), gate_kernel<T>, n * parts, kSmallThreads,
                 (kSumsRoom + 2 * channels + squeezed) * sizeof(float), args);
  return gate;
}

}  // namespace dau

Tensor dau_attention(Tensor r, OptionalTensor x, Tensor spatial_weight, Tensor squeeze_weight,
                     OptionalTensor squeeze_bias, Tensor excite_weight, OptionalTensor excite_bias,
                     Tensor fuse_weight, OptionalTensor fuse_bias) {
  using namespace dau;
  const DauWeights given{spatial_weight, squeeze_weight, squeeze_bias, excite_weight,
                         excite_bias,    fuse_weight,    fuse_bias};
  check_dau(kOp, r, given);
  if (x) check(kOp, "x", *x, shape_of(r), r);
  const LaunchContext context(r);
  const Tensor out = map_out(r, shape_of(r));
  if (out.numel() == 0) return laid_out_like(out, r);
  const Tensor inner = map_in(r);
  OptionalTensor added;
  if (x) added = map_in(*x);
  const DenseWeights w(given);
  const int64_t n = r.size(0), channels = r.size(1);
  const Tensor weights = scratch(r, {n, channels, 2 * channels}, r.scalar_type());
  const bool aligned = wide({&inner, &out}) && (!x || wide({&*added}));
  by_dtype(kOp, r, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Statistics seen = statistics<T>(context, inner, false);
    channel_gate<T>(context, r, seen.sums, w, squeeze_weight.size(0), weights);
    const ApplyArgs<T> args{map_of<const T>(inner),
                            x ? map_of<const T>(*added) : Map<const T>{},
                            map_of<T>(out),
                            static_cast<const float*>(seen.pooled.data_ptr()),
                            w.spatial.data<T>(),
                            static_cast<const T*>(weights.data_ptr()),
                            w.fuse_bias.data<T>(),
                            int(channels),
                            int(spatial_weight.size(2)),
                            int(r.size(2)),
                            int(r.size(3))};
    // The halo of a large window takes more than the wide tile leaves.
    const bool many = channels > 64 && ApplyShared<T, 128>::bytes(args.taps) <= kSharedLimit;
    by_outputs<T, 64>(aligned, many, [&](auto width, auto is_aligned) {
      constexpr int N = decltype(width)::value;
      const int64_t blocks =
          tiles_of<kDown, kAcross>(n, r.size(2), r.size(3)) * ceil_div(channels, N);
      context.launch(error_context(kOp, r), apply_kernel<T, N, decltype(is_aligned)::value>, blocks,
                     kThreads<N>, ApplyShared<T, N>::bytes(args.taps), args);
    });
  });
  return laid_out_like(out, r);
}

std::vector<Tensor> dau_attention_backward(Tensor grad, Tensor r, Tensor spatial_weight,
                                           Tensor squeeze_weight, OptionalTensor squeeze_bias,
                                           Tensor excite_weight, OptionalTensor excite_bias,
                                           Tensor fuse_weight, OptionalTensor fuse_bias) {
  using namespace dau;
  const DauWeights given{spatial_weight, squeeze_weight, squeeze_bias, excite_weight,
                         excite_bias,    fuse_weight,    fuse_bias};
  check_dau(kOp, r, given);
  check(kOp, "grad", grad, shape_of(r), r);
  const LaunchContext context(r);
  const Tensor inner = map_in(r), out_grad = map_in(grad), r_grad = map_out(r, shape_of(r));
  const int64_t n = r.size(0), C = r.size(1), H = r.size(2), W = r.size(3);
  const int64_t D = squeeze_weight.size(0), taps = spatial_weight.size(2);
  const auto doubles = [&](int64_t columns) {
    return scratch(r, {n, columns}, ScalarType::Double);
  };
  const Tensor means = doubles(C), logit_grad = doubles(C), hidden = doubles(D);
  const Tensor before_grad = doubles(D);
  // With no images the sums over nothing are zeros.
  Tensor tap_sums = scratch(r, {0, 2 * taps * taps}), fuse_sums = scratch(r, {0, C, 2 * C});
  if (r.numel() > 0) {
    const DenseWeights w(given);
    const Tensor back = transposed(fuse_weight);
    const Tensor gates = scratch(r, {n, 2, H, W}), pooled_grads = scratch(r, {n, 2, H, W});
    const Tensor shift = scratch(r, {n, C});
    const bool aligned = wide({&inner, &out_grad, &r_grad});
    const auto floats = [](const Tensor& t) { return static_cast<float*>(t.data_ptr()); };
    const auto numbers = [](const Tensor& t) { return static_cast<double*>(t.data_ptr()); };
    by_dtype(kOp, r, [&](auto tag) {
      using T = typename decltype(tag)::type;
      const Statistics seen = statistics<T>(context, inner, true);
      const Tensor gate =
          channel_gate<T>(context, r, seen.sums, w, D, scratch(r, {n, C, 2 * C}, r.scalar_type()));

      const int64_t tiles = tiles_of<kDown, kAcross>(1, H, W);
      const Tensor gate_sums = scratch(r, {n, tiles, C});
      const ApplyBackwardArgs<T> apply{map_of<const T>(out_grad),
                                       map_of<const T>(inner),
                                       map_of<T>(r_grad),
                                       floats(seen.pooled),
                                       floats(gate),
                                       w.spatial.data<T>(),
                                       static_cast<const T*>(back.data_ptr()),
                                       floats(gates),
                                       floats(gate_sums),
                                       int(C),
                                       int(taps),
                                       int(H),
                                       int(W)};
      context.launch(error_context(kOp, r),
                     aligned ? apply_backward_kernel<T, true> : apply_backward_kernel<T, false>,
                     n * tiles, kBackThreads, ApplyBackwardShared<T>::bytes(int(taps)), apply);

      const int64_t fuse_tiles = tiles_of<kFuseDown, kFuseAcross>(1, H, W);
      const int64_t programs = std::max<int64_t>(
          1, std::min({fuse_tiles, kGradientValues / (2 * n * C * C), int64_t(512) / n}));
      fuse_sums = scratch(r, {n * programs, C, 2 * C});
      const FuseArgs<T> fuse{map_of<const T>(out_grad),
                             map_of<const T>(inner),
                             floats(gates),
                             floats(gate),
                             floats(fuse_sums),
                             int(C),
                             int(H),
                             int(W),
                             int(fuse_tiles),
                             int(programs)};
      const int64_t side = ceil_div(C, kFuseSide);
      context.launch(error_context(kOp, r),
                     aligned ? weight_kernel<T, true> : weight_kernel<T, false>,
                     n * programs * side * side, kFuseThreads,
                     size_t(6) * kFusePixels * kRow<T, kFuseSide> * sizeof(T), fuse);

      const SmallMapsArgs small_maps{floats(gates),
                                     floats(seen.pooled),
                                     int(n),
                                     int(H),
                                     int(W),
                                     int(taps),
                                     int(std::min(n * H, std::max(kTapPrograms, n * H * W >> 17)))};
      tap_sums = scratch(r, {small_maps.programs, 2 * taps * taps});
      context.launch(error_context(kOp, r), taps_kernel<T>,
                     small_maps.programs * 2 * taps * ceil_div(taps, kTapsAtOnce), kMapThreads,
                     kMapThreads / 32 * kTapsAtOnce * sizeof(float), small_maps, floats(tap_sums));
      const int map_chunks = int(row_blocks(error_context(kOp, r), W, kMapThreads));
      context.launch(error_context(kOp, r), pooled_kernel<T>, n * H * map_chunks, kMapThreads, 0,
                     small_maps, w.spatial.data<T>(), floats(pooled_grads), map_chunks);

      const Tensor few_gate_sums = few_sums(error_context(kOp, r), context, gate_sums);
      const SmallBackwardArgs<T> small{floats(seen.sums),
                                       floats(few_gate_sums),
                                       w.squeeze.data<T>(),
                                       w.squeeze_bias.data<T>(),
                                       w.excite.data<T>(),
                                       w.excite_bias.data<T>(),
                                       numbers(means),
                                       numbers(logit_grad),
                                       numbers(hidden),
                                       numbers(before_grad),
                                       floats(shift),
                                       int(C),
                                       int(D),
                                       int(seen.sums.size(1)),
                                       int(few_gate_sums.size(1)),
                                       double(H * W)};
      context.launch(error_context(kOp, r), small_kernel<T>, n, kSmallThreads,
                     (kSumsRoom + C) * sizeof(double), small);

      const auto spread = [&](auto width, auto kernel) {
        const int chunks =
            int(row_blocks(error_context(kOp, r), W * (C / decltype(width)::value), kMapThreads));
        const SpreadArgs<T> args{map_of<T>(r_grad),
                                 floats(pooled_grads),
                                 floats(shift),
                                 static_cast<const int*>(seen.index->data_ptr()),
                                 int(C),
                                 int(H),
                                 int(W),
                                 chunks};
        context.launch(error_context(kOp, r), kernel, n * H * chunks, kMapThreads, 0, args);
      };
      if (wide({&r_grad}))
        spread(Width<kWide<T>>{}, spread_kernel<T, kWide<T>>);
      else
        spread(Width<1>{}, spread_kernel<T, 1>);
    });
  }
  std::vector<Tensor> gradients{laid_out_like(r_grad, r),
                                gradient_of(spatial_weight, summed(tap_sums, {0})),
                                products(kOp, context, before_grad, 0, means, squeeze_weight)};
  if (squeeze_bias) gradients.push_back(gradient_of(*squeeze_bias, summed(before_grad, {0})));
  gradients.push_back(products(kOp, context, logit_grad, 0, hidden, excite_weight));
  if (excite_bias) gradients.push_back(gradient_of(*excite_bias, summed(logit_grad, {0})));
  gradients.push_back(gradient_of(fuse_weight, summed(fuse_sums, {0}, ScalarType::Float)));
  if (fuse_bias)
    gradients.push_back(gradient_of(*fuse_bias, summed(grad, {0, 2, 3}, ScalarType::Float)));
  return gradients;
}

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cuda, MIRNET_DISPATCH, m) {
  m.impl("dau_attention", TORCH_BOX(&dau_attention));
  m.impl("dau_attention_backward", TORCH_BOX(&dau_attention_backward));
}

}  // namespace mirnet_fast::cuda
