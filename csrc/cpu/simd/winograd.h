// Convolutions by Winograd's minimal filtering: a tile of outputs of a small filter from the
// products at a few points, where the plain way would keep the arithmetic unit busy several times
// as long.
//
// A block is about 30 tiles of 4 x 4 or 4 x 6 outputs. Its transformed input stays in the
// second-level cache while the products of a panel of output channels are made, and so does a
// panel's result until it is transformed back: nothing in between goes to memory. Along each axis
// one of the structs below says how; V is one vector of channels.
#pragma once

#include "tile.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

namespace {

using V = Vec<float>;

// Four outputs from the sums and differences of the products at +-a and +-b.
inline __attribute__((always_inline)) void outputs_of(const V* m, float a, float b, V* out) {
  const V even_a = m[0] + m[1], odd_a = a * (m[0] - m[1]);
  const V even_b = m[2] + m[3], odd_b = b * (m[2] - m[3]);
  out[0] = even_a + even_b;
  out[1] = odd_a + odd_b;
  out[2] = a * a * even_a + b * b * even_b;
  out[3] = a * a * odd_a + b * b * odd_b;
}

// Three taps, the output in their middle: F(4, 3). A part of the points is what needs no term that
// another part needs; two parts of a tile fit into the registers one by one, but not together.
//
// The points are +-a, 0, +-1/a and infinity with a = sqrt(1/2): against the usual 0, +-1, +-2 they
// halve the error, and as the product of the squares is 1 they cost no multiplication more.
struct ThreeTaps {
  static constexpr int kOut = 4, kIn = 6, kFirst = -1, kPoints = 6, kParts = 2, kPart = 3;
  static constexpr bool kOneWeight = false;
  static constexpr float kA = 0.70710678118654752f, kB = 1.4142135623730950f;
  static constexpr float kA2 = 0.5f, kB2 = 2.0f;
  // The filter at the points, times what the transforms of the tiles leave out.
  static constexpr int kTaps = 3, kTap[] = {0, 1, 2};
  static constexpr float kFilter[][kTaps] = {
      {-1 / 1.5f, -kA / 1.5f, -kA2 / 1.5f}, {-1 / 1.5f, kA / 1.5f, -kA2 / 1.5f}, {1, 0, 0},
      {1 / 6.f, kB / 6, kB2 / 6},           {1 / 6.f, -kB / 6, kB2 / 6},         {0, 0, 1}};

  template <int Part>
  static inline __attribute__((always_inline)) void to_points(const V* x, V* out) {
    constexpr float kOther = Part == 0 ? kB2 : kA2;
    const V even = x[4] - kOther * x[2], odd = (Part == 0 ? kA : kB) * (x[3] - kOther * x[1]);
    out[0] = even + odd;
    out[1] = even - odd;
    if constexpr (Part == 0)
      out[2] = (x[0] + x[4]) - (kA2 + kB2) * x[2];
    else
      out[2] = (x[1] + x[5]) - (kA2 + kB2) * x[3];
  }

  static inline __attribute__((always_inline)) void from_points(const V* m, V* out) {
    const V pairs[4] = {m[0], m[1], m[3], m[4]};
    outputs_of(pairs, kA, kB, out);
    out[0] += m[2];
    out[3] += m[5];
  }
};

// The same for six outputs: F(6, 3) with the points +-1/2, +-1, +-2, 0 and infinity. On both axes
// it would lose too much accuracy in float32; beside F(4, 3) as above it has the error that the
// usual points have for F(4, 3) on both.
struct ThreeTapsWide {
  static constexpr int kOut = 6, kIn = 8, kFirst = -1, kPoints = 8, kParts = 1, kPart = 8;
  static constexpr bool kOneWeight = false;
  static constexpr int kTaps = 3, kTap[] = {0, 1, 2};
  static constexpr float kFilter[][kTaps] = {{1 / 1.40625f, 0.5f / 1.40625f, 0.25f / 1.40625f},
                                             {1 / 1.40625f, -0.5f / 1.40625f, 0.25f / 1.40625f},
                                             {-1 / 4.5f, -1 / 4.5f, -1 / 4.5f},
                                             {-1 / 4.5f, 1 / 4.5f, -1 / 4.5f},
                                             {1 / 90.f, 2 / 90.f, 4 / 90.f},
                                             {1 / 90.f, -2 / 90.f, 4 / 90.f},
                                             {1, 0, 0},
                                             {0, 0, 1}};

