// residual_down_tail: PReLU, blur-pool and 1x1 convolution of both halves and their sum, in one
// pass. Floor: 2 + 1/2 maps.
//
// Both halves end in blur and 1x1, so they are one product with twice the channels. Of every kDeep
// channels a block stages the 17 x 17 inputs of its 8 x 8 outputs in shared memory, PReLU applied
// once to each, blurs them from there into an operand, and multiplies: 13 % more inputs than its
// own, which its neighbours find in the cache. All outputs up to 256 channels (128 in float32), for
// another block of them would read and blur again; each warp's part of the sums is 32 by 32.
#include "../common/blur_axis.h"
#include "product.cuh"
#include "resample.cuh"

namespace mirnet_fast::cuda {

namespace {

constexpr const char* kOp = "residual_down_tail";
constexpr int kSide = 8, kPixels = kSide * kSide;  // outputs of a block
constexpr int kInputSide = 2 * kSide + 1, kInputs = kInputSide * kInputSide;
constexpr int kWarpsDown = 2, kWarpChannels = 32;
template <int N>
constexpr int kThreads = 32 * kWarpsDown * N / kWarpChannels;

template <class T>
struct DownArgs {
  Map<const T> maps[2];
  Map<T> out;
  const T* weights[2];
  const T *slope, *biases[2];
  int channels, outputs, slopes, input_height, input_width, height, width;
};

template <class T, int N>
struct DownShared {
  static constexpr int kLd = kRow<T, kDeep<T>>;
  static constexpr int kStage = (kInputs + N) * kLd;
  static constexpr int kOutputs = kPixels * kRow<T, N>;
  static constexpr int kFirst = 2 * kStage > kOutputs ? 2 * kStage : kOutputs;
  static constexpr size_t kBytes = (kFirst + kPixels * kLd) * sizeof(T);
};

// The blurred pixels of a block, 16 bytes of channels at a time, from its inputs; both in shared
// memory.
template <class T>
MIRNET_DEVICE void blur_inputs(const T* inputs, T* blurred, int threads) {
  constexpr int V = kWide<T>, K = kDeep<T>, kLd = kRow<T, K>, kPieces = K / V;
  for (int i = threadIdx.x; i < kPixels * kPieces; i += threads) {
    // Eight threads access shared memory at once: of these inputs, two outputs' that are two apart
    // lie in different banks, neighbours' would not.
    const int number = i / kPieces, c = i % kPieces * V;
    const int pixel = number / 4 * 4 + number % 2 * 2 + number / 2 % 2;
    const T* corner = inputs + (2 * (pixel / kSide) * kInputSide + 2 * (pixel % kSide)) * kLd + c;
    float total[V] = {};
#pragma unroll
    for (int y = 0; y < 3; ++y)
#pragma unroll
      for (int x = 0; x < 3; ++x) {
        float value[V];
        load<V>(value, corner + (y * kInputSide + x) * kLd);
        const float share = (y == 1 ? 0.5f : 0.25f) * (x == 1 ? 0.5f : 0.25f);
#pragma unroll
        for (int j = 0; j < V; ++j) total[j] += share * value[j];
      }
    store<V>(blurred + pixel * kLd + c, total);
  }
}

template <class T, int N, bool Aligned>
__global__ void __launch_bounds__(kThreads<N>, 512 / kThreads<N>) down_kernel(DownArgs<T> a) {
  constexpr int K = kDeep<T>, kLd = kRow<T, K>;
  using Shared = DownShared<T, N>;
  T* const staged = reinterpret_cast<T*>(shared_memory());
  T* const blurred = staged + Shared::kFirst;
  const int parts = (a.outputs + N - 1) / N;
  const int first = blockIdx.x % parts * N;
  const PixelTile<kSide, kSide> tile(blockIdx.x / parts, a.height, a.width);
  const int warp_m = warp() % kWarpsDown * 32, warp_n = warp() / kWarpsDown * kWarpChannels;
  const auto inputs = [&](int buffer) { return staged + buffer * Shared::kStage; };
  const auto weights = [&](int buffer) { return inputs(buffer) + kInputs * kLd; };
  const int chunks = (a.channels + K - 1) / K;  // of one half

  WarpTile<T, 2, kWarpChannels / 8> product;
  product.clear();
  pipelined(
      2 * chunks,
      [&](int chunk, int buffer) {
        const int half = chunk / chunks, channel = chunk % chunks * K;
        const Map<const T> map = half == 0 ? a.maps[0] : a.maps[1];
        const T* const weight = half == 0 ? a.weights[0] : a.weights[1];
        copy_rows<T, K, Aligned>(
            inputs(buffer), kInputs, kThreads<N>, channel, a.channels, [&](int i) -> const T* {
              const int y = 2 * tile.h - 1 + i / kInputSide, x = 2 * tile.w - 1 + i % kInputSide;
              if (y > a.input_height || x > a.input_width) return nullptr;  // of no output
              return map.at(tile.n, padded_source(y, a.input_height, Padding::reflect),
                            padded_source(x, a.input_width, Padding::reflect));
            });
        copy_rows<T, K, Aligned>(
            weights(buffer), N, kThreads<N>, channel, a.channels, [&](int d) -> const T* {
              return first + d < a.outputs ? weight + int64_t(first + d) * a.channels : nullptr;
            });
      },
      [&](int chunk, int buffer) {
        if (chunk < chunks)
          prelu_rows<T, K>(inputs(buffer), kInputs, kThreads<N>, chunk * K, a.channels, a.slope,
                           a.slopes);
      },
      [&](int buffer) {
        blur_inputs<T>(inputs(buffer), blurred, kThreads<N>);
        sync_threads();
        product.template multiply<K>(blurred + warp_m * kLd, kLd, weights(buffer) + warp_n * kLd,
                                     kLd);
      });

  product.each_pair([&](int row, int column, float s0, float s1) {
    const int local = warp_n + column;
    T* const to = staged + (warp_m + row) * kRow<T, N> + local;
    to[0] = rounded<T>(s0 + both_biases(a.biases[0], a.biases[1], first + local, a.outputs));
    to[1] = rounded<T>(s1 + both_biases(a.biases[0], a.biases[1], first + local + 1, a.outputs));
  });
  sync_threads();
  write_rows<T, N, Aligned>(staged, kPixels, kThreads<N>, first, a.outputs, [&](int i) -> T* {
    return tile.inside(i) ? a.out.at(tile.n, tile.row(i), tile.column(i)) : nullptr;
  });
}

}  // namespace

Tensor residual_down_tail(Tensor top, Tensor bottom, Tensor slope, Tensor top_weight,
                          OptionalTensor top_bias, Tensor bottom_weight,
                          OptionalTensor bottom_bias) {
  const TailWeights given{slope, top_weight, top_bias, bottom_weight, bottom_bias};
  check_down_tail(kOp, top, bottom, given);
  const LaunchContext context(top);
  const Tensor upper = map_in(top), lower = map_in(bottom);
  const DenseTail w(given);
  const int64_t outputs = top_weight.size(0);
  const Tensor out = map_out(top, down_tail_shape(top, outputs));
  if (out.numel() == 0) return laid_out_like(out, top);
  const bool aligned = wide({&upper, &lower, &out}) && w.aligned();
  by_dtype(kOp, top, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const DownArgs<T> args{{map_of<const T>(upper), map_of<const T>(lower)},
                           map_of<T>(out),
                           {w.top.data<T>(), w.bottom.data<T>()},
                           w.slope.data<T>(),
                           {w.top_bias.data<T>(), w.bottom_bias.data<T>()},
                           int(top.size(1)),
                           int(outputs),
                           int(slope.numel()),
                           int(top.size(2)),
                           int(top.size(3)),
                           int(out.size(2)),
                           int(out.size(3))};
    by_outputs<T, 128>(aligned, outputs > 128, [&](auto width, auto is_aligned) {
      constexpr int N = decltype(width)::value;
      const int64_t blocks =
          tiles_of<kSide, kSide>(top.size(0), out.size(2), out.size(3)) * ceil_div(outputs, N);
      context.launch(error_context(kOp, top), down_kernel<T, N, decltype(is_aligned)::value>,
                     blocks, kThreads<N>, DownShared<T, N>::kBytes, args);
    });
  });
  return laid_out_like(out, top);
}

