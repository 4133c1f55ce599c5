// The backward of dau_attention, for everything but x, whose gradient is the output's.
//
// The statistics again, with the index of the maximum (1 map). apply_backward_kernel multiplies the
// gradient by both halves of the transposed fuse weight and leaves in r's gradient all but the
// pooled terms, the spatial gate with the gradient of its logit, and the channel gate's gradient (3
// maps). weight_kernel multiplies the gradient by r and by the spatially gated r (2 maps).
// taps_kernel and pooled_kernel work on small maps only, small_kernel on global means.
// spread_kernel adds the pooled terms (2 maps). Tiles as in the forward; the gradient of 64 x 64
// weights a block.
#pragma once

#include "dau_attention.cuh"

namespace mirnet_fast::cuda::dau {

// ---- through the product and the gates --------------------------------------------------------

template <class T>
struct ApplyBackwardArgs {
  Map<const T> grad, r;
  Map<T> r_grad;
  const float *pooled, *gate;  // gate (N, C)
  const T *spatial, *weights;  // weights (2 C, C): both halves of the fuse weight, transposed
  float* gates;                // (N, 2, H, W): the spatial gate, the gradient of its logit
  float* sums;                 // (N, tiles of an image, C): of the channel gate's gradient
  int channels, taps, height, width;
};

constexpr int kBackWide = 64, kBackWarpsDown = 4, kBackWarpChannels = 32;
constexpr int kBackThreads = 32 * kBackWarpsDown * kBackWide / kBackWarpChannels;

template <class T>
struct ApplyBackwardShared {
  static constexpr int kLd = kRow<T, kDeep<T>>;
  static constexpr int kStage = (kPixels + 2 * kBackWide) * kLd;
  static constexpr int kOutputs = kPixels * kRow<T, kBackWide>;
  // Sums of every column by each row of warps, and of every pixel by each column of warps.
  static constexpr int kColumns = kBackWarpsDown * kBackWide;
  static constexpr int kRows = kBackWide / kBackWarpChannels * kPixels;
  static size_t bytes(int taps) {
    return (2 * kStage + kOutputs) * sizeof(T) +
           (kPixels + kColumns + kRows + gate_room(taps, kBackThreads)) * sizeof(float);
  }
};

template <class T, bool Aligned>
__global__ void __launch_bounds__(kBackThreads, Aligned ? 2 : 1)
    apply_backward_kernel(ApplyBackwardArgs<T> a) {
  constexpr int N = kBackWide, K = kDeep<T>, kLd = kRow<T, K>, kAll = kBackThreads;
  using Shared = ApplyBackwardShared<T>;
  T* const staged = reinterpret_cast<T*>(shared_memory());
  T* const outputs = staged + 2 * Shared::kStage;
  float* const gate = reinterpret_cast<float*>(outputs + Shared::kOutputs);
  float* const columns = gate + kPixels;
  float* const rows = columns + Shared::kColumns;
  const int C = a.channels;
  const PixelTile<kDown, kAcross> tile(blockIdx.x, a.height, a.width);
  const int warp_row = warp() % kBackWarpsDown, warp_m = warp_row * 32;
  const int warp_column = warp() / kBackWarpsDown, warp_n = warp_column * kBackWarpChannels;
  const int64_t plane = int64_t(a.height) * a.width;
  const auto pixels = [&](int buffer) { return staged + buffer * Shared::kStage; };
  const auto weights = [&](int buffer) { return pixels(buffer) + kPixels * kLd; };
  const auto row_of = [&](const auto& map) {
    return [&tile, &map](int i) {
      return tile.inside(i) ? map.at(tile.n, tile.row(i), tile.column(i)) : nullptr;
    };
  };

  spatial_gate(a.pooled + 2 * tile.n * plane, a.spatial, a.taps, tile, kAll, rows + Shared::kRows,
               gate);
  for (int i = threadIdx.x; i < Shared::kRows; i += kAll) rows[i] = 0;

  for (int first = 0; first < C; first += N) {
    copy_rows<T, N, Aligned>(outputs, kPixels, kAll, first, C, row_of(a.r));
    commit_copies();
    // The gradient times the first half of the weight, and times the second.
    WarpTile<T, 2, kBackWarpChannels / 8> u, v;
    u.clear();
    v.clear();
    pipelined((C + K - 1) / K,
              [&](int chunk, int buffer) {
                copy_rows<T, K, Aligned>(pixels(buffer), kPixels, kAll, chunk * K, C,
                                         row_of(a.grad));
                copy_rows<T, K, Aligned>(
                    weights(buffer), 2 * N, kAll, chunk * K, C, [&](int i) -> const T* {
                      const int c = first + i % N;
                      return c < C ? a.weights + (int64_t(i / N) * C + c) * C : nullptr;
                    });
              },
              [](int, int) {},
              [&](int buffer) {
                u.template multiply<K>(pixels(buffer) + warp_m * kLd, kLd,
                                       weights(buffer) + warp_n * kLd, kLd);
                v.template multiply<K>(pixels(buffer) + warp_m * kLd, kLd,
                                       weights(buffer) + (N + warp_n) * kLd, kLd);
              });

    // The gate's gradient, sums over the pixels of v r; the second half then gets its gate. A
    // column at a time, so that few sums are in registers.
#pragma unroll
    for (int n = 0; n < kBackWarpChannels / 8; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int column = warp_n + 8 * n + lane() % 4 * 2 + j;
        const bool known = first + column < C;
        const float share = known ? a.gate[int64_t(tile.n) * C + first + column] : 0.f;
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int pixel = warp_m + 8 * i + lane() / 4;
          float& value = v.sums[i / 2][n][i % 2 * 2 + j];
          // Outside, v is 0 times weights, NaN where those are infinite.
          if (known && tile.inside(pixel))
            sum += value * to_float(outputs[pixel * kRow<T, N> + column]);
          value *= share;
        }
        sum = warp_sum<8, 4>(sum);
        if (lane() < 4) columns[warp_row * N + column] = sum;
      }
    // The spatial gate's gradient, sums over the channels of u r; the first half then gets its
    // gate.
    float along[4] = {};  // of this thread's rows, 8 apart
    u.each_row([&](int row) {
      const int pixel = warp_m + row;
      const T* const value = outputs + pixel * kRow<T, N> + warp_n;
      const float share = gate[pixel];
      float& sum = along[row / 8];
      return [=, &sum](int column, float& s0, float& s1) {
        if (first + warp_n + column < C) sum += s0 * to_float(value[column]);
        if (first + warp_n + column + 1 < C) sum += s1 * to_float(value[column + 1]);
        s0 *= share;
        s1 *= share;
      };
    });
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float sum = warp_sum<4>(along[i]);
      if (lane() % 4 == 0) rows[warp_column * kPixels + warp_m + 8 * i + lane() / 4] += sum;
    }
    u.add(v);
    u.each_pair([&](int row, int column, float s0, float s1) {
      T* const to = outputs + (warp_m + row) * kRow<T, N> + warp_n + column;
      to[0] = rounded<T>(s0);
      to[1] = rounded<T>(s1);
    });
    sync_threads();
    write_rows<T, N, Aligned>(outputs, kPixels, kAll, first, C, row_of(a.r_grad));
    for (int c = threadIdx.x; c < N && first + c < C; c += kAll) {
      float sum = 0;
#pragma unroll
      for (int m = 0; m < kBackWarpsDown; ++m) sum += columns[m * N + c];
      a.sums[int64_t(blockIdx.x) * C + first + c] = sum;
    }
    sync_threads();
  }
  for (int pixel = threadIdx.x; pixel < kPixels; pixel += kAll) {
    if (!tile.inside(pixel)) continue;
    float along = 0;
#pragma unroll
    for (int column = 0; column < kBackWide / kBackWarpChannels; ++column)
      along += rows[column * kPixels + pixel];
    const float share = gate[pixel];
    const int64_t at = 2 * tile.n * plane + int64_t(tile.row(pixel)) * a.width + tile.column(pixel);
    a.gates[at] = share;
    a.gates[at + plane] = along * share * (1 - share);
  }
}