  // Values at +-a: what vanishes at the other two pairs, whose squares have this sum and product.
  static inline __attribute__((always_inline)) void pair(const V* x, float a, float sum,
                                                         float product, V* out) {
    const V even = x[6] - sum * x[4] + product * x[2];
    const V odd = a * (x[5] - sum * x[3] + product * x[1]);
    out[0] = even + odd;
    out[1] = even - odd;
  }

  template <int>
  static inline __attribute__((always_inline)) void to_points(const V* x, V* out) {
    pair(x, 0.5f, 5, 4, out);
    pair(x, 1, 4.25f, 1, out + 2);
    pair(x, 2, 1.25f, 0.25f, out + 4);
    out[6] = (x[0] - x[6]) + 5.25f * (x[4] - x[2]);
    out[7] = (x[7] - x[1]) + 5.25f * (x[3] - x[5]);
  }

  static inline __attribute__((always_inline)) void from_points(const V* m, V* out) {
    const V even_a = m[0] + m[1], odd_a = m[0] - m[1];
    const V even_b = m[2] + m[3], odd_b = m[2] - m[3];
    const V even_c = m[4] + m[5], odd_c = m[4] - m[5];
    out[0] = even_a + even_b + even_c + m[6];
    out[1] = 0.5f * odd_a + odd_b + 2 * odd_c;
    out[2] = 0.25f * even_a + even_b + 4 * even_c;
    out[3] = 0.125f * odd_a + odd_b + 8 * odd_c;
    out[4] = 0.0625f * even_a + even_b + 16 * even_c;
    out[5] = 0.03125f * odd_a + odd_b + 32 * odd_c + m[7];
  }
};

// Two taps, the output at the first of them: F(4, 2) with the points +-a, infinity, +-b.
struct TwoTaps {
  static constexpr int kOut = 4, kIn = 5, kFirst = 0, kPoints = 5, kParts = 2, kPart = 3;
  static constexpr bool kOneWeight = false;
  static constexpr float kA = 0.5f, kB = 1.25f;
  // An odd output reads this input by the filter's last tap and the next by its first.
  static constexpr int kTaps = 2, kTap[] = {2, 0};
  static constexpr float kAtA = 2 * kA * (kA * kA - kB * kB), kAtB = 2 * kB * (kB * kB - kA * kA);
  static constexpr float kFilter[][kTaps] = {{1 / kAtA, kA / kAtA},
                                             {-1 / kAtA, kA / kAtA},
                                             {0, 1},
                                             {1 / kAtB, kB / kAtB},
                                             {-1 / kAtB, kB / kAtB}};

  template <int Part>
  static inline __attribute__((always_inline)) void to_points(const V* x, V* out) {
    constexpr float kOther = Part == 0 ? kB * kB : kA * kA;
    const V even = x[3] - kOther * x[1], odd = (Part == 0 ? kA : kB) * (x[2] - kOther * x[0]);
    out[0] = even + odd;
    out[1] = even - odd;
    if constexpr (Part == 0)
      out[2] = x[4] - (kA * kA + kB * kB) * x[2] + (kA * kA * kB * kB) * x[0];
  }

  static inline __attribute__((always_inline)) void from_points(const V* m, V* out) {
    const V pairs[4] = {m[0], m[1], m[3], m[4]};
    outputs_of(pairs, kA, kB, out);
    out[3] += m[2];
  }
};

// One tap, at the output: the values themselves, all with the same weight.
struct OneTap {
  static constexpr int kOut = 4, kIn = 4, kFirst = 0, kPoints = 4, kParts = 1, kPart = 4;
  static constexpr bool kOneWeight = true;
  static constexpr int kTaps = 1, kTap[] = {1};
  static constexpr float kFilter[][kTaps] = {{1}};

