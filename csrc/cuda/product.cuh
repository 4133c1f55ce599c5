// Products along the channels of feature maps, for the backwards: 1x1 convolutions and their
// weights' gradients.
#pragma once

#include "tail.cuh"

namespace mirnet_fast::cuda {

// ---- project: out = weight x -----------------------------------------------------------------
// Floor: both maps once; with `top`, which is read where the sums leave the registers, that once
// too. Tile: 8 x 16 pixels by 64 or 128 outputs, each warp's part 32 by 32.

template <class T>
struct ProjectArgs {
  Map<const T> x;
  Map<T> out;
  const T* weight;  // (outputs, channels)
  int channels, outputs, height, width;
  // The product is the gradient of this map's PReLU, if there is one; see `project`.
  Map<const T> top;
  const T* slope;
  float* slope_sums;
  int slopes;
};

constexpr int kProjectDown = 8, kProjectAcross = 16, kProjectPixels = kProjectDown * kProjectAcross;
constexpr int kProjectWarpsDown = 4, kProjectWarpChannels = 32;
template <int N>
constexpr int kProjectThreads = 32 * kProjectWarpsDown * N / kProjectWarpChannels;
// Threads that a multiprocessor is to hold: blocks that wait for their copies leave it to others.
// Of 64 registers each, which in float32 and by blocks of 512 threads would not be enough
// everywhere.
template <class T, int N>
constexpr int kProjectResident = sizeof(T) == 2 && N == 64 ? 1024 : 512;

// Channels of an operand in shared memory at a time.
template <class T>
constexpr int kDeep = sizeof(T) == 2 ? 32 : 16;

template <class T, int N>
struct ProjectShared {
  static constexpr int kStage = (kProjectPixels + N) * kRow<T, kDeep<T>>;
  static constexpr int kOutputs = kProjectPixels * kRow<T, N>;
  static constexpr int kFirst = 2 * kStage > kOutputs ? 2 * kStage : kOutputs;
  static constexpr size_t kBytes = kFirst * sizeof(T) + kProjectWarpsDown * N * sizeof(float);
};

template <class T, int N, bool Aligned, bool Prelu>
__global__ void __launch_bounds__(kProjectThreads<N>, kProjectResident<T, N> / kProjectThreads<N>)
    project_kernel(ProjectArgs<T> a) {
  constexpr int K = kDeep<T>, kLd = kRow<T, K>, kThreads = kProjectThreads<N>;
  using Shared = ProjectShared<T, N>;
  T* const staged = reinterpret_cast<T*>(shared_memory());
  const int parts = (a.outputs + N - 1) / N;
  const int first = blockIdx.x % parts * N;
  const PixelTile<kProjectDown, kProjectAcross> tile(blockIdx.x / parts, a.height, a.width);
  const int warp_m = warp() % kProjectWarpsDown;
  const int warp_n = warp() / kProjectWarpsDown * kProjectWarpChannels;
  const auto pixels = [&](int buffer) { return staged + buffer * Shared::kStage; };
  const auto weights = [&](int buffer) { return pixels(buffer) + kProjectPixels * kLd; };

  WarpTile<T, 2, kProjectWarpChannels / 8> product;
  product.clear();
  pipelined((a.channels + K - 1) / K,
            [&](int chunk, int buffer) {
              copy_rows<T, K, Aligned>(
                  pixels(buffer), kProjectPixels, kThreads, chunk * K, a.channels,
                  [&](int i) -> const T* {
                    return tile.inside(i) ? a.x.at(tile.n, tile.row(i), tile.column(i)) : nullptr;
                  });
              copy_rows<T, K, Aligned>(
                  weights(buffer), N, kThreads, chunk * K, a.channels, [&](int d) -> const T* {
                    return first + d < a.outputs ? a.weight + int64_t(first + d) * a.channels
                                                 : nullptr;
                  });
            },
            [](int, int) {},
            [&](int buffer) {
              product.template multiply<K>(pixels(buffer) + 32 * warp_m * kLd, kLd,
                                           weights(buffer) + warp_n * kLd, kLd);
            });

  float through[kProjectWarpChannels / 8][2] = {};  // of the slope, by this thread's columns
  product.each_row([&](int row) {
    const int pixel = 32 * warp_m + row;
    const T* before = nullptr;
    if constexpr (Prelu)
      if (tile.inside(pixel)) before = a.top.at(tile.n, tile.row(pixel), tile.column(pixel));
    T* to = staged + pixel * kRow<T, N> + warp_n;
    return [=, &through, &a](int column, float s0, float s1) {
      float sums[2] = {s0, s1};
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int d = first + warp_n + column + j;
        if constexpr (Prelu) {
          if (before != nullptr && d < a.outputs) {
            const float value = to_float(before[d]);
            if (!(value > 0)) {
              through[column / 8][j] += value * sums[j];
              sums[j] *= to_float(a.slope[a.slopes > 1 ? d : 0]);
            }
          }
        }
        to[column + j] = rounded<T>(sums[j]);
      }
    };
  });
  if constexpr (Prelu) {
    float* const by_warp = reinterpret_cast<float*>(staged + Shared::kFirst);
#pragma unroll
    for (int n = 0; n < kProjectWarpChannels / 8; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float sum = warp_sum<8, 4>(through[n][j]);
        if (lane() < 4) by_warp[warp_m * N + warp_n + 8 * n + 2 * lane() + j] = sum;
      }
  }
  sync_threads();
  if constexpr (Prelu) {
    const float* const by_warp = reinterpret_cast<const float*>(staged + Shared::kFirst);
    for (int d = threadIdx.x; d < N && first + d < a.outputs; d += kThreads) {
      float sum = 0;
#pragma unroll
      for (int m = 0; m < kProjectWarpsDown; ++m) sum += by_warp[m * N + d];
      a.slope_sums[int64_t(blockIdx.x / parts) * a.outputs + first + d] = sum;
    }
  }
  write_rows<T, N, Aligned>(staged, kProjectPixels, kThreads, first, a.outputs, [&](int i) -> T* {
    return tile.inside(i) ? a.out.at(tile.n, tile.row(i), tile.column(i)) : nullptr;
  });
}

