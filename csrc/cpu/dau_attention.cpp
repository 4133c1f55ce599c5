// dau_attention on the CPU: the loops of simd/dau_attention.cpp, and between them the channel gate,
// which is a few thousand multiplications an image, in double.
#include <cmath>

#include "../common/dau_arguments.h"
#include "matrix_unit.h"
#include "panels.h"
#include "run.h"
#include "sums.h"
#include "tensors.h"

namespace mirnet_fast::cpu {

namespace {

constexpr const char* kOp = "dau_attention";

using Doubles = Vector<double>;

// sigmoid(excite relu(squeeze pooled)) for every image, with what the backward needs.
struct ChannelGate {
  int64_t channels, squeezed;
  Doubles squeeze, squeeze_bias, excite, excite_bias;
  Doubles pooled, before, gate;  // (N, C), (N, d) before the ReLU, (N, C)

  template <class T>
  static ChannelGate of(const DauWeights& w, const Doubles& sums, const Chunks& chunks,
                        const Map& r, int64_t pixels) {
    ChannelGate g{r.c,
                  w.squeeze.size(0),
                  values<T, double>(w.squeeze),
                  {},
                  values<T, double>(w.excite),
                  {},
                  Doubles(r.n * r.c),
                  {},
                  Doubles(r.n * r.c)};
    if (w.squeeze_bias) g.squeeze_bias = values<T, double>(*w.squeeze_bias);
    if (w.excite_bias) g.excite_bias = values<T, double>(*w.excite_bias);
    g.before.resize(r.n * g.squeezed);
    for (int64_t chunk = 0; chunk < r.n * chunks.per_image; ++chunk)
      for (int64_t c = 0; c < r.c; ++c)
        g.pooled[chunk / chunks.per_image * r.c + c] += sums[chunk * r.c + c];
    for (double& value : g.pooled) value /= double(pixels);
    for (int64_t n = 0; n < r.n; ++n) g.excited(n);
    return g;
  }

  static double relu(double x) { return x <= 0 ? 0 : x; }

  void excited(int64_t n) {
    for (int64_t k = 0; k < squeezed; ++k) {
      double sum = squeeze_bias.empty() ? 0 : squeeze_bias[k];
      for (int64_t c = 0; c < channels; ++c)
        sum += squeeze[k * channels + c] * pooled[n * channels + c];
      before[n * squeezed + k] = sum;
    }
    for (int64_t c = 0; c < channels; ++c) {
      double sum = excite_bias.empty() ? 0 : excite_bias[c];
      for (int64_t k = 0; k < squeezed; ++k)
        sum += excite[c * squeezed + k] * relu(before[n * squeezed + k]);
      gate[n * channels + c] = 1 / (1 + std::exp(-sum));
    }
  }

  struct Gradients {
    Doubles squeeze, squeeze_bias, excite, excite_bias, pooled;
  };

  Gradients backward(const Doubles& gate_grad) const {
    Gradients g{Doubles(squeeze.size()), Doubles(squeezed), Doubles(excite.size()),
                Doubles(channels), Doubles(pooled.size())};
    for (size_t n = 0; n < pooled.size() / channels; ++n) {
      Doubles hidden_grad(squeezed);
      for (int64_t c = 0; c < channels; ++c) {
        const double value = gate[n * channels + c];
        const double logit_grad = gate_grad[n * channels + c] * value * (1 - value);
        g.excite_bias[c] += logit_grad;
        for (int64_t k = 0; k < squeezed; ++k) {
          g.excite[c * squeezed + k] += logit_grad * relu(before[n * squeezed + k]);
          hidden_grad[k] += logit_grad * excite[c * squeezed + k];
        }
      }
      for (int64_t k = 0; k < squeezed; ++k) {
        const double before_grad = before[n * squeezed + k] <= 0 ? 0 : hidden_grad[k];
        g.squeeze_bias[k] += before_grad;
        for (int64_t c = 0; c < channels; ++c) {
          g.squeeze[k * channels + c] += before_grad * pooled[n * channels + c];
          g.pooled[n * channels + c] += before_grad * squeeze[k * channels + c];
        }
      }
    }
    return g;
  }
};

// The small maps of the spatial gate, and the statistics that lead to both gates.
template <class T>
struct Gates {
  using A = Acc<T>;
  Vector<A> spatial_weight, pooled, spatial_gate;
  Vector<int32_t> argmax;
  ChannelGate channel;