  template <int>
  static inline __attribute__((always_inline)) void to_points(const V* x, V* out) {
    for (int i = 0; i < kIn; ++i) out[i] = x[i];
  }
  static inline __attribute__((always_inline)) void from_points(const V* m, V* out) {
    for (int i = 0; i < kOut; ++i) out[i] = m[i];
  }
};

template <class Axis>
inline __attribute__((always_inline)) void to_all_points(const V* x, V* out) {
  Axis::template to_points<0>(x, out);
  if constexpr (Axis::kParts > 1) Axis::template to_points<1>(x, out + Axis::kPart);
}

// The pointer, as one that the compiler does not know the origin of: a few of these with the small
// multiples of one step are fewer registers than an address for each of a tile's pixels or points.
template <class P>
inline __attribute__((always_inline)) P* origin(P* pointer) {
  __asm__("" : "+r"(pointer));
  return pointer;
}

template <class Rows, class Cols>
constexpr int kPixels = Rows::kOut * Cols::kOut;

// Planes of one point each, a cache line further apart than their contents: at a power of two all
// lines of a tile would compete for the same few places of the first-level cache.
inline int64_t plane(int64_t tiles, int64_t ld) { return tiles * ld + 16; }

struct Tile {
  int64_t h, w;        // of its first output pixel
  int64_t rows, cols;  // of its output pixels that lie inside the map
};

template <class Rows, class Cols>
inline Tile tile_at(const Map& out, int64_t index) {
  const int64_t across = (out.w + Cols::kOut - 1) / Cols::kOut;
  const int64_t h = index / across * Rows::kOut, w = index % across * Cols::kOut;
  return {h, w, least(Rows::kOut, out.h - h), least(Cols::kOut, out.w - w)};
}

// The pixels that a tile reads, whole vectors of channels: pixel (i, j) at data + i * sh + j * sw.
struct Window {
  const float* data;
  int64_t sh, sw;
};

// Where they lie if that is possible, else copied to `buffer` with zeros around the map.
template <class Rows, class Cols>
inline Window window_of(const ConvArgs& args, int64_t n, const Tile& tile, float* buffer) {
  const Map& in = args.in;
  const int64_t top = args.first_row + tile.h + Rows::kFirst, left = tile.w + Cols::kFirst;
  const bool inside = top >= 0 && left >= 0 && top + Rows::kIn <= in.h && left + Cols::kIn <= in.w;
  if (inside && in.c % kLanes<float> == 0) return {address<float>(in, n, top, left), in.sh, in.sw};
  const int64_t ld = pad<float>(in.c);
  for (int64_t i = 0; i < Rows::kIn; ++i)
    for (int64_t j = 0; j < Cols::kIn; ++j) {
      float* to = buffer + (i * Cols::kIn + j) * ld;
      const int64_t h = top + i, w = left + j;
      if (h < 0 || w < 0 || h >= in.h || w >= in.w) {
        zero(to, ld);
        continue;
      }
      const float* from = address<float>(in, n, h, w);
      lanes<float>(in.c,
                   [&](int64_t c, auto span) { store(to + c, load(from + c, span), Full{}); });
    }
  return {buffer, Cols::kIn * ld, ld};
}

// One part of the rows of points of one vector of channels: point p goes to points + p * step.
template <class Rows, class Cols, int Part>
inline __attribute__((always_inline)) void transform_part(const Window& x, float* points,
                                                          int64_t step) {
  constexpr int kFirst = Part * Rows::kPart;
  constexpr int kCount =
      Rows::kPoints - kFirst < Rows::kPart ? Rows::kPoints - kFirst : Rows::kPart;
  V half[Cols::kIn][Rows::kPart];  // [column][point]
#pragma GCC unroll 8
  for (int j = 0; j < Cols::kIn; ++j) {
    V column[Rows::kIn];
    const float* const from = origin(x.data + j * x.sw);
#pragma GCC unroll 6
    for (int i = 0; i < Rows::kIn; ++i) column[i] = load(from + i * x.sh, Full{});
    Rows::template to_points<Part>(column, half[j]);
  }
#pragma GCC unroll 6
  for (int i = 0; i < kCount; ++i) {
    V row[Cols::kIn], out[Cols::kPoints];
#pragma GCC unroll 8
    for (int j = 0; j < Cols::kIn; ++j) row[j] = half[j][i];
    to_all_points<Cols>(row, out);
    float* const to = origin(points + (kFirst + i) * Cols::kPoints * step);
#pragma GCC unroll 8
    for (int j = 0; j < Cols::kPoints; ++j) store(to + j * step, out[j], Full{});
  }
}

// points[p * step + c] for `channels`, whole vectors.
template <class Rows, class Cols>
inline void transform_in(const Window& x, int64_t channels, float* points, int64_t step) {
  for (int64_t c = 0; c < channels; c += kLanes<float>) {
    const Window at{x.data + c, x.sh, x.sw};
    transform_part<Rows, Cols, 0>(at, points + c, step);
    if constexpr (Rows::kParts > 1) transform_part<Rows, Cols, 1>(at, points + c, step);
  }
}

// One vector of the channels of a tile's outputs.
template <class Rows, class Cols>
inline __attribute__((always_inline)) void transform_out(const float* points, int64_t step,
                                                         V (*out)[Cols::kOut]) {
  V half[Rows::kOut][Cols::kPoints];
  for (int j = 0; j < Cols::kPoints; ++j) {
    V column[Rows::kPoints], y[Rows::kOut];
    const float* const from = origin(points + j * step);
    for (int i = 0; i < Rows::kPoints; ++i)
      column[i] = load(from + i * Cols::kPoints * step, Full{});
    Rows::from_points(column, y);
    for (int i = 0; i < Rows::kOut; ++i) half[i][j] = y[i];
  }
  for (int i = 0; i < Rows::kOut; ++i) Cols::from_points(half[i], out[i]);
}

// What one block works with.
struct Work {
  const ConvArgs& args;
  int64_t n, first, count, tiles;
  int64_t in_ld;  // channels of a transformed input
  float *in, *products, *window;
  float* pooled;  // (tiles, pixels, 2, lanes): maximum and sum so far of every so many channels
  float* top;     // a tile's pixels, one tile after the other; null: to the map
  double* sums;   // (groups of kSumTiles tiles, C')
  const float **next_in, **next_out, **next_residual;
};

template <class Rows, class Cols>
inline void block_in(const Work& work) {
  const int64_t step = plane(work.args.block_tiles, work.in_ld);
  for (int64_t t = 0; t < work.count; ++t) {
    const Tile tile = tile_at<Rows, Cols>(work.args.out, work.first + t);
    const Window x = window_of<Rows, Cols>(work.args, work.n, tile, work.window);
    transform_in<Rows, Cols>(x, work.in_ld, work.in + t * work.in_ld, step);
  }
}

// What a product asks for on the way: its share of the weights that are next, and in the last panel
// some pixels of the next block's input. The arithmetic unit is busy and the memory idle here, and
// the other way round in between.
struct Ahead {
  const float* weights;
  int64_t lines;    // of `weights` for 16 inputs
  const float* in;  // or null
  int64_t in_step;
};

constexpr int64_t kLine = 16;  // of the cache, in values

// Asks for a cache line of each of a row of pixels, to write it if `Write`. Always inline, as
// prefetch_tile is.
template <int Pixels, int Write>
inline __attribute__((always_inline)) void ask_for_pixels(const float* pixel, int64_t step) {
  for (int j = 0; j < Pixels; ++j) __builtin_prefetch(pixel + j * step, Write, 2);
}

// out[m][n] = sum over k of a[m * lda + k] * w[k * width + n] for R tiles, registers only. On its
// own, or the loop gets its place and its registers from what surrounds it.
template <int R, int N, int Pixels>
__attribute__((noinline, aligned(64))) void multiply(const float* a, int64_t lda, const float* w,
                                                     int64_t k_count, float* out,
                                                     const Ahead& ahead) {
  constexpr int64_t kWidth = N * kLanes<float>;
  // Not `sum[R][N]{}`, nor loops that may not run at all: either way the sums would be in memory.
  V sum[R][N];
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < N; ++j) sum[i][j] = V{};
  const float *next_weights = ahead.weights, *next_in = ahead.in;
  int64_t first = 0;
  do {
    if (next_in != nullptr) {
      ask_for_pixels<Pixels, 0>(next_in, ahead.in_step);
      next_in += kLine;
    }
    for (int64_t j = 0; j < ahead.lines; ++j, next_weights += kLine)
      __builtin_prefetch(next_weights, 0, 2);
    // The rows of the product after this one, into the first-level cache.
    for (int j = 0; j < R; ++j) __builtin_prefetch(a + (R + j) * lda + first, 0, 3);
    int64_t k = first;
    first = least(first + kLine, k_count);
    do {
      V row[N];
      for (int j = 0; j < N; ++j) row[j] = load(w + k * kWidth + j * kLanes<float>, Full{});
      for (int i = 0; i < R; ++i) {
        const float x = a[i * lda + k];
        for (int j = 0; j < N; ++j) sum[i][j] += x * row[j];
      }
    } while (++k < first);
  } while (first < k_count);
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < N; ++j) store(out + i * kWidth + j * kLanes<float>, sum[i][j], Full{});
}