// weight (outputs, channels) times the channels of x; where that is the gradient of top's PReLU,
// the gradient of top, and sums (tiles, outputs) for the slope's.
template <class T, bool Prelu>
std::pair<Tensor, OptionalTensor> project_through(const char* op, const LaunchContext& context,
                                                  const Tensor& x, const Tensor& weight,
                                                  const Tensor* top, const Tensor* slope) {
  const int64_t outputs = weight.size(0), channels = x.size(1);
  const Tensor out = map_out(x, {x.size(0), outputs, x.size(2), x.size(3)});
  const int64_t tiles = tiles_of<kProjectDown, kProjectAcross>(x.size(0), x.size(2), x.size(3));
  ProjectArgs<T> args{};
  args.x = map_of<const T>(x);
  args.out = map_of<T>(out);
  args.weight = static_cast<const T*>(weight.data_ptr());
  args.channels = int(channels);
  args.outputs = int(outputs);
  args.height = int(x.size(2));
  args.width = int(x.size(3));
  OptionalTensor sums;
  if constexpr (Prelu) {
    sums = scratch(x, {tiles, outputs});
    args.top = map_of<const T>(*top);
    args.slope = static_cast<const T*>(slope->data_ptr());
    args.slopes = int(slope->numel());
    args.slope_sums = static_cast<float*>(sums->data_ptr());
  }
  if (tiles == 0) return {out, sums};
  const bool aligned = wide({&x, &out}) && aligned_data(weight);
  by_outputs<T, 64>(aligned, outputs > 64, [&](auto width, auto is_aligned) {
    constexpr int N = decltype(width)::value;
    context.launch(error_context(op, x), project_kernel<T, N, decltype(is_aligned)::value, Prelu>,
                   tiles * ceil_div(outputs, N), kProjectThreads<N>, ProjectShared<T, N>::kBytes,
                   args);
  });
  return {out, sums};
}

// weight (outputs, channels) times the channels of x.
template <class T>
Tensor project(const char* op, const LaunchContext& context, const Tensor& x,
               const Tensor& weight) {
  return project_through<T, false>(op, context, x, weight, nullptr, nullptr).first;
}

// ---- weight_gradient: sums over the pixels of grad times x ------------------------------------
// Floor: both maps once; by blocks of 64 x 64 weights, so 128 x 64 of them read one map twice, from
// the cache. Every block adds over every so many tiles of 4 x 8 pixels, its partial sums are added
// after it in a fixed order.

template <class T>
struct WeightGradientArgs {
  Map<const T> grad, x;
  const T* slope;  // of a PReLU on x; none where `slopes` is 0
  float* sums;     // (programs, outputs, channels)
  // 2**31 tiles of 32 pixels would fit no memory.
  int slopes, channels, outputs, height, width, tiles, programs;
};

constexpr int kGradientDown = 4, kGradientAcross = 8;
constexpr int kGradientPixels = kGradientDown * kGradientAcross;
constexpr int kGradientSide = 64, kGradientThreads = 128;
// Values of all partial sums together.
constexpr int64_t kGradientValues = int64_t(1) << 22;