// ---- the fuse weight --------------------------------------------------------------------------
// Of one image the second half's gradient is the channel gate times that of bare r, so r is
// multiplied as it is and once more with the spatial gate.

template <class T>
struct FuseArgs {
  Map<const T> grad, r;
  const float *gates, *gate;
  float* sums;  // (N, programs, C, 2 C)
  int channels, height, width, tiles, programs;
};

constexpr int kFuseDown = 4, kFuseAcross = 8, kFusePixels = kFuseDown * kFuseAcross;
constexpr int kFuseSide = 64, kFuseThreads = 128;

template <class T, bool Aligned>
__global__ void __launch_bounds__(kFuseThreads, 2) weight_kernel(FuseArgs<T> a) {
  constexpr int kLd = kRow<T, kFuseSide>, kTile = kFusePixels * kLd, kStage = 3 * kTile;
  constexpr int V = kWide<T>;
  T* const staged = reinterpret_cast<T*>(shared_memory());
  const int C = a.channels, side = (C + kFuseSide - 1) / kFuseSide, parts = side * side;
  const int part = blockIdx.x % parts, program = blockIdx.x / parts % a.programs;
  const int n = blockIdx.x / parts / a.programs;
  const int first_o = part / side * kFuseSide, first_c = part % side * kFuseSide;
  const int warp_o = warp() / 2 * 32, warp_c = warp() % 2 * 32;
  const float* const gates = a.gates + int64_t(n) * 2 * a.height * a.width;
  const auto tile_of = [&](int chunk) {
    return PixelTile<kFuseDown, kFuseAcross>(n, program + chunk * a.programs, a.height, a.width);
  };
  const auto grads = [&](int buffer) { return staged + buffer * kStage; };
  const auto bare = [&](int buffer) { return grads(buffer) + kTile; };
  const auto gated = [&](int buffer) { return bare(buffer) + kTile; };

  WarpTile<T, 2, 4> left, right;
  left.clear();
  right.clear();
  pipelined((a.tiles - program + a.programs - 1) / a.programs,
            [&](int chunk, int buffer) {
              const auto tile = tile_of(chunk);
              const auto row_of = [&](const Map<const T>& map) {
                return [&tile, &map](int i) -> const T* {
                  return tile.inside(i) ? map.at(tile.n, tile.row(i), tile.column(i)) : nullptr;
                };
              };
              copy_rows<T, kFuseSide, Aligned>(grads(buffer), kFusePixels, kFuseThreads, first_o, C,
                                               row_of(a.grad));
              copy_rows<T, kFuseSide, Aligned>(bare(buffer), kFusePixels, kFuseThreads, first_c, C,
                                               row_of(a.r));
            },
            [&](int chunk, int buffer) {
              const auto tile = tile_of(chunk);
              each_piece<kFuseSide / V>(kFusePixels, kFuseThreads, [&](int pixel, int piece) {
                const int at = pixel * kLd + piece * V;
                float value[V];
                load<V>(value, bare(buffer) + at);
                const float share =
                    tile.inside(pixel)
                        ? gates[int64_t(tile.row(pixel)) * a.width + tile.column(pixel)]
                        : 0.f;
#pragma unroll
                for (int j = 0; j < V; ++j) value[j] *= share;
                store<V>(gated(buffer) + at, value);
              });
            },
            [&](int buffer) {
              // Short sums of their own: one long sum would round more.
              const auto add = [&](WarpTile<T, 2, 4>& to, const T* values) {
                WarpTile<T, 2, 4> of_tile;
                of_tile.clear();
                of_tile.template multiply<kFusePixels, true, true>(grads(buffer) + warp_o, kLd,
                                                                   values + warp_c, kLd);
                to.add(of_tile);
              };
              add(left, gated(buffer));
              add(right, bare(buffer));
            });
  float* const to = a.sums + (int64_t(n) * a.programs + program) * C * 2 * C;
  const auto write = [&](WarpTile<T, 2, 4>& product, int half) {
    product.each_pair([&](int row, int column, float s0, float s1) {
      const int o = first_o + warp_o + row, c = first_c + warp_c + column;
      if (o >= C) return;
      const float sums[2] = {s0, s1};
#pragma unroll
      for (int j = 0; j < 2; ++j)
        if (c + j < C)
          to[int64_t(o) * 2 * C + half * C + c + j] =
              half ? a.gate[int64_t(n) * C + c + j] * sums[j] : sums[j];
    });
  };
  write(left, 0);
  write(right, 1);
}