template <int N, int Pixels, int R = kRows>
inline void multiply_rows(int64_t rows, const float* a, int64_t lda, const float* w, int64_t k,
                          float* out, const Ahead& ahead) {
  if constexpr (R > 1)
    if (rows < R) return multiply_rows<N, Pixels, R - 1>(rows, a, lda, w, k, out, ahead);
  multiply<R, N, Pixels>(a, lda, w, k, out, ahead);
}

// The rows of pixels that products ask for, as many as there are products in a block at most.
template <class Rows, class Cols>
inline void look_ahead(const Work& work) {
  const ConvArgs& args = work.args;
  for (int64_t t = 0; t < work.count; ++t) {
    const Tile next =
        tile_at<Rows, Cols>(args.out, least(work.first + work.count + t, work.tiles - 1));
    for (int64_t i = 0; i < Rows::kIn; ++i) {
      const int64_t h = args.first_row + next.h + Rows::kFirst + i;
      const int64_t inside = h < 0 ? 0 : least(h, args.in.h - 1);
      work.next_in[t * Rows::kIn + i] =
          address<float>(args.in, work.n, inside, next.w + Cols::kFirst + Cols::kIn - Cols::kOut);
    }
    const Tile own = tile_at<Rows, Cols>(args.out, work.first + t);
    for (int64_t i = 0; i < Rows::kOut; ++i) {
      work.next_out[t * Rows::kOut + i] = address<float>(args.out, work.n, own.h + i, own.w);
      work.next_residual[t * Rows::kOut + i] =
          args.residual.data == nullptr ? nullptr
                                        : address<float>(args.residual, work.n, own.h + i, own.w);
    }
  }
}

