// The products of a block at every point, a panel of output channels at a time.
#pragma once

#include "../gemm.h"
#include "tiles.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

namespace {

// What a product prefetches: its share of the weights that are next, and in the last panel some
// pixels of the next block's input. Here the arithmetic unit is busy and the memory idle; between
// the products it is the other way round.
struct Prefetches {
  const float* weights;
  int64_t lines;             // of `weights` for 16 inputs
  const char* in;            // or null
  int64_t in_step, in_line;  // bytes, the latter of 16 inputs
};

constexpr int64_t kLine = 16;  // of the cache, in values

// Prefetches a cache line of each of a row of pixels, to write it if `Write`. Always inline, as
// prefetch_tile is.
template <int Pixels, int Write, class P>
inline __attribute__((always_inline)) void prefetch_pixels(const P* pixel, int64_t step) {
  for (int j = 0; j < Pixels; ++j) __builtin_prefetch(pixel + j * step, Write, 2);
}

// out[m][n] = sum over k of a[m * lda + k] * w[k * width + n] for R tiles, registers only. Not
// inline, or the loop's alignment and its registers would depend on what surrounds it.
template <int R, int N, int Pixels>
__attribute__((noinline, aligned(64))) void multiply(const float* a, int64_t lda, const float* w,
                                                     int64_t k_count, float* out,
                                                     const Prefetches& prefetches) {
  constexpr int64_t kWidth = N * kLanes<float>;
  // Not `sum[R][N]{}`, nor loops that may not run at all: either way the sums would be in memory.
  V sum[R][N];
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < N; ++j) sum[i][j] = V{};
  const float* next_weights = prefetches.weights;
  const char* next_in = prefetches.in;
  int64_t first = 0;
  do {
    if (next_in != nullptr) {
      prefetch_pixels<Pixels, 0>(next_in, prefetches.in_step);
      next_in += prefetches.in_line;
    }
    for (int64_t j = 0; j < prefetches.lines; ++j, next_weights += kLine)
      __builtin_prefetch(next_weights, 0, 2);
    // The rows of the product after this one, into the first-level cache.
    for (int j = 0; j < R; ++j) __builtin_prefetch(a + (R + j) * lda + first, 0, 3);
    int64_t k = first;
    first = least(first + kLine, k_count);
    do {
      V row[N];
      for (int j = 0; j < N; ++j) row[j] = load(w + k * kWidth + j * kLanes<float>, AllLanes{});
      for (int i = 0; i < R; ++i) {
        const float x = a[i * lda + k];
        for (int j = 0; j < N; ++j) sum[i][j] += x * row[j];
      }
    } while (++k < first);
  } while (first < k_count);
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < N; ++j) store(out + i * kWidth + j * kLanes<float>, sum[i][j], AllLanes{});
}

template <int N, int Pixels, int R = kRows>
inline void multiply_rows(int64_t rows, const float* a, int64_t lda, const float* w, int64_t k,
                          float* out, const Prefetches& prefetches) {
  if constexpr (R > 1)
    if (rows < R) return multiply_rows<N, Pixels, R - 1>(rows, a, lda, w, k, out, prefetches);
  multiply<R, N, Pixels>(a, lda, w, k, out, prefetches);
}

// The rows of pixels that products prefetch, at most as many as there are products in a block.
template <class Rows, class Cols, class T>
inline void find_prefetches(const Work<T>& work) {
  const ConvArgs& args = work.args;
  for (int64_t t = 0; t < work.count; ++t) {
    const Tile next =
        tile_at<Rows, Cols>(args.out, least(work.first + work.count + t, work.tiles - 1));
    for (int64_t i = 0; i < Rows::kIn; ++i) {
      const int64_t h = args.first_row + next.h + Rows::kFirst + i;
      const int64_t inside = h < 0 ? 0 : least(h, args.in.h - 1);
      work.next_in[t * Rows::kIn + i] =
          address<T>(args.in, work.n, inside, next.w + Cols::kFirst + Cols::kIn - Cols::kOut);
    }
    const Tile own = tile_at<Rows, Cols>(args.out, work.first + t);
    for (int64_t i = 0; i < Rows::kOut; ++i) {
      work.next_out[t * Rows::kOut + i] = address<T>(args.out, work.n, own.h + i, own.w);
      work.next_residual[t * Rows::kOut + i] =
          args.residual.data == nullptr ? nullptr
                                        : address<T>(args.residual, work.n, own.h + i, own.w);
    }
  }
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

// Prefetches what a block writes of a panel, and what is added to it: one line of a tile's row.
template <class Rows, class Cols, int64_t Lines, class T>
inline __attribute__((always_inline)) void prefetch_outputs(const Work<T>& work, int64_t column,
                                                            int64_t index) {
  const int64_t row = index / Lines, at = column + index % Lines * kLine;
  if (row >= work.count * Rows::kOut) return;
  prefetch_pixels<Cols::kOut, 1>(work.next_out[row] + at, work.args.out.sw);
  if (work.next_residual[row] != nullptr)
    prefetch_pixels<Cols::kOut, 0>(work.next_residual[row] + at, work.args.residual.sw);
}

template <class Rows, class Cols, int N, class T>
inline void panel_products(const Work<T>& work, int64_t column) {
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
  constexpr int64_t kPrefetched = (kLines * Rows::kOut * kRows + kPoints - 1) / kPoints;
  int64_t call = 0;
  each_point<Rows, Cols>([&](int64_t p, int64_t index) {
    const float* in = work.in + p * plane(args.block_tiles, work.in_ld);
    float* out = work.products + p * plane(args.block_tiles, kWidth);
    for (int64_t group = 0; group < groups.count; ++group) {
      const int64_t rows = groups.rows(group);
      for (int64_t i = 0; i < kPrefetched; ++i)
        prefetch_outputs<Rows, Cols, kLines>(work, column, call * kPrefetched + i);
      Prefetches prefetches{weights + (index + 1) * each + (call - index * calls) * lines * k,
                            lines, nullptr, args.in.sw * int64_t(sizeof(T)),
                            kLine * int64_t(sizeof(T))};
      if (column + kWidth >= args.out.c) {
        if (call < work.count * Rows::kIn)
          prefetches.in = reinterpret_cast<const char*>(work.next_in[call]);
        if (index + 1 == kAll) prefetches.weights -= (index + 1) * each + column * k * kAll;
      }
      ++call;
      multiply_rows<N, Cols::kOut>(rows, in, work.in_ld, weights + index * each, k, out,
                                   prefetches);
      in += rows * work.in_ld;
      out += rows * kWidth;
    }
  });
}

// All panels but the last one of the channels are as wide as the registers allow.
template <class Rows, class Cols, class T>
inline void panel_products(const Work<T>& work, int64_t column, [[maybe_unused]] int64_t width) {
#if defined(__AVX512F__)
  if (width == 1 * kConvGroup) return panel_products<Rows, Cols, 1>(work, column);
  if (width == 2 * kConvGroup) return panel_products<Rows, Cols, 2>(work, column);
  if (width == 3 * kConvGroup) return panel_products<Rows, Cols, 3>(work, column);
#endif
  panel_products<Rows, Cols, kMaxVectors>(work, column);
}

}  // namespace

}  // namespace mirnet_fast::cpu::MIRNET_ISA