// ---- small maps ------------------------------------------------------------------------------

struct SmallMapsArgs {
  const float *gates, *pooled;  // (N, 2, H, W)
  int images, height, width, taps, programs;
};

constexpr int kMapThreads = 256, kTapsAtOnce = 8;
// Rows of taps by programs are the blocks of taps_kernel: enough for a large GPU.
constexpr int64_t kTapPrograms = 32;

// sums (programs, 2 taps taps): the gradients of the taps; of one map's row of taps kTapsAtOnce a
// block, over every so many rows of pixels.
template <class T>
__global__ void __launch_bounds__(kMapThreads) taps_kernel(SmallMapsArgs a, float* sums) {
  float* const kept = reinterpret_cast<float*>(shared_memory());  // (warps, kTapsAtOnce)
  const int parts = (a.taps + kTapsAtOnce - 1) / kTapsAtOnce, blocks = 2 * a.taps * parts;
  const int program = blockIdx.x / blocks, row_of_taps = blockIdx.x % blocks / parts;
  const int first = blockIdx.x % parts * kTapsAtOnce;
  const int dy = row_of_taps % a.taps - a.taps / 2, dx = first - a.taps / 2;
  const int64_t plane = int64_t(a.height) * a.width;
  float sum[kTapsAtOnce] = {};
  for (int row = program; row < a.images * a.height; row += a.programs) {
    const int n = row / a.height, h = row % a.height;
    if (h + dy < 0 || h + dy >= a.height) continue;
    const float* const grad = a.gates + (2 * n + 1) * plane + int64_t(h) * a.width;
    const float* const from =
        a.pooled + (2 * n + row_of_taps / a.taps) * plane + int64_t(h + dy) * a.width;
    float of_row[kTapsAtOnce] = {};  // short sums of their own
    for (int w = threadIdx.x; w < a.width; w += kMapThreads) {
      const float here = grad[w];
#pragma unroll
      for (int j = 0; j < kTapsAtOnce; ++j) {
        const int x = w + dx + j;
        if (x >= 0 && x < a.width) of_row[j] += here * from[x];
      }
    }
#pragma unroll
    for (int j = 0; j < kTapsAtOnce; ++j) sum[j] += of_row[j];
  }
#pragma unroll
  for (int j = 0; j < kTapsAtOnce; ++j) {
    sum[j] = sum_of_warp(sum[j]);
    if (lane() == 0) kept[warp() * kTapsAtOnce + j] = sum[j];
  }
  sync_threads();
  const int tap = threadIdx.x;
  if (tap < kTapsAtOnce && first + tap < a.taps) {
    float total = 0;
    for (int w = 0; w < kMapThreads / 32; ++w) total += kept[w * kTapsAtOnce + tap];
    sums[(int64_t(program) * 2 * a.taps + row_of_taps) * a.taps + first + tap] = total;
  }
}