// How many weights there are for the points of both axes.
template <class Rows, class Cols>
constexpr int kWeights =
    (Rows::kOneWeight ? 1 : Rows::kPoints) * (Cols::kOneWeight ? 1 : Cols::kPoints);

// A unit of packing: the filters of one panel of outputs for a few inputs.
struct PackUnit {
  int64_t column, width, first, count;
};

inline PackUnit pack_unit(const ConvPackArgs& args, int64_t unit) {
  const int64_t columns = (args.outputs + kConvGroup - 1) / kConvGroup * kConvGroup;
  const int64_t chunks = (args.inputs + kPackInputs - 1) / kPackInputs;
  constexpr int64_t panel = kMaxVectors * kLanes<float>;
  const int64_t column = unit / chunks * panel, first = unit % chunks * kPackInputs;
  return {column, least(panel, columns - column), first, least(kPackInputs, args.inputs - first)};
}

// The taps of a unit's filters: [input][tap][output of the panel].
struct PackedTaps {
  static constexpr int64_t kPanel = kMaxVectors * kLanes<float>;
  float values[kPackInputs * 9 * kPanel];

  PackedTaps(const ConvPackArgs& args, const PackUnit& unit) {
    for (int64_t v = 0; v < unit.width; v += kLanes<float>) {
      const int64_t output = unit.column + v;
      const float* from =
          args.weight + output * args.output_stride + unit.first * args.input_stride;
      if (args.input_stride == 9 && output + kLanes<float> <= args.outputs &&
          9 * unit.count >= kLanes<float>) {
        turned(from, args.output_stride, 9 * unit.count, values + v);
        continue;
      }
      for (int64_t c = 0; c < unit.count; ++c, from += args.input_stride) {
        float* to = values + 9 * c * kPanel + v;
        // Whole vectors of a filter's nine taps end within the weight, but for its last ones.
        const int64_t last = unit.first + c + 1 < args.inputs ? 0 : 1;
        if (args.output_stride == 9 && output + kLanes<float> + last <= args.outputs)
          turned(from, 9, 9, to);
        else
          one_by_one(args, output, from, to);
      }
    }
  }

 private:
  // to[i * kPanel + j] = from[j * stride + i] for the outputs j of a vector and `count` taps i.
  // Fewer taps than lanes: what lies behind them is read too.
  static void turned(const float* from, int64_t stride, int64_t count, float* to) {
    constexpr int64_t kAll = kLanes<float>;
    for (int64_t i = 0; i < count; i += kAll) {
      const int64_t first = count < kAll ? 0 : least(i, count - kAll);
      V v[kAll];
      load_turned<float>(from + first, stride, v);
      for (int64_t r = 0; r < least(kAll, count - first); ++r)
        store(to + (first + r) * kPanel, v[r], Full{});
    }
  }

  static void one_by_one(const ConvPackArgs& args, int64_t output, const float* from, float* to) {
    for (int64_t j = 0; j < kLanes<float>; ++j)
      for (int i = 0; i < 9; ++i)
        to[i * kPanel + j] = output + j < args.outputs ? from[j * args.output_stride + i] : 0.0f;
  }
};

