// residual_up_tail: PReLU and 1x1 convolution of the large map, plus the bilinear branch, in one
// pass. Floor: 4 + 1 + 2 maps of the small one's size.
//
// Both steps of the bilinear branch are linear, so a block first projects the small pixels that its
// outputs look at, into shared memory, then multiplies its large pixels and adds the enlarged
// projection where the sums leave the registers. Tile: 8 x 16 outputs, for which 6 x 10 small
// pixels are projected, 60 rows of a product of 64 (6 x 10 for 4 x 8 of its own: twice the work of
// a branch that is a quarter of the other); all outputs up to 128 channels, 64 in float32.
#include "product.cuh"
#include "resample.cuh"

namespace mirnet_fast::cuda {

namespace {

constexpr const char* kOp = "residual_up_tail";
constexpr int kDown = 8, kAcross = 16, kPixels = kDown * kAcross;
constexpr int kSmallDown = kDown / 2 + 2, kSmallAcross = kAcross / 2 + 2, kSmallRows = 64;
// A warp's part is 32 outputs by 32 channels, of the projection 16 by 32.
constexpr int kWarpsDown = 4, kWarpChannels = 32;
template <int N>
constexpr int kThreads = 32 * kWarpsDown * N / kWarpChannels;

template <class T>
struct UpArgs {
  Map<const T> top, bottom;
  Map<T> out;
  const T *slope, *top_weight, *top_bias, *bottom_weight, *bottom_bias;
  int channels, bottom_channels, outputs, slopes, height, width;
};

template <class T, int N>
struct UpShared {
  static constexpr int kStage = (kPixels + N) * kRow<T, kDeep<T>>;
  static constexpr int kOutputs = kPixels * kRow<T, N>;
  static constexpr int kFirst = 2 * kStage > kOutputs ? 2 * kStage : kOutputs;
  static constexpr int kProjected = N + 4;  // floats of a projected pixel
  static constexpr size_t kBytes = kFirst * sizeof(T) + kSmallRows * kProjected * sizeof(float);
};

template <class T, int N, bool Aligned>
__global__ void __launch_bounds__(kThreads<N>, 512 / kThreads<N>) up_kernel(UpArgs<T> a) {
  constexpr int K = kDeep<T>, kLd = kRow<T, K>;
  using Shared = UpShared<T, N>;
  T* const staged = reinterpret_cast<T*>(shared_memory());
  float* const projected = reinterpret_cast<float*>(staged + Shared::kFirst);
  const int parts = (a.outputs + N - 1) / N;
  const int first = blockIdx.x % parts * N;
  const PixelTile<kDown, kAcross> tile(blockIdx.x / parts, a.height, a.width);
  const int small_h = tile.h / 2 - 1, small_w = tile.w / 2 - 1;
  const int last_h = a.height / 2 - 1, last_w = a.width / 2 - 1;
  const int warp_m = warp() % kWarpsDown, warp_n = warp() / kWarpsDown * kWarpChannels;
  const auto pixels = [&](int buffer) { return staged + buffer * Shared::kStage; };
  const auto weights = [&](int buffer) { return pixels(buffer) + kPixels * kLd; };
  const auto weight_row = [&](const T* weight, int channels) {
    return [=](int d) -> const T* {
      return first + d < a.outputs ? weight + int64_t(first + d) * channels : nullptr;
    };
  };

  WarpTile<T, 1, kWarpChannels / 8> small;
  small.clear();
  pipelined(
      (a.bottom_channels + K - 1) / K,
      [&](int chunk, int buffer) {
        copy_rows<T, K, Aligned>(pixels(buffer), kSmallRows, kThreads<N>, chunk * K,
                                 a.bottom_channels, [&](int i) -> const T* {
                                   if (i >= kSmallDown * kSmallAcross) return nullptr;
                                   const int h = min(max(small_h + i / kSmallAcross, 0), last_h);
                                   const int w = min(max(small_w + i % kSmallAcross, 0), last_w);
                                   return a.bottom.at(tile.n, h, w);
                                 });
        copy_rows<T, K, Aligned>(weights(buffer), N, kThreads<N>, chunk * K, a.bottom_channels,
                                 weight_row(a.bottom_weight, a.bottom_channels));
      },
      [](int, int) {},
      [&](int buffer) {
        small.template multiply<K>(pixels(buffer) + 16 * warp_m * kLd, kLd,
                                   weights(buffer) + warp_n * kLd, kLd);
      });
  small.each_pair([&](int row, int column, float s0, float s1) {
    float* to = projected + (16 * warp_m + row) * Shared::kProjected + warp_n + column;
    to[0] = s0;
    to[1] = s1;
  });

  WarpTile<T, 2, kWarpChannels / 8> large;
  large.clear();
  const auto top_row = [&](int i) -> const T* {
    return tile.inside(i) ? a.top.at(tile.n, tile.row(i), tile.column(i)) : nullptr;
  };
  pipelined((a.channels + K - 1) / K,
            [&](int chunk, int buffer) {
              copy_rows<T, K, Aligned>(pixels(buffer), kPixels, kThreads<N>, chunk * K, a.channels,
                                       top_row);
              copy_rows<T, K, Aligned>(weights(buffer), N, kThreads<N>, chunk * K, a.channels,
                                       weight_row(a.top_weight, a.channels));
            },
            [&](int chunk, int buffer) {
              prelu_rows<T, K>(pixels(buffer), kPixels, kThreads<N>, chunk * K, a.channels, a.slope,
                               a.slopes);
            },
            [&](int buffer) {
              large.template multiply<K>(pixels(buffer) + 32 * warp_m * kLd, kLd,
                                         weights(buffer) + warp_n * kLd, kLd);
            });

  large.each_row([&](int row) {
    const int pixel = 32 * warp_m + row;
    const BilinearAxis rows{last_h + 1}, cols{last_w + 1};
    const int h = min(tile.row(pixel), a.height - 1), w = min(tile.column(pixel), a.width - 1);
    const auto at = [&](int y, int x) {
      return projected + ((y - small_h) * kSmallAcross + x - small_w) * Shared::kProjected;
    };
    const float* const near_near = at(rows.near(h), cols.near(w));
    const float* const near_far = at(rows.near(h), cols.far(w));
    const float* const far_near = at(rows.far(h), cols.near(w));
    const float* const far_far = at(rows.far(h), cols.far(w));
    return [=](int column, float s0, float s1) {
      const int local = warp_n + column;
      const float sums[2] = {s0, s1};
      T* to = staged + pixel * kRow<T, N> + local;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float enlarged = BilinearAxis::kNear * (BilinearAxis::kNear * near_near[local + j] +
                                                      BilinearAxis::kFar * near_far[local + j]) +
                               BilinearAxis::kFar * (BilinearAxis::kNear * far_near[local + j] +
                                                     BilinearAxis::kFar * far_far[local + j]);
        to[j] = rounded<T>(sums[j] + enlarged +
                           both_biases(a.top_bias, a.bottom_bias, first + local + j, a.outputs));
      }
    };
  });
  sync_threads();
  write_rows<T, N, Aligned>(staged, kPixels, kThreads<N>, first, a.outputs, [&](int i) -> T* {
    return tile.inside(i) ? a.out.at(tile.n, tile.row(i), tile.column(i)) : nullptr;
  });
}

}  // namespace

