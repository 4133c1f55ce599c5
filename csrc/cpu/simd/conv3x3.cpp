// conv3x3: 'same' 3x3 convolution by Winograd's F(4x4, 3x3), a quarter of the multiplications: the
// matrix product is at the roof of the arithmetic unit otherwise. Fused: bias, PReLU, residual, and
// the statistics of dau_attention (per-pixel maximum and mean, per-channel sum), so the output is
// not read again. Floor: the products, 36 / 144 of the multiply-adds of the plain convolution.
//
// A block is about 30 tiles of 6 x 6 input and 4 x 4 output pixels. Its transformed input stays in
// the second-level cache while the 36 products of a panel of output channels are made, and so does
// a panel's result until it is transformed back: nothing in between goes to memory.
#include "tile.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

namespace {

constexpr int64_t kOut = 4, kIn = 6, kPoints = kIn * kIn, kPixels = kOut * kOut;

// The points are 0, +-a, +-1/a and infinity with a = sqrt(1/2): against the usual 0, +-1, +-2 they
// halve the error, and as the product of the squares is 1 they cost no multiplication more.
constexpr float kA = 0.70710678118654752f, kB = 1.4142135623730950f;
constexpr float kA2 = 0.5f, kB2 = 2.0f;

using V = Vec<float>;

// Six values at three of the six points: 0 and +-a, or +-1/a and infinity. No term is common to
// both halves, and the halves of a tile fit into the registers where all of it does not.
template <int Half>
inline __attribute__((always_inline)) void to_points(const V* x, V* out) {
  constexpr float kOther = Half == 0 ? kB2 : kA2;
  const V even = x[4] - kOther * x[2], odd = (Half == 0 ? kA : kB) * (x[3] - kOther * x[1]);
  out[Half == 0 ? 1 : 0] = even + odd;
  out[Half == 0 ? 2 : 1] = even - odd;
  if constexpr (Half == 0)
    out[0] = (x[0] + x[4]) - (kA2 + kB2) * x[2];
  else
    out[2] = (x[1] + x[5]) - (kA2 + kB2) * x[3];
}

// Four outputs from the six points.
inline __attribute__((always_inline)) void from_points(const V* m, V* out) {
  const V even_a = m[1] + m[2], odd_a = kA * (m[1] - m[2]);
  const V even_b = m[3] + m[4], odd_b = kB * (m[3] - m[4]);
  out[0] = m[0] + even_a + even_b;
  out[1] = odd_a + odd_b;
  out[2] = kA2 * even_a + kB2 * even_b;
  out[3] = kA2 * odd_a + kB2 * odd_b + m[5];
}

// Planes of one point each, a cache line further apart than their contents: at a power of two all
// 36 lines of a tile would compete for the same few places of the first-level cache.
inline int64_t plane(int64_t tiles, int64_t ld) { return tiles * ld + 16; }

struct Tile {
  int64_t h, w;        // of its first output pixel
  int64_t rows, cols;  // of its output pixels that lie inside the map
};

inline Tile tile_at(const Map& out, int64_t index) {
  const int64_t across = (out.w + kOut - 1) / kOut;
  const int64_t h = index / across * kOut, w = index % across * kOut;
  return {h, w, least(kOut, out.h - h), least(kOut, out.w - w)};
}

// The 6 x 6 pixels that a tile reads, whole vectors of channels: pixel (i, j) at data + i * sh +
// j * sw. Where they lie if that is possible, else copied to `buffer` with zeros around the map.
struct Window {
  const float* data;
  int64_t sh, sw;
};

inline Window window_of(const Map& in, int64_t n, const Tile& tile, float* buffer) {
  const int64_t top = tile.h - 1, left = tile.w - 1;
  const bool inside = top >= 0 && left >= 0 && top + kIn <= in.h && left + kIn <= in.w;
  if (inside && in.c % kLanes<float> == 0) return {address<float>(in, n, top, left), in.sh, in.sw};
  const int64_t ld = pad<float>(in.c);
  for (int64_t i = 0; i < kIn; ++i)
    for (int64_t j = 0; j < kIn; ++j) {
      float* to = buffer + (i * kIn + j) * ld;
      const int64_t h = top + i, w = left + j;
      if (h < 0 || w < 0 || h >= in.h || w >= in.w) {
        zero(to, ld);
        continue;
      }
      const float* from = address<float>(in, n, h, w);
      lanes<float>(in.c,
                   [&](int64_t c, auto span) { store(to + c, load(from + c, span), Full{}); });
    }
  return {buffer, kIn * ld, ld};
}

// Three rows of points of one vector of channels, from row 3 * Half on.
template <int Half>
inline __attribute__((always_inline)) void transform_half(const Window& x, float* points,
                                                          int64_t step) {
  V half[kIn][3];  // [column][point]
#pragma GCC unroll 6
  for (int j = 0; j < kIn; ++j) {
    V column[kIn];
#pragma GCC unroll 6
    for (int i = 0; i < kIn; ++i) column[i] = load(x.data + i * x.sh + j * x.sw, Full{});
    to_points<Half>(column, half[j]);
  }
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    V row[kIn], out[kIn];
#pragma GCC unroll 6
    for (int j = 0; j < kIn; ++j) row[j] = half[j][i];
    to_points<0>(row, out);
    to_points<1>(row, out + 3);
#pragma GCC unroll 6
    for (int j = 0; j < kIn; ++j) store(points + ((3 * Half + i) * kIn + j) * step, out[j], Full{});
  }
}