// The filters at row point P and all points of the columns: (C, panel) for each. All inputs of one
// row point are written before the next one's: those lie a power of two apart, and would compete
// for places in the cache.
template <class Rows, class Cols, int P>
inline void pack_row(const ConvPackArgs& args, const PackUnit& unit, const PackedTaps& taps,
                     float* at) {
  constexpr int kColPoints = Cols::kOneWeight ? 1 : Cols::kPoints;
  const int64_t step = args.inputs * unit.width;
  for (int64_t c = 0; c < unit.count; ++c)
    for (int64_t v = 0; v < unit.width; v += kLanes<float>) {
      const float* tap = taps.values + 9 * c * PackedTaps::kPanel + v;
      V half[Cols::kTaps];
#pragma GCC unroll 3
      for (int j = 0; j < Cols::kTaps; ++j) {
        half[j] = V{};
#pragma GCC unroll 3
        for (int i = 0; i < Rows::kTaps; ++i)
          if (Rows::kFilter[P][i] != 0)
            half[j] += Rows::kFilter[P][i] *
                       load(tap + (Rows::kTap[i] * 3 + Cols::kTap[j]) * PackedTaps::kPanel, Full{});
      }
#pragma GCC unroll 8
      for (int q = 0; q < kColPoints; ++q) {
        V value{};
#pragma GCC unroll 3
        for (int j = 0; j < Cols::kTaps; ++j)
          if (Cols::kFilter[q][j] != 0) value += Cols::kFilter[q][j] * half[j];
        store(at + q * step + c * unit.width + v, value, Full{});
      }
    }
  if constexpr (P + 1 < (Rows::kOneWeight ? 1 : Rows::kPoints))
    pack_row<Rows, Cols, P + 1>(args, unit, taps, at + kColPoints * step);
}

// A unit's filters at the points of both axes, the panels one by one.
template <class Rows, class Cols>
inline void pack_weights(const ConvPackArgs& args, const PackUnit& unit, const PackedTaps& taps,
                         float* packed) {
  pack_row<Rows, Cols, 0>(
      args, unit, taps,
      packed + unit.column * args.inputs * kWeights<Rows, Cols> + unit.first * unit.width);
}

// f(p, weight) for the points: those of one weight after each other.
template <class Rows, class Cols, class F>
inline void each_point(F f) {
  constexpr int kRowWeights = Rows::kOneWeight ? 1 : Rows::kPoints;
  constexpr int kColWeights = Cols::kOneWeight ? 1 : Cols::kPoints;
  for (int weight = 0; weight < kRowWeights * kColWeights; ++weight)
    for (int i = weight / kColWeights; i < Rows::kPoints; i += kRowWeights)
      for (int j = weight % kColWeights; j < Cols::kPoints; j += kColWeights)
        f(i * Cols::kPoints + j, weight);
}

// Asks for what a block writes of a panel, and what is added to it: one line of a tile's row.
template <class Rows, class Cols, int64_t Lines>
inline __attribute__((always_inline)) void ask_for_outputs(const Work& work, int64_t column,
                                                           int64_t index) {
  const int64_t row = index / Lines, at = column + index % Lines * kLine;
  if (row >= work.count * Rows::kOut) return;
  ask_for_pixels<Cols::kOut, 1>(work.next_out[row] + at, work.args.out.sw);
  if (work.next_residual[row] != nullptr)
    ask_for_pixels<Cols::kOut, 0>(work.next_residual[row] + at, work.args.residual.sw);
}

template <class Rows, class Cols, int N>
inline void panel_products(const Work& work, int64_t column) {
  const ConvArgs& args = work.args;
  constexpr int64_t kWidth = N * kLanes<float>;
  constexpr int kAll = kWeights<Rows, Cols>, kSharing = Rows::kPoints * Cols::kPoints / kAll;
  const int64_t k = args.in.c, each = k * kWidth;
  const float* weights = args.packed + column * k * kAll;
  const RowGroups groups(work.count);
  const int64_t calls = groups.count * kSharing;
  const int64_t lines = (kWidth + calls - 1) / calls;
  // Between the products, not in them: there it would take them registers.
  constexpr int64_t kLines = (kWidth + kLine - 1) / kLine;
  constexpr int64_t kPoints = Rows::kPoints * Cols::kPoints;
  constexpr int64_t kAsked = (kLines * Rows::kOut * kRows + kPoints - 1) / kPoints;
  int64_t call = 0;
  each_point<Rows, Cols>([&](int64_t p, int64_t index) {
    const float* in = work.in + p * plane(args.block_tiles, work.in_ld);
    float* out = work.products + p * plane(args.block_tiles, kWidth);
    for (int64_t group = 0; group < groups.count; ++group) {
      const int64_t rows = groups.rows(group);
      for (int64_t i = 0; i < kAsked; ++i)
        ask_for_outputs<Rows, Cols, kLines>(work, column, call * kAsked + i);
      Ahead ahead{weights + (index + 1) * each + (call - index * calls) * lines * k, lines, nullptr,
                  args.in.sw};
      if (column + kWidth >= args.out.c) {
        if (call < work.count * Rows::kIn) ahead.in = work.next_in[call];
        if (index + 1 == kAll) ahead.weights -= (index + 1) * each + column * k * kAll;
      }
      ++call;
      multiply_rows<N, Cols::kOut>(rows, in, work.in_ld, weights + index * each, k, out, ahead);
      in += rows * work.in_ld;
      out += rows * kWidth;
    }
  });
}

