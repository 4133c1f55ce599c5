// The tiles of a block: where they lie in the map, and their way to the points of both axes and
// back.
#pragma once

#include "transforms.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

namespace {

// The pointer, without what the compiler knows of where it comes from: else it keeps an address for
// each of a tile's pixels or points, which takes more registers than a few pointers and one step.
template <class P>
inline __attribute__((always_inline)) P* hide_provenance(P* pointer) {
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
template <class T>
struct Window {
  const T* data;
  int64_t sh, sw;
};

// Where they lie if that is possible, else copied to `buffer` with zeros around the map.
template <class Rows, class Cols, class T>
inline Window<T> window_of(const ConvArgs& args, int64_t n, const Tile& tile, T* buffer) {
  const Map& in = args.in;
  const int64_t top = args.first_row + tile.h + Rows::kFirst, left = tile.w + Cols::kFirst;
  const bool inside = top >= 0 && left >= 0 && top + Rows::kIn <= in.h && left + Cols::kIn <= in.w;
  if (inside && in.c % kLanes<float> == 0) return {address<T>(in, n, top, left), in.sh, in.sw};
  const int64_t ld = pad<float>(in.c);
  for (int64_t i = 0; i < Rows::kIn; ++i)
    for (int64_t j = 0; j < Cols::kIn; ++j) {
      T* to = buffer + (i * Cols::kIn + j) * ld;
      const int64_t h = top + i, w = left + j;
      if (h < 0 || w < 0 || h >= in.h || w >= in.w) {
        zero(to, ld);
        continue;
      }
      const T* from = address<T>(in, n, h, w);
      lanes<float>(in.c,
                   [&](int64_t c, auto span) { store(to + c, load(from + c, span), AllLanes{}); });
    }
  return {buffer, Cols::kIn * ld, ld};
}

// One part of the rows of points of one vector of channels: point p goes to points + p * step.
template <class Rows, class Cols, int Part, class T>
inline __attribute__((always_inline)) void transform_part(const Window<T>& x, float* points,
                                                          int64_t step) {
  constexpr int kFirst = Part * Rows::kPart;
  constexpr int kCount =
      Rows::kPoints - kFirst < Rows::kPart ? Rows::kPoints - kFirst : Rows::kPart;
  V half[Cols::kIn][Rows::kPart];  // [column][point]
#pragma GCC unroll 8
  for (int j = 0; j < Cols::kIn; ++j) {
    V column[Rows::kIn];
    const T* const from = hide_provenance(x.data + j * x.sw);
#pragma GCC unroll 6
    for (int i = 0; i < Rows::kIn; ++i) column[i] = load(from + i * x.sh, AllLanes{});
    Rows::template to_points<Part>(column, half[j]);
  }
#pragma GCC unroll 6
  for (int i = 0; i < kCount; ++i) {
    V row[Cols::kIn], out[Cols::kPoints];
#pragma GCC unroll 8
    for (int j = 0; j < Cols::kIn; ++j) row[j] = half[j][i];
    to_all_points<Cols>(row, out);
    float* const to = hide_provenance(points + (kFirst + i) * Cols::kPoints * step);
#pragma GCC unroll 8
    for (int j = 0; j < Cols::kPoints; ++j) store(to + j * step, out[j], AllLanes{});
  }
}

// points[p * step + c] for `channels`, whole vectors.
template <class Rows, class Cols, class T>
inline void transform_in(const Window<T>& x, int64_t channels, float* points, int64_t step) {
  for (int64_t c = 0; c < channels; c += kLanes<float>) {
    const Window<T> at{x.data + c, x.sh, x.sw};
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
    const float* const from = hide_provenance(points + j * step);
    for (int i = 0; i < Rows::kPoints; ++i)
      column[i] = load(from + i * Cols::kPoints * step, AllLanes{});
    Rows::from_points(column, y);
    for (int i = 0; i < Rows::kOut; ++i) half[i][j] = y[i];
  }
  for (int i = 0; i < Rows::kOut; ++i) Cols::from_points(half[i], out[i]);
}

// What one block of maps of T works with.
template <class T>
struct Work {
  const ConvArgs& args;
  int64_t n, first, count, tiles;
  int64_t in_ld;  // channels of a transformed input
  float *in, *products;
  T* window;
  float* pooled;  // (tiles, pixels, 2, lanes): maximum and sum so far of every so many channels
  float* top;     // for To::kTop: a tile's pixels, one tile after the other
  double* sums;   // (groups of kSumTiles tiles, C')
  const T **next_in, **next_out, **next_residual;
};

template <class Rows, class Cols, class T>
inline void block_in(const Work<T>& work) {
  const int64_t step = plane(work.args.block_tiles, work.in_ld);
  for (int64_t t = 0; t < work.count; ++t) {
    const Tile tile = tile_at<Rows, Cols>(work.args.out, work.first + t);
    const Window<T> x = window_of<Rows, Cols, T>(work.args, work.n, tile, work.window);
    transform_in<Rows, Cols>(x, work.in_ld, work.in + t * work.in_ld, step);
  }
}

}  // namespace

}  // namespace mirnet_fast::cpu::MIRNET_ISA
