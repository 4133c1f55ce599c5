// From the products of a panel to the map: back from the points, bias, PReLU, residual, statistics.
#pragma once

#include "../tile_reduce.h"
#include "tiles.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

namespace {

// Where outputs go. All that follows the products is unrolled for each shape of a tile, so what a
// convolution never has is left out: `residual` and `pooled` go with kJoined only, `slope` not with
// kMap.
enum class To { kJoined, kMap, kTop };

// f(i, j) for the pixels of a tile that lie inside the map, unrolled: f's arrays stay registers.
template <class Rows, class Cols, class F>
inline __attribute__((always_inline)) void pixels(const Tile& tile, F f) {
  if (tile.rows == Rows::kOut && tile.cols == Cols::kOut) {
#pragma GCC unroll 4
    for (int i = 0; i < Rows::kOut; ++i)
#pragma GCC unroll 6
      for (int j = 0; j < Cols::kOut; ++j) f(i, j);
  } else {
#pragma GCC unroll 4
    for (int i = 0; i < Rows::kOut; ++i)
#pragma GCC unroll 6
      for (int j = 0; j < Cols::kOut; ++j)
        if (i < tile.rows && j < tile.cols) f(i, j);
  }
}

// A tile's statistics with those of one vector of its channels. Lanes without a channel may hold a
// NaN: no weight times an infinite input.
template <class Rows, class Cols, class Span>
inline __attribute__((always_inline)) void add_statistics(float* pooled, V (*y)[Cols::kOut],
                                                          Span span) {
  constexpr int64_t kAll = kLanes<float>;
#pragma GCC unroll 4
  for (int i = 0; i < Rows::kOut; ++i)
#pragma GCC unroll 6
    for (int j = 0; j < Cols::kOut; ++j) {
      float* const at = pooled + (i * Cols::kOut + j) * 2 * kAll;
      V high = y[i][j], value = y[i][j];
      if constexpr (__is_same(Span, FirstLanes))
        for (int64_t l = span.count; l < kAll; ++l) high[l] = -__builtin_inff(), value[l] = 0;
      const V best = load(at, AllLanes{});
      store(at, select<float>(high > best, high, best), AllLanes{});
      store(at + kAll, load(at + kAll, AllLanes{}) + value, AllLanes{});
    }
}

// Whether a tile's outputs hold a NaN or an infinity. A value that is none of a number's makes all
// the points that it enters into such ones, and along an axis with several taps every point enters
// into the first output or the last.
template <class Rows, class Cols>
inline __attribute__((always_inline)) bool is_special(V (*y)[Cols::kOut]) {
  if constexpr (Rows::kTaps == 1 && Cols::kTaps == 1)
    return false;  // no output has another's input
  constexpr int kDown = Rows::kTaps == 1 ? 1 : Rows::kOut - 1;
  constexpr int kRight = Cols::kTaps == 1 ? 1 : Cols::kOut - 1;
  V sum{};
#pragma GCC unroll 4
  for (int i = 0; i < Rows::kOut; i += kDown)
#pragma GCC unroll 4
    for (int j = 0; j < Cols::kOut; j += kRight) sum += y[i][j];
  return has_nan(sum - sum);
}

// The outputs of a tile's channels from c on, a vector of them, by the plain sums. With a NaN or an
// infinity among what a tile reads, the points would carry it to pixels that do not read it, and
// make a NaN of an infinity.
template <class Rows, class Cols, class T>
__attribute__((noinline)) void plain_outputs(const Work<T>& work, const Tile& tile, int64_t c,
                                             V (*y)[Cols::kOut]) {
  const ConvArgs& args = work.args;
  const Map& in = args.in;
  const int64_t channels = least(kLanes<float>, args.out.c - c);
  for (int i = 0; i < Rows::kOut; ++i)
    for (int j = 0; j < Cols::kOut; ++j) y[i][j] = V{};
  for (int64_t k = 0; k < in.c; ++k)
    for (int s = 0; s < Rows::kTaps; ++s)
      for (int t = 0; t < Cols::kTaps; ++t) {
        const T* tap = static_cast<const T*>(args.weight) + k * args.input_stride +
                       c * args.output_stride + Rows::kTap[s] * 3 + Cols::kTap[t];
        V weight{};
        for (int64_t l = 0; l < channels; ++l) weight[l] = to_acc(tap[l * args.output_stride]);
        for (int i = 0; i < tile.rows; ++i)
          for (int j = 0; j < tile.cols; ++j) {
            const int64_t h = args.first_row + tile.h + i + Rows::kFirst + s;
            const int64_t w = tile.w + j + Cols::kFirst + t;
            if (h < 0 || w < 0 || h >= in.h || w >= in.w) continue;
            y[i][j] += to_acc(address<T>(in, work.n, h, w)[k]) * weight;
          }
      }
}

// Outputs of a tile's channels from `column` on, `width` of them in the products.
template <To Ends, class Rows, class Cols, class T>
inline void tile_out(const Work<T>& work, int64_t t, int64_t column, int64_t width) {
  constexpr int kAll = kPixels<Rows, Cols>, kOut = Cols::kOut;
  const ConvArgs& args = work.args;
  const Tile tile = tile_at<Rows, Cols>(args.out, work.first + t);
  const float* products = work.products + t * width;
  const int64_t channels = least(width, args.out.c - column);
  lanes<float>(channels, [&](int64_t c, auto span) {
    V y[Rows::kOut][kOut];
    transform_out<Rows, Cols>(products + c, plane(args.block_tiles, width), y);
    if (__builtin_expect(is_special<Rows, Cols>(y), 0))
      plain_outputs<Rows, Cols>(work, tile, column + c, y);
    if (args.bias != nullptr) {
      const V bias = load(args.bias + column + c, AllLanes{});
      for (int i = 0; i < Rows::kOut; ++i)
        for (int j = 0; j < kOut; ++j) y[i][j] += bias;
    }
    if (Ends != To::kMap && args.slope != nullptr) {
      const V slope = load(args.slope + column + c, AllLanes{});
      for (int i = 0; i < Rows::kOut; ++i)
        for (int j = 0; j < kOut; ++j) y[i][j] = prelu(y[i][j], slope);
    }
    if (Ends == To::kJoined && args.residual.data != nullptr) {
      const T* residual = address<T>(args.residual, work.n, tile.h, tile.w) + column + c;
      const T* rows[Rows::kOut];
      for (int i = 0; i < Rows::kOut; ++i)
        rows[i] = hide_provenance(residual + i * args.residual.sh);
      pixels<Rows, Cols>(tile, [&](int i, int j) __attribute__((always_inline)) {
        y[i][j] += load(rows[i] + j * args.residual.sw, span);
      });
    }
    const auto put = [&](auto* out, int64_t sh, int64_t sw) __attribute__((always_inline)) {
      decltype(out) rows[Rows::kOut];
      for (int i = 0; i < Rows::kOut; ++i) rows[i] = hide_provenance(out + i * sh + column + c);
      pixels<Rows, Cols>(tile, [&](int i, int j) __attribute__((always_inline)) {
        store(rows[i] + j * sw, y[i][j], span);
      });
    };
    if constexpr (Ends == To::kTop) {
      const int64_t sw = pad<float>(args.out.c);
      put(work.top + t * kAll * sw, kOut * sw, sw);
    } else {
      put(address<T>(args.out, work.n, tile.h, tile.w), args.out.sh, args.out.sw);
    }
    if (Ends != To::kJoined || args.pooled.data == nullptr) return;
    V total{};
    pixels<Rows, Cols>(tile,
                       [&](int i, int j) __attribute__((always_inline)) { total += y[i][j]; });
    add_to<float>(work.sums + t / kSumTiles * args.out.c + column + c, total, span);
    add_statistics<Rows, Cols>(work.pooled + t * kAll * 2 * kLanes<float>, y, span);
  });
}

// to[i] = what op gives over the lanes of the vector at from + i * step, for `count` of them.
template <class Op>
inline void reduce_pixels(const float* from, int64_t step, int64_t count, float* to, Op op) {
  constexpr int64_t kAll = kLanes<float>;
  for (int64_t i = 0; i < count; i += kAll) {
    V v[kAll];
    for (int64_t j = 0; j < kAll; ++j)
      v[j] = load(from + least(i + j, count - 1) * step, AllLanes{});
    reduce_each<float>(v, op);
    store(to + i, v[0], AllLanes{});
  }
}

template <class Rows, class Cols, class T>
inline void write_pooled(const Work<T>& work) {
  constexpr int64_t kAll = kPixels<Rows, Cols>, kEach = 2 * kLanes<float>;
  const Map& map = work.args.out;
  const Map& pooled = work.args.pooled;
  float* max = static_cast<float*>(pooled.data) + work.n * pooled.sn;
  float* mean = max + pooled.sc;
  for (int64_t t = 0; t < work.count; ++t) {
    const Tile tile = tile_at<Rows, Cols>(map, work.first + t);
    const float* from = work.pooled + t * kAll * kEach;
    float best[kAll + kLanes<float>], total[kAll + kLanes<float>];
    reduce_pixels(from, kEach, kAll, best, [](V a, V b) { return select<float>(a > b, a, b); });
    reduce_pixels(from + kLanes<float>, kEach, kAll, total, [](V a, V b) { return a + b; });
    for (int64_t i = 0; i < tile.rows; ++i)
      for (int64_t j = 0; j < tile.cols; ++j) {
        const int64_t at = (tile.h + i) * pooled.sh + tile.w + j;
        const float sum = total[i * Cols::kOut + j];
        max[at] = best[i * Cols::kOut + j];
        mean[at] = sum / float(map.c);
        keep_nan(address<T>(map, work.n, tile.h + i, tile.w + j), map.c, sum, max + at);
      }
  }
}

template <class Rows, class Cols, class T>
inline void clear_statistics(const Work<T>& work) {
  constexpr int64_t kAll = kPixels<Rows, Cols>, kEach = 2 * kLanes<float>;
  for (int64_t i = 0; i < work.count * kAll; ++i) {
    store(work.pooled + i * kEach, splat<float>(-__builtin_inff()), AllLanes{});
    store(work.pooled + i * kEach + kLanes<float>, V{}, AllLanes{});
  }
}

}  // namespace

}  // namespace mirnet_fast::cpu::MIRNET_ISA