// All panels but the last one of the channels are as wide as the registers allow.
template <class Rows, class Cols>
inline void panel_products(const Work& work, int64_t column, [[maybe_unused]] int64_t width) {
#if defined(__AVX512F__)
  if (width == 1 * kConvGroup) return panel_products<Rows, Cols, 1>(work, column);
  if (width == 2 * kConvGroup) return panel_products<Rows, Cols, 2>(work, column);
  if (width == 3 * kConvGroup) return panel_products<Rows, Cols, 3>(work, column);
#endif
  panel_products<Rows, Cols, kMaxVectors>(work, column);
}

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
      if constexpr (__is_same(Span, Part))
        for (int64_t l = span.count; l < kAll; ++l) high[l] = -__builtin_inff(), value[l] = 0;
      const V best = load(at, Full{});
      store(at, select<float>(high > best, high, best), Full{});
      store(at + kAll, load(at + kAll, Full{}) + value, Full{});
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
template <class Rows, class Cols>
__attribute__((noinline)) void plain_outputs(const Work& work, const Tile& tile, int64_t c,
                                             V (*y)[Cols::kOut]) {
  const ConvArgs& args = work.args;
  const Map& in = args.in;
  const int64_t channels = least(kLanes<float>, args.out.c - c);
  for (int i = 0; i < Rows::kOut; ++i)
    for (int j = 0; j < Cols::kOut; ++j) y[i][j] = V{};
  for (int64_t k = 0; k < in.c; ++k)
    for (int s = 0; s < Rows::kTaps; ++s)
      for (int t = 0; t < Cols::kTaps; ++t) {
        const float* tap = args.weight + k * args.input_stride + c * args.output_stride +
                           Rows::kTap[s] * 3 + Cols::kTap[t];
        V weight{};
        for (int64_t l = 0; l < channels; ++l) weight[l] = tap[l * args.output_stride];
        for (int i = 0; i < tile.rows; ++i)
          for (int j = 0; j < tile.cols; ++j) {
            const int64_t h = args.first_row + tile.h + i + Rows::kFirst + s;
            const int64_t w = tile.w + j + Cols::kFirst + t;
            if (h < 0 || w < 0 || h >= in.h || w >= in.w) continue;
            y[i][j] += address<float>(in, work.n, h, w)[k] * weight;
          }
      }
}

// Outputs of a tile's channels from `column` on, `width` of them in the products.
template <class Rows, class Cols>
inline void tile_out(const Work& work, int64_t t, int64_t column, int64_t width) {
  constexpr int kAll = kPixels<Rows, Cols>, kOut = Cols::kOut;
  const ConvArgs& args = work.args;
  const Tile tile = tile_at<Rows, Cols>(args.out, work.first + t);
  const float* products = work.products + t * width;
  const int64_t channels = least(width, args.out.c - column);
  float* out = address<float>(args.out, work.n, tile.h, tile.w) + column;
  int64_t sh = args.out.sh, sw = args.out.sw;
  if (work.top != nullptr) {
    sw = pad<float>(args.out.c);
    sh = kOut * sw;
    out = work.top + t * kAll * sw + column;
  }
  lanes<float>(channels, [&](int64_t c, auto span) {
    V y[Rows::kOut][kOut];
    transform_out<Rows, Cols>(products + c, plane(args.block_tiles, width), y);
    if (__builtin_expect(is_special<Rows, Cols>(y), 0))
      plain_outputs<Rows, Cols>(work, tile, column + c, y);
    if (args.bias != nullptr) {
      const V bias = load(args.bias + column + c, Full{});
      for (int i = 0; i < Rows::kOut; ++i)
        for (int j = 0; j < kOut; ++j) y[i][j] += bias;
    }
    if (args.slope != nullptr) {
      const V slope = load(args.slope + column + c, Full{});
      for (int i = 0; i < Rows::kOut; ++i)
        for (int j = 0; j < kOut; ++j) y[i][j] = prelu(y[i][j], slope);
    }
    if (args.residual.data != nullptr) {
      const float* residual = address<float>(args.residual, work.n, tile.h, tile.w) + column + c;
      const float* rows[Rows::kOut];
      for (int i = 0; i < Rows::kOut; ++i) rows[i] = origin(residual + i * args.residual.sh);
      pixels<Rows, Cols>(tile, [&](int i, int j) __attribute__((always_inline)) {
        y[i][j] += load(rows[i] + j * args.residual.sw, span);
      });
    }
    float* rows[Rows::kOut];
    for (int i = 0; i < Rows::kOut; ++i) rows[i] = origin(out + i * sh + c);
    pixels<Rows, Cols>(tile, [&](int i, int j) __attribute__((always_inline)) {
      store(rows[i] + j * sw, y[i][j], span);
    });
    if (args.pooled.data == nullptr) return;
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
    for (int64_t j = 0; j < kAll; ++j) v[j] = load(from + least(i + j, count - 1) * step, Full{});
    reduce_each<float>(v, op);
    store(to + i, v[0], Full{});
  }
}

template <class Rows, class Cols>
inline void write_pooled(const Work& work) {
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
        keep_nan(address<float>(map, work.n, tile.h + i, tile.w + j), map.c, sum, max + at);
      }
  }
}