// points[p * step + c] for `channels`, whole vectors.
inline void transform_in(const Window& x, int64_t channels, float* points, int64_t step) {
  for (int64_t c = 0; c < channels; c += kLanes<float>) {
    const Window at{x.data + c, x.sh, x.sw};
    transform_half<0>(at, points + c, step);
    transform_half<1>(at, points + c, step);
  }
}

// One vector of the channels of a tile's 4 x 4 outputs.
inline __attribute__((always_inline)) void transform_out(const float* points, int64_t step,
                                                         V (*out)[kOut]) {
  V half[kOut][kIn];
  for (int j = 0; j < kIn; ++j) {
    V column[kIn], y[kOut];
    for (int i = 0; i < kIn; ++i) column[i] = load(points + (i * kIn + j) * step, Full{});
    from_points(column, y);
    for (int i = 0; i < kOut; ++i) half[i][j] = y[i];
  }
  for (int i = 0; i < kOut; ++i) from_points(half[i], out[i]);
}

// What one block works with.
struct Work {
  const ConvArgs& args;
  int64_t n, first, count, tiles;
  int64_t in_ld;  // channels of a transformed input
  float *in, *products, *window;
  float* values;  // a tile's 16 pixels
  float* pooled;  // a pair a tile: maximum and sum of its 16 pixels so far
  double* sums;
  const float **next_in, **next_out;
};

inline void block_in(const Work& work) {
  const int64_t step = plane(work.args.block_tiles, work.in_ld);
  for (int64_t t = 0; t < work.count; ++t) {
    const Tile tile = tile_at(work.args.out, work.first + t);
    const Window x = window_of(work.args.in, work.n, tile, work.window);
    transform_in(x, work.in_ld, work.in + t * work.in_ld, step);
  }
}

// What a product asks for on the way: four pixels of this block's output, and in the last panel
// four of the next block's input. The arithmetic unit is busy and the memory idle here, and the
// other way round in between.
struct Ahead {
  const float *in, *out;
  int64_t in_step, out_step;
};

// out[m][n] = sum over k of a[m * lda + k] * w[k * width + n] for R tiles, registers only.
template <int R, int N>
inline void multiply(const float* a, int64_t lda, const float* w, int64_t k_count, float* out,
                     const Ahead& ahead) {
  constexpr int64_t kLine = 16, kWidth = N * kLanes<float>;
  V sum[R][N]{};
  for (int64_t first = 0; first < k_count; first += kLine) {
    for (int j = 0; j < kOut; ++j) {
      __builtin_prefetch(ahead.in + j * ahead.in_step + first, 0, 2);
      if (first < kWidth) __builtin_prefetch(ahead.out + j * ahead.out_step + first, 1, 2);
    }
    const int64_t last = least(first + kLine, k_count);
    for (int64_t k = first; k < last; ++k) {
      V row[N];
      for (int j = 0; j < N; ++j) row[j] = load(w + k * kWidth + j * kLanes<float>, Full{});
      for (int i = 0; i < R; ++i) {
        const float x = a[i * lda + k];
        for (int j = 0; j < N; ++j) sum[i][j] += x * row[j];
      }
    }
  }
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < N; ++j) store(out + i * kWidth + j * kLanes<float>, sum[i][j], Full{});
}