Tensor residual_up_tail(Tensor top, Tensor bottom, Tensor slope, Tensor top_weight,
                        OptionalTensor top_bias, Tensor bottom_weight, OptionalTensor bottom_bias) {
  const TailWeights given{slope, top_weight, top_bias, bottom_weight, bottom_bias};
  check_up_tail(kOp, top, bottom, given);
  const LaunchContext context(top);
  const Tensor large = map_in(top), small = map_in(bottom);
  const DenseTail w(given);
  const int64_t outputs = top_weight.size(0);
  const Tensor out = map_out(top, {top.size(0), outputs, top.size(2), top.size(3)});
  if (out.numel() == 0) return laid_out_like(out, top);
  const bool aligned = wide({&large, &small, &out}) && w.aligned();
  by_dtype(kOp, top, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const UpArgs<T> args{
        map_of<const T>(large), map_of<const T>(small), map_of<T>(out),     w.slope.data<T>(),
        w.top.data<T>(),        w.top_bias.data<T>(),   w.bottom.data<T>(), w.bottom_bias.data<T>(),
        int(top.size(1)),       int(bottom.size(1)),    int(outputs),       int(slope.numel()),
        int(top.size(2)),       int(top.size(3))};
    by_outputs<T, 64>(aligned, outputs > 64, [&](auto width, auto is_aligned) {
      constexpr int N = decltype(width)::value;
      const int64_t blocks =
          tiles_of<kDown, kAcross>(top.size(0), top.size(2), top.size(3)) * ceil_div(outputs, N);
      context.launch(error_context(kOp, top), up_kernel<T, N, decltype(is_aligned)::value>, blocks,
                     kThreads<N>, UpShared<T, N>::kBytes, args);
    });
  });
  return laid_out_like(out, top);
}

std::vector<Tensor> residual_up_tail_backward(Tensor grad, Tensor top, Tensor bottom, Tensor slope,
                                              Tensor top_weight, OptionalTensor top_bias,
                                              Tensor bottom_weight, OptionalTensor bottom_bias) {
  const TailWeights given{slope, top_weight, top_bias, bottom_weight, bottom_bias};
  check_up_tail(kOp, top, bottom, given);
  check(kOp, "grad", grad, {top.size(0), top_weight.size(0), top.size(2), top.size(3)}, top);
  const LaunchContext context(top);
  const Tensor large = map_in(top), small = map_in(bottom), out_grad = map_in(grad);
  const DenseTail w(given);
  const BilinearAxis rows{int(bottom.size(2))}, cols{int(bottom.size(3))};
  const Tensor reduced =
      map_out(bottom, {bottom.size(0), grad.size(1), bottom.size(2), bottom.size(3)});
  std::vector<Tensor> gradients;
  by_dtype(kOp, top, [&](auto tag) {
    using T = typename decltype(tag)::type;
    resample<true, T, T>(kOp, context, out_grad, reduced, rows, cols);
    const auto [top_grad, slope_sums] = project_through<T, true>(
        kOp, context, out_grad, transposed(top_weight), &large, &w.slope.tensor());
    const Tensor bottom_grad = project<T>(kOp, context, reduced, transposed(bottom_weight));
    gradients = tail_gradients(laid_out_like(top_grad, top), laid_out_like(bottom_grad, bottom),
                               given, *slope_sums, grad,
                               weight_gradient<T>(kOp, context, out_grad, large, &w.slope.tensor()),
                               weight_gradient<T>(kOp, context, reduced, small));
  });
  return gradients;
}

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cuda, MIRNET_DISPATCH, m) {
  m.impl("residual_up_tail", TORCH_BOX(&residual_up_tail));
  m.impl("residual_up_tail_backward", TORCH_BOX(&residual_up_tail_backward));
}

}  // namespace mirnet_fast::cuda