  Gates(DauArgs& args, const DauWeights& w, bool for_backward)
      : Gates(args.r.n * 2 * args.r.h * args.r.w, args, w) {
    const Map& r = args.r;
    if (for_backward) argmax.resize(spatial_gate.size());
    args.pooled = pooled.data();
    args.given = {pooled.data(), r.n, 2, r.h, r.w, 2 * r.h * r.w, r.h * r.w, r.w, 1};
    args.argmax = for_backward ? argmax.data() : nullptr;
    args.chunks = chunks_of(r, kChunkPixels);
    const int64_t chunks = r.n * args.chunks.per_image;
    Doubles sums(chunks * r.c);
    args.sums = sums.data();
    run(MIRNET_KERNEL(dau_stats, T), args, chunks, args.chunks.rows * r.w * r.c);
    channel = ChannelGate::of<T>(w, sums, args.chunks, r, r.h * r.w);
    run(MIRNET_KERNEL(dau_gate, T), args, r.n * r.h, r.w * 2 * args.taps * args.taps);
  }

  // From statistics that a convolution left: (N, 2, H', W) of A, whose row first_row is r's first,
  // and (N, C) of double over `pixels` pixels.
  Gates(DauArgs& args, const DauWeights& w, const Tensor& given, const Tensor& given_sums,
        int64_t first_row, int64_t pixels)
      : Gates(0, args, w) {
    const Map& r = args.r;
    args.given = map_of(given);
    args.first_row = first_row;
    const double* first = static_cast<const double*>(given_sums.data_ptr());
    channel = ChannelGate::of<T>(w, Doubles(first, first + r.n * r.c), Chunks{1, r.h}, r, pixels);
    run(MIRNET_KERNEL(dau_gate, T), args, r.n * r.h, r.w * 2 * args.taps * args.taps);
  }

 private:
  Gates(int64_t pooled_values, DauArgs& args, const DauWeights& w)
      : spatial_weight(values<T>(w.spatial)),
        pooled(pooled_values),
        spatial_gate(args.r.n * args.r.h * args.r.w) {
    args.taps = w.spatial.size(2);
    args.spatial_weight = spatial_weight.data();
    args.spatial_gate = spatial_gate.data();
  }
};

// Both halves of the fuse weight as dau_apply reads them: the one of the channel branch for every
// image, times its gates.
template <class T>
struct FusePanels {
  using A = Acc<T>;
  Block<A> spatial, channel;
  int64_t channel_stride;  // of values as they are packed

  FusePanels(const MatrixKernels* kernels, const Tensor& weight, const Doubles& gates, int64_t N) {
    const int64_t C = weight.size(0);
    const Vector<A> gate(gates.begin(), gates.end());
    if constexpr (std::is_same_v<T, bf16>)
      if (kernels != nullptr) {
        const Tensor ordered = torch::stable::contiguous(weight);
        const auto* values = static_cast<const bf16*>(ordered.data_ptr());
        const MatrixWeight first{values, C, C, 2 * C}, second{values + C, C, C, 2 * C};
        const int64_t count = panel_floats(*kernels, first);
        make(N, count);
        panels_to(spatial.get(), *kernels, first);
        for (int64_t n = 0; n < N; ++n)
          panels_to(channel.get() + n * count, *kernels, second, gate.data() + n * C);
        channel_stride = 2 * count;
        return;
      }
    const Ordered<T> values(weight);
    make(N, packed_count<A>(C, C));
    pack_to(spatial.get(), values.data(), 2 * C, 1, C, C);
    for (int64_t n = 0; n < N; ++n)
      pack_to(channel.get() + n * channel_stride, values.data() + C, 2 * C, 1, C, C,
              gate.data() + n * C);
  }