std::vector<Tensor> residual_down_tail_backward(Tensor grad, Tensor top, Tensor bottom,
                                                Tensor slope, Tensor top_weight,
                                                OptionalTensor top_bias, Tensor bottom_weight,
                                                OptionalTensor bottom_bias) {
  const TailWeights given{slope, top_weight, top_bias, bottom_weight, bottom_bias};
  check_down_tail(kOp, top, bottom, given);
  check(kOp, "grad", grad, down_tail_shape(top, top_weight.size(0)), top);
  const LaunchContext context(top);
  const Tensor upper = map_in(top), lower = map_in(bottom), out_grad = map_in(grad);
  const DenseTail w(given);
  const BlurAxis rows = blur_axis(top.size(2), 3, "reflect", 2, 0);
  const BlurAxis cols = blur_axis(top.size(3), 3, "reflect", 2, 0);
  const Tensor top_grad = map_out(top, shape_of(top)), bottom_grad = map_out(top, shape_of(top));
  const Tensor blurred = map_out(top, down_tail_shape(top, top.size(1)));
  std::vector<Tensor> gradients;
  by_dtype(kOp, top, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Tensor slope_sums = resample_through<true, T>(
        kOp, context, project<T>(kOp, context, out_grad, transposed(top_weight)), top_grad, rows,
        cols, upper, w.slope.tensor());
    resample<true, T, T>(kOp, context,
                         project<T>(kOp, context, out_grad, transposed(bottom_weight)), bottom_grad,
                         rows, cols);
    resample<false, T, T>(kOp, context, upper, blurred, rows, cols,
                          PreluBefore<T>{w.slope.data<T>(), int(slope.numel())});
    const Tensor top_weight_grad = weight_gradient<T>(kOp, context, out_grad, blurred);
    resample<false, T, T>(kOp, context, lower, blurred, rows, cols);
    gradients = tail_gradients(laid_out_like(top_grad, top), laid_out_like(bottom_grad, bottom),
                               given, slope_sums, grad, top_weight_grad,
                               weight_gradient<T>(kOp, context, out_grad, blurred));
  });
  return gradients;
}

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cuda, MIRNET_DISPATCH, m) {
  m.impl("residual_down_tail", TORCH_BOX(&residual_down_tail));
  m.impl("residual_down_tail_backward", TORCH_BOX(&residual_down_tail_backward));
}

}  // namespace mirnet_fast::cuda