// grads (N, 2, H, W): the gradients of the pooled maps, a thread a pixel.
template <class T>
__global__ void __launch_bounds__(kMapThreads)
    pooled_kernel(SmallMapsArgs a, const T* weight, float* grads, int chunks) {
  const int row = blockIdx.x / chunks, w = blockIdx.x % chunks * kMapThreads + threadIdx.x;
  if (w >= a.width) return;
  const int n = row / a.height, h = row % a.height;
  const int64_t plane = int64_t(a.height) * a.width;
  const float* const logits = a.gates + (2 * n + 1) * plane;
  float sums[2] = {};
  for (int y = 0; y < a.taps; ++y) {
    const int from_y = h - (y - a.taps / 2);
    if (from_y < 0 || from_y >= a.height) continue;
    for (int x = 0; x < a.taps; ++x) {
      const int from_x = w - (x - a.taps / 2);
      if (from_x < 0 || from_x >= a.width) continue;
      const float grad = logits[int64_t(from_y) * a.width + from_x];
#pragma unroll
      for (int i = 0; i < 2; ++i) sums[i] += to_float(weight[(i * a.taps + y) * a.taps + x]) * grad;
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) grads[(2 * n + i) * plane + int64_t(h) * a.width + w] = sums[i];
}

// ---- the layers on global means, in float64 ----------------------------------------------------

template <class T>
struct SmallBackwardArgs {
  const float *sums, *gate_sums;  // (N, programs, C), (N, gate_programs, C)
  const T *squeeze, *squeeze_bias, *excite, *excite_bias;
  double *means, *logit_grad, *hidden, *before_grad;  // (N, C) twice, (N, d) twice
  float* shift;                                       // (N, C): what every pixel gets
  int channels, squeezed, programs, gate_programs;
  double pixels;
};

template <class T>
__global__ void __launch_bounds__(kSmallThreads, 1) small_kernel(SmallBackwardArgs<T> a) {
  double* const room = reinterpret_cast<double*>(shared_memory());  // (kSumsRoom), (C)
  double* const logits = room + kSumsRoom;
  const int n = blockIdx.x, C = a.channels, D = a.squeezed;
  double* const means = a.means + int64_t(n) * C;
  double* const grads = a.logit_grad + int64_t(n) * C;
  double* const hidden = a.hidden + int64_t(n) * D;
  double* const before_grad = a.before_grad + int64_t(n) * D;
  add_programs(a.sums + int64_t(n) * a.programs * C, a.programs, C, C, room, means, 1 / a.pixels);
  add_programs(a.gate_sums + int64_t(n) * a.gate_programs * C, a.gate_programs, C, C, room, grads,
               1.0);
  small_layer(a.squeeze, a.squeeze_bias, means, D, C, before_grad);  // before the ReLU, so far
  for (int d = threadIdx.x; d < D; d += kSmallThreads)
    hidden[d] = before_grad[d] <= 0 ? 0 : before_grad[d];
  sync_threads();
  small_layer(a.excite, a.excite_bias, hidden, C, D, logits);
  for (int c = threadIdx.x; c < C; c += kSmallThreads) {
    const double gate = 1 / (1 + exp(-logits[c]));
    grads[c] *= gate * (1 - gate);
  }
  sync_threads();
  for (int d = warp(); d < D; d += kSmallThreads / 32) {
    double sum = 0;
    for (int c = lane(); c < C; c += 32) sum += grads[c] * to_float(a.excite[int64_t(c) * D + d]);
    sum = sum_of_warp(sum);
    if (lane() == 0) before_grad[d] = before_grad[d] <= 0 ? 0 : sum;
  }
  sync_threads();
  for (int c = threadIdx.x; c < C; c += kSmallThreads) {
    double sum = 0;
    for (int d = 0; d < D; ++d) sum += before_grad[d] * to_float(a.squeeze[int64_t(d) * C + c]);
    a.shift[int64_t(n) * C + c] = float(sum / a.pixels);
  }
}

// ---- the pooled terms ------------------------------------------------------------------------

template <class T>
struct SpreadArgs {
  Map<T> r_grad;
  const float *grads, *shift;  // (N, 2, H, W), (N, C)
  const int* index;
  int channels, height, width, chunks;
};

template <class T, int V>
__global__ void __launch_bounds__(kMapThreads) spread_kernel(SpreadArgs<T> a) {
  const int vectors = a.channels / V, row = blockIdx.x / a.chunks;
  const int i = blockIdx.x % a.chunks * kMapThreads + threadIdx.x;
  const int w = i / vectors, c = i % vectors * V;
  if (w >= a.width) return;
  const int n = row / a.height, h = row % a.height;
  const int64_t plane = int64_t(a.height) * a.width, at = int64_t(h) * a.width + w;
  T* const place = a.r_grad.at(n, h, w) + c;
  float value[V];
  load<V>(value, place);
  const float of_max = a.grads[2 * n * plane + at];
  const float of_mean = a.grads[(2 * n + 1) * plane + at] / a.channels;
  const int largest = a.index[n * plane + at];
#pragma unroll
  for (int j = 0; j < V; ++j)
    value[j] +=
        of_mean + a.shift[int64_t(n) * a.channels + c + j] + (c + j == largest ? of_max : 0.f);
  store<V>(place, value);
}

}  // namespace mirnet_fast::cuda::dau