 private:
  void make(int64_t images, int64_t count) {
    spatial = Block<A>(count);
    channel = Block<A>(images * count);
    channel_stride = count;
  }
};

}  // namespace

// out may be r or x: a pixel is read before it is written, and the gates are known before the
// first. pooled and sums are those of conv3x3_into. r may be rows of a map: pooled then has the
// rows around them too, of which first_row is r's first, and sums are over `pixels` pixels (0:
// those of r). out_sums: (N, C), for the sums of out over its pixels.
void dau_attention_into(Tensor out, Tensor r, OptionalTensor x, Tensor spatial_weight,
                        Tensor squeeze_weight, OptionalTensor squeeze_bias, Tensor excite_weight,
                        OptionalTensor excite_bias, Tensor fuse_weight, OptionalTensor fuse_bias,
                        OptionalTensor pooled, OptionalTensor sums, OptionalTensor out_sums,
                        int64_t first_row, int64_t pixels) {
  const DauWeights weights{spatial_weight, squeeze_weight, squeeze_bias, excite_weight,
                           excite_bias,    fuse_weight,    fuse_bias};
  check_dau(kOp, r, weights);
  if (x) check(kOp, "x", *x, shape_of(r), r);
  check(kOp, "out", out, shape_of(r), r);
  if (out_sums) check_sums(kOp, "out_sums", *out_sums, r.size(0), r.size(1));
  by_dtype(kOp, r, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Acc<T>;
    DauArgs args{};
    args.r = map_of(r);
    if (x) args.x = map_of(*x);
    args.out = map_of(out);
    const int64_t C = args.r.c;
    check_statistics(kOp, r, C, pooled, sums, true, first_row);
    MIRNET_CHECK(pixels == 0 || (pixels > 0 && pooled), kOp,
                 ": pixels must be those of the sums, and 0 without them; got ", pixels);
    const Gates<T> gates = pooled ? Gates<T>(args, weights, *pooled, *sums, first_row,
                                             pixels == 0 ? args.r.h * args.r.w : pixels)
                                  : Gates<T>(args, weights, false);

    const MatrixKernels* kernels = matrix_for(r, x ? *x : r, out);
    const FusePanels<T> panels(kernels, fuse_weight, gates.channel.gate, args.r.n);
    args.packed_spatial = panels.spatial.get();
    args.packed_channel = panels.channel.get();
    args.packed_channel_stride = panels.channel_stride;
    const Vector<A> bias = fuse_bias ? values<T>(*fuse_bias) : Vector<A>();
    args.bias = fuse_bias ? bias.data() : nullptr;
    GroupedSums grouped(out_sums, args.r.n, args.r.h, C);
    args.out_sums = grouped.parts();
    run(kernels ? kernels->dau_apply : MIRNET_KERNEL(dau_apply, T), args, args.r.n * args.r.h,
        args.r.w * C);
    grouped.finish();
  });
}

Tensor dau_attention(Tensor r, OptionalTensor x, Tensor spatial_weight, Tensor squeeze_weight,
                     OptionalTensor squeeze_bias, Tensor excite_weight, OptionalTensor excite_bias,
                     Tensor fuse_weight, OptionalTensor fuse_bias) {
  check_map(kOp, "r", r);
  Tensor out = empty_like(r, shape_of(r));
  dau_attention_into(out, r, x, spatial_weight, squeeze_weight, squeeze_bias, excite_weight,
                     excite_bias, fuse_weight, fuse_bias, std::nullopt, std::nullopt, std::nullopt,
                     0, 0);
  return out;
}