template <class T, bool Aligned>
__global__ void __launch_bounds__(kGradientThreads)
    weight_gradient_kernel(WeightGradientArgs<T> a) {
  constexpr int kSide = kGradientSide, kLd = kRow<T, kSide>, kStage = 2 * kGradientPixels * kLd;
  T* const staged = reinterpret_cast<T*>(shared_memory());
  const int across = (a.channels + kSide - 1) / kSide, down = (a.outputs + kSide - 1) / kSide;
  const int program = blockIdx.x / (across * down), part = blockIdx.x % (across * down);
  const int first_d = part / across * kSide, first_c = part % across * kSide;
  const int warp_d = warp() / 2 * 32, warp_c = warp() % 2 * 32;
  const auto grads = [&](int buffer) { return staged + buffer * kStage; };
  const auto values = [&](int buffer) { return grads(buffer) + kGradientPixels * kLd; };

  WarpTile<T, 2, 4> product;
  product.clear();
  pipelined((a.tiles - program + a.programs - 1) / a.programs,
            [&](int chunk, int buffer) {
              const PixelTile<kGradientDown, kGradientAcross> tile(program + chunk * a.programs,
                                                                   a.height, a.width);
              const auto row_of = [&](const Map<const T>& map) {
                return [&tile, &map](int i) -> const T* {
                  return tile.inside(i) ? map.at(tile.n, tile.row(i), tile.column(i)) : nullptr;
                };
              };
              copy_rows<T, kSide, Aligned>(grads(buffer), kGradientPixels, kGradientThreads,
                                           first_d, a.outputs, row_of(a.grad));
              copy_rows<T, kSide, Aligned>(values(buffer), kGradientPixels, kGradientThreads,
                                           first_c, a.channels, row_of(a.x));
            },
            [&](int, int buffer) {
              if (a.slopes > 0)
                prelu_rows<T, kSide>(values(buffer), kGradientPixels, kGradientThreads, first_c,
                                     a.channels, a.slope, a.slopes);
            },
            [&](int buffer) {
              // Short sums of their own: one long sum would round more.
              WarpTile<T, 2, 4> part_of_tile;
              part_of_tile.clear();
              part_of_tile.template multiply<kGradientPixels, true, true>(
                  grads(buffer) + warp_d, kLd, values(buffer) + warp_c, kLd);
              product.add(part_of_tile);
            });
  float* const to = a.sums + int64_t(program) * a.outputs * a.channels;
  product.each_pair([&](int row, int column, float s0, float s1) {
    const int d = first_d + warp_d + row, c = first_c + warp_c + column;
    if (d >= a.outputs) return;
    if (c < a.channels) to[int64_t(d) * a.channels + c] = s0;
    if (c + 1 < a.channels) to[int64_t(d) * a.channels + c + 1] = s1;
  });
}

// (outputs, channels) float32: sum over the pixels of grad times x, after a PReLU on x if given.
template <class T>
Tensor weight_gradient(const char* op, const LaunchContext& context, const Tensor& grad,
                       const Tensor& x, const Tensor* slope = nullptr) {
  const int64_t outputs = grad.size(1), channels = x.size(1);
  const int64_t tiles = tiles_of<kGradientDown, kGradientAcross>(x.size(0), x.size(2), x.size(3));
  if (tiles == 0) return torch::stable::new_zeros(x, {outputs, channels}, ScalarType::Float);
  const int64_t parts = ceil_div(outputs, kGradientSide) * ceil_div(channels, kGradientSide);
  const int64_t programs =
      std::max<int64_t>(1, std::min({tiles, kGradientValues / (outputs * channels), int64_t(512)}));
  const Tensor sums = scratch(x, {programs, outputs, channels});
  const WeightGradientArgs<T> args{map_of<const T>(grad),
                                   map_of<const T>(x),
                                   slope ? static_cast<const T*>(slope->data_ptr()) : nullptr,
                                   static_cast<float*>(sums.data_ptr()),
                                   slope ? int(slope->numel()) : 0,
                                   int(channels),
                                   int(outputs),
                                   int(x.size(2)),
                                   int(x.size(3)),
                                   int(tiles),
                                   int(programs)};
  constexpr size_t kBytes = size_t(4) * kGradientPixels * kRow<T, kGradientSide> * sizeof(T);
  context.launch(
      error_context(op, x),
      wide({&grad, &x}) ? weight_gradient_kernel<T, true> : weight_gradient_kernel<T, false>,
      programs * parts, kGradientThreads, kBytes, args);
  return summed(sums, {0}, ScalarType::Float);
}

}  // namespace mirnet_fast::cuda