template <class Rows, class Cols>
inline void clear_statistics(const Work& work) {
  constexpr int64_t kAll = kPixels<Rows, Cols>, kEach = 2 * kLanes<float>;
  for (int64_t i = 0; i < work.count * kAll; ++i) {
    store(work.pooled + i * kEach, splat<float>(-__builtin_inff()), Full{});
    store(work.pooled + i * kEach + kLanes<float>, V{}, Full{});
  }
}

inline int64_t panel_of(int64_t columns) { return least(kMaxVectors * kLanes<float>, columns); }

inline int64_t columns_of(const ConvArgs& args) {
  return (args.out.c + kConvGroup - 1) / kConvGroup * kConvGroup;
}

// The memory of one thread, for the tiles that have the most inputs, points and outputs.
template <class Rows, class Cols>
struct Scratch {
  Buffer<float> in, products, window, pooled;
  Buffer<const float*> next_in, next_out, next_residual;

  explicit Scratch(const ConvArgs& args)
      : in(Rows::kPoints * Cols::kPoints * plane(args.block_tiles, pad<float>(args.in.c))),
        products(Rows::kPoints * Cols::kPoints *
                 plane(args.block_tiles, panel_of(columns_of(args)))),
        window(Rows::kIn * Cols::kIn * pad<float>(args.in.c)),
        pooled(args.pooled.data == nullptr
                   ? 0
                   : args.block_tiles * kPixels<Rows, Cols> * 2 * kLanes<float>),
        next_in(args.block_tiles * Rows::kIn),
        next_out(args.block_tiles * Rows::kOut),
        next_residual(args.block_tiles * Rows::kOut) {}
};

template <class Rows, class Cols, class S>
inline void convolve_block(const ConvArgs& args, int64_t block, const S& scratch,
                           float* top = nullptr) {
  const int64_t columns = columns_of(args), tiles = tiles_of(args);
  static_assert(Rows::kOut == kTileRows);
  const int64_t first = block % args.blocks * args.block_tiles;
  const int64_t count = least(args.block_tiles, tiles - first);
  const int64_t n = block / args.blocks;
  double* sums = nullptr;
  if (args.pooled.data != nullptr)
    sums = args.sums + (n * sum_groups(tiles) + first / kSumTiles) * args.out.c;
  const Work work{args,
                  n,
                  first,
                  count,
                  tiles,
                  pad<float>(args.in.c),
                  scratch.in,
                  scratch.products,
                  scratch.window,
                  scratch.pooled,
                  top,
                  sums,
                  scratch.next_in,
                  scratch.next_out,
                  scratch.next_residual};
  if (args.pooled.data != nullptr) clear_statistics<Rows, Cols>(work);
  look_ahead<Rows, Cols>(work);
  block_in<Rows, Cols>(work);
  for (int64_t column = 0; column < columns; column += panel_of(columns)) {
    const int64_t width = panel_of(columns - column);
    panel_products<Rows, Cols>(work, column, width);
    for (int64_t t = 0; t < count; ++t) tile_out<Rows, Cols>(work, t, column, width);
  }
  if (args.pooled.data != nullptr) write_pooled<Rows, Cols>(work);
}

}  // namespace

}  // namespace mirnet_fast::cpu::MIRNET_ISA