std::vector<Tensor> dau_attention_backward(Tensor grad, Tensor r, Tensor spatial_weight,
                                           Tensor squeeze_weight, OptionalTensor squeeze_bias,
                                           Tensor excite_weight, OptionalTensor excite_bias,
                                           Tensor fuse_weight, OptionalTensor fuse_bias) {
  const DauWeights weights{spatial_weight, squeeze_weight, squeeze_bias, excite_weight,
                           excite_bias,    fuse_weight,    fuse_bias};
  check_dau(kOp, r, weights);
  check(kOp, "grad", grad, shape_of(r), r);
  std::vector<Tensor> gradients{empty_like(r, shape_of(r))};
  by_dtype(kOp, r, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Acc<T>;
    DauArgs args{};
    args.r = map_of(r);
    args.grad = map_of(grad);
    args.r_grad = map_of(gradients[0]);
    const Map& map = args.r;
    const int64_t C = map.c, ld = MIRNET_KERNEL(padded, A)(C);
    const int64_t row_values = map.w * C;
    const Gates<T> gates(args, weights, true);
    const Chunks pixel_chunks = args.chunks;

    const Ordered<T> fuse(fuse_weight);
    const auto spatial = packed(fuse.data(), 1, 2 * C, C, C);
    const auto channel = packed(fuse.data() + C, 1, 2 * C, C, C);
    const Vector<A> channel_gate(gates.channel.gate.begin(), gates.channel.gate.end());
    Vector<A> spatial_grad(gates.spatial_gate.size());
    args.packed_spatial = spatial.get();
    args.packed_channel = channel.get();
    args.channel_gate = channel_gate.data();
    args.spatial_grad = spatial_grad.data();
    args.chunks = matrix_chunks_of(map);
    const int64_t chunks = map.n * args.chunks.per_image;
    Doubles sums(chunks * 2 * C);
    Vector<A> weight_sums(chunks * 2 * C * ld);
    args.sums = sums.data();
    args.weight_sums = weight_sums.data();
    run(MIRNET_KERNEL(dau_apply_backward, T), args, chunks, args.chunks.rows * row_values);

    Doubles gate_grad(map.n * C), bias_grad(C), fuse_grad(C * 2 * C);
    const int64_t per_image = args.chunks.per_image;
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      for (int64_t c = 0; c < C; ++c) {
        gate_grad[chunk / per_image * C + c] += sums[chunk * 2 * C + c];
        bias_grad[c] += sums[chunk * 2 * C + C + c];
      }
    const int64_t step = 2 * C * ld;
    add_matrices(weight_sums.data(), chunks, step, C, C, ld, fuse_grad.data(), 2 * C,
                 [](int64_t, int64_t) { return 1.0; });
    add_matrices(
        weight_sums.data() + C * ld, chunks, step, C, C, ld, fuse_grad.data() + C, 2 * C,
        [&](int64_t chunk, int64_t k) { return gates.channel.gate[chunk / per_image * C + k]; });
    const ChannelGate::Gradients g = gates.channel.backward(gate_grad);

    args.chunks = pixel_chunks;
    const int64_t small_chunks = map.n * args.chunks.per_image;
    const int64_t taps = 2 * args.taps * args.taps;
    const int64_t chunk_values = args.chunks.rows * map.w * taps;
    run(MIRNET_KERNEL(dau_gate_backward, T), args, small_chunks, chunk_values);
    Vector<A> pooled_grad(gates.pooled.size());
    Doubles tap_sums(small_chunks * taps), spatial_weight_grad(taps);
    args.pooled_grad = pooled_grad.data();
    args.tap_sums = tap_sums.data();
    run(MIRNET_KERNEL(dau_gate_backward, T), args, small_chunks, chunk_values);
    for (int64_t i = 0; i < small_chunks * taps; ++i) spatial_weight_grad[i % taps] += tap_sums[i];

    Vector<A> shift(g.pooled.begin(), g.pooled.end());
    for (A& value : shift) value = A(value / double(map.h * map.w));
    args.shift = shift.data();
    run(MIRNET_KERNEL(dau_stats_backward, T), args, map.n * map.h, row_values);

    gradients.push_back(tensor_of<T>(spatial_weight, spatial_weight_grad));
    gradients.push_back(tensor_of<T>(squeeze_weight, g.squeeze));
    if (squeeze_bias) gradients.push_back(tensor_of<T>(*squeeze_bias, g.squeeze_bias));
    gradients.push_back(tensor_of<T>(excite_weight, g.excite));
    if (excite_bias) gradients.push_back(tensor_of<T>(*excite_bias, g.excite_bias));
    gradients.push_back(tensor_of<T>(fuse_weight, fuse_grad));
    if (fuse_bias) gradients.push_back(tensor_of<T>(*fuse_bias, bias_grad));
  });
  return gradients;
}

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cpu, CPU, m) {
  MIRNET_IMPL(dau_attention);
  MIRNET_IMPL(dau_attention_into);
  MIRNET_IMPL(dau_attention_backward);
}

}  // namespace mirnet_fast::cpu