template <int N, int R = kRows>
inline void multiply_rows(int64_t rows, const float* a, int64_t lda, const float* w, int64_t k,
                          float* out, const Ahead& ahead) {
  if constexpr (R > 1)
    if (rows < R) return multiply_rows<N, R - 1>(rows, a, lda, w, k, out, ahead);
  multiply<R, N>(a, lda, w, k, out, ahead);
}

// The rows of four pixels that products ask for, as many as there are products in a block at most.
inline void look_ahead(const Work& work) {
  const ConvArgs& args = work.args;
  for (int64_t t = 0; t < work.count; ++t) {
    const Tile next = tile_at(args.out, least(work.first + work.count + t, work.tiles - 1));
    for (int64_t i = 0; i < kIn; ++i) {
      const int64_t h = next.h - 1 + i;
      const int64_t inside = h < 0 ? 0 : least(h, args.in.h - 1);
      work.next_in[t * kIn + i] = address<float>(args.in, work.n, inside, next.w + 1);
    }
    const Tile own = tile_at(args.out, work.first + t);
    for (int64_t i = 0; i < kOut; ++i)
      work.next_out[t * kOut + i] = address<float>(args.out, work.n, own.h + i, own.w);
  }
}

template <int N>
inline void block_products(const Work& work, int64_t column) {
  const ConvArgs& args = work.args;
  constexpr int64_t kWidth = N * kLanes<float>;
  const int64_t k = args.in.c;
  const float* weight = args.packed + column * k * kPoints;
  int64_t call = 0;
  for (int64_t p = 0; p < kPoints; ++p) {
    const float* in = work.in + p * plane(args.block_tiles, work.in_ld);
    float* out = work.products + p * plane(args.block_tiles, kWidth);
    for (int64_t t = 0; t < work.count; t += kRows) {
      const float* result = work.next_out[least(call, work.count * kOut - 1)] + column;
      const Ahead ahead = column + kWidth < args.out.c
                              ? Ahead{in + t * work.in_ld, result, work.in_ld, args.out.sw}
                              : Ahead{work.next_in[least(call, work.count * kIn - 1)], result,
                                      args.in.sw, args.out.sw};
      ++call;
      multiply_rows<N>(least(kRows, work.count - t), in + t * work.in_ld, work.in_ld,
                       weight + p * k * kWidth, k, out + t * kWidth, ahead);
    }
  }
}

// All panels but the last one of the channels are as wide as the registers allow.
inline void block_products(const Work& work, int64_t column, [[maybe_unused]] int64_t width) {
#if defined(__AVX512F__)
  if (width == 1 * kConvGroup) return block_products<1>(work, column);
  if (width == 2 * kConvGroup) return block_products<2>(work, column);
  if (width == 3 * kConvGroup) return block_products<3>(work, column);
#endif
  block_products<kMaxVectors>(work, column);
}

// f(i, j) for the pixels of a tile that lie inside the map.
template <class F>
inline __attribute__((always_inline)) void pixels(const Tile& tile, F f) {
  if (tile.rows == kOut && tile.cols == kOut) {
#pragma GCC unroll 4
    for (int i = 0; i < kOut; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kOut; ++j) f(i, j);
  } else {
    for (int i = 0; i < tile.rows; ++i)
      for (int j = 0; j < tile.cols; ++j) f(i, j);
  }
}

// The tile's statistics with those of its `channels` outputs in work.values, `width` apart.
inline void add_statistics(const Work& work, int64_t t, int64_t channels, int64_t width) {
  float max[kPixels], sum[kPixels];
  pool_channels<float>({work.values, width}, channels, kPixels, max, sum);
  float* best = work.pooled + t * 2 * kPixels;
  float* total = best + kPixels;
  for (int i = 0; i < kPixels; ++i) {
    best[i] = best[i] > max[i] || best[i] != best[i] ? best[i] : max[i];
    total[i] += sum[i];
  }
}

// Outputs of a tile's channels from `column` on, `width` of them in the products.
inline void tile_out(const Work& work, int64_t t, int64_t column, int64_t width) {
  const ConvArgs& args = work.args;
  const Tile tile = tile_at(args.out, work.first + t);
  const float* products = work.products + t * width;
  const int64_t channels = least(width, args.out.c - column);
  float* out = address<float>(args.out, work.n, tile.h, tile.w) + column;
  const int64_t sh = args.out.sh, sw = args.out.sw;
  lanes<float>(channels, [&](int64_t c, auto span) {
    V y[kOut][kOut];
    transform_out(products + c, plane(args.block_tiles, width), y);
    const V bias = load(args.bias + column + c, Full{});
    const V slope = load(args.slope + column + c, Full{});
    for (int i = 0; i < kOut; ++i)
      for (int j = 0; j < kOut; ++j) y[i][j] = prelu(y[i][j] + bias, slope);
    if (args.residual.data != nullptr) {
      const float* residual = address<float>(args.residual, work.n, tile.h, tile.w) + column + c;
      pixels(tile, [&](int i, int j) {
        y[i][j] += load(residual + i * args.residual.sh + j * args.residual.sw, span);
      });
    }
    pixels(tile, [&](int i, int j) { store(out + i * sh + j * sw + c, y[i][j], span); });
    if (args.pooled == nullptr) return;
    V total{};
    pixels(tile, [&](int i, int j) { total += y[i][j]; });
    add_to<float>(work.sums + column + c, total, span);
    for (int i = 0; i < kPixels; ++i)
      store(work.values + i * width + c, y[i / kOut][i % kOut], Full{});
  });
  if (args.pooled != nullptr) add_statistics(work, t, channels, width);
}

inline void write_pooled(const Work& work) {
  const Map& map = work.args.out;
  float* max = work.args.pooled + work.n * 2 * map.h * map.w;
  float* mean = max + map.h * map.w;
  for (int64_t t = 0; t < work.count; ++t) {
    const Tile tile = tile_at(map, work.first + t);
    const float* best = work.pooled + t * 2 * kPixels;
    for (int64_t i = 0; i < tile.rows; ++i)
      for (int64_t j = 0; j < tile.cols; ++j) {
        const int64_t at = (tile.h + i) * map.w + tile.w + j;
        max[at] = best[i * kOut + j];
        mean[at] = best[kPixels + i * kOut + j] / float(map.c);
      }
  }
}

inline void clear_statistics(const Work& work) {
  zero(work.sums, work.args.out.c);
  zero(work.pooled, work.count * 2 * kPixels);
  for (int64_t t = 0; t < work.count; ++t)
    for (int i = 0; i < kPixels; ++i) work.pooled[t * 2 * kPixels + i] = -__builtin_inff();
}

}  // namespace

// Blocks [begin, end) of N * blocks.
template <class T>
void conv3x3_blocks(const ConvArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kPanel = kMaxVectors * kLanes<float>;
  const int64_t in_ld = pad<float>(args.in.c);
  const int64_t columns = (args.out.c + kConvGroup - 1) / kConvGroup * kConvGroup;
  const int64_t panel = least(kPanel, columns);
  const int64_t tiles = ((args.out.h + kOut - 1) / kOut) * ((args.out.w + kOut - 1) / kOut);
  Buffer<float> in(kPoints * plane(args.block_tiles, in_ld));
  Buffer<float> products(kPoints * plane(args.block_tiles, panel));
  Buffer<float> window(kPoints * in_ld), values(kPixels * panel);
  Buffer<const float*> next_in(args.block_tiles * kIn), next_out(args.block_tiles * kOut);
  Buffer<float> pooled(args.block_tiles * 2 * kPixels);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block % args.blocks * args.block_tiles;
    const int64_t count = least(args.block_tiles, tiles - first);
    double* sums = args.pooled == nullptr ? nullptr : args.sums + block * args.out.c;
    const Work work{args,    block / args.blocks,
                    first,   count,
                    tiles,   in_ld,
                    in,      products,
                    window,  values,
                    pooled,  sums,
                    next_in, next_out};
    if (args.pooled != nullptr) clear_statistics(work);
    look_ahead(work);
    block_in(work);
    for (int64_t column = 0; column < columns; column += kPanel) {
      const int64_t width = least(kPanel, columns - column);
      block_products(work, column, width);
      for (int64_t t = 0; t < count; ++t) tile_out(work, t, column, width);
    }
    if (args.pooled != nullptr) write_pooled(work);
  }
}

template void conv3x3_blocks<float>(const ConvArgs&, int64_t, int64_t);

}  // namespace mirnet_fast::cpu::MIRNET_ISA
