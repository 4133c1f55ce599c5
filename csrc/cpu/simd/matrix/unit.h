// The unit that multiplies, tiles or dots, and what the loops have around it: the pixels of a block
// and their way back to bfloat16.
#pragma once

#include "../tile_reduce.h"

#if defined(__AMX_TILE__) || defined(MIRNET_EMULATED_TILES)
#include "tiles.h"
#else
#include "dots.h"
#endif

namespace mirnet_fast::cpu::MIRNET_ISA {

// Taps along one axis: the first one's distance from the output, and of each its place in the
// filter.
template <int First, int... Tap>
struct Along {
  static constexpr int kFirst = First, kCount = sizeof...(Tap);
  static constexpr int kTap[] = {Tap...};
};
using ThreeAlong = Along<-1, 0, 1, 2>;
using CentreAlong = Along<0, 0>;
using EvenAlong = Along<0, 1>;
using OddAlong = Along<0, 2, 0>;

// f(Rows, Cols, taps of a whole filter along one axis).
template <class F>
inline void with_taps(MatrixTaps taps, F f) {
  switch (taps) {
    case MatrixTaps::three:
      return f(ThreeAlong{}, ThreeAlong{}, 3);
    case MatrixTaps::one:
      return f(CentreAlong{}, CentreAlong{}, 1);
    case MatrixTaps::even_even:
      return f(EvenAlong{}, EvenAlong{}, 3);
    case MatrixTaps::even_odd:
      return f(EvenAlong{}, OddAlong{}, 3);
    case MatrixTaps::odd_even:
      return f(OddAlong{}, EvenAlong{}, 3);
    case MatrixTaps::odd_odd:
      return f(OddAlong{}, OddAlong{}, 3);
  }
}

// f(w, count) for the blocks of a row, as equal as can be.
template <class F>
inline void blocks(int64_t width, F f) {
  const int64_t count = (width + kBlock - 1) / kBlock;
  if (count == 0) return;
  const int64_t each = whole((width + count - 1) / count, kPixelStep);
  for (int64_t w = 0; w < width; w += each) f(w, least(each, width - w));
}

// f(column, outputs) for the groups of a convolution's outputs.
template <class F>
inline void groups(int64_t outputs, F f) {
  for (int64_t column = 0; column < outputs; column += kMatrixOutputs)
    f(column, least(kMatrixOutputs, outputs - column));
}

// Values of the buffer that pixels_of may need.
inline int64_t buffer_values(int64_t channels, int64_t down = 1, int64_t across = 1) {
  return down * (kBlock + across - 1) * whole(channels, kMatrixInputs);
}

// The pixels of `in` from (top, left) on that a block with so many taps reads: where they lie if
// that is possible, else copied to `buffer` with zeros around the map and behind the channels.
inline Pixels pixels_of(const Map& in, int64_t n, int64_t top, int64_t left, int64_t count,
                        int64_t down, int64_t columns, bf16* buffer, bool copy = false) {
  const int64_t across = whole(count, kPixelStep) + columns - 1;
  const bool inside = top >= 0 && left >= 0 && top + down <= in.h && left + across <= in.w;
  if (inside && in.c % kMatrixInputs == 0 && !copy)
    return {address<bf16>(in, n, top, left), in.sh, in.sw};
  const int64_t ld = whole(in.c, kMatrixInputs);
  for (int64_t i = 0; i < down; ++i)
    for (int64_t j = 0; j < across; ++j) {
      bf16* to = buffer + (i * across + j) * ld;
      const int64_t y = top + i, x = left + j;
      int64_t c = 0;
      if (y >= 0 && x >= 0 && y < in.h && x < in.w) {
        __builtin_memcpy(to, address<bf16>(in, n, y, x), in.c * sizeof(bf16));
        c = in.c;
      }
      zero(to + c, ld - c);
    }
  return {buffer, across * ld, ld};
}

// `store` of vectors, by the instruction for it.
inline __attribute__((always_inline)) void put(bf16* p, Vec<float> v, AllLanes) {
#if defined(__AVX512BF16__)
  _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(p), (__m256i)_mm512_cvtneps_pbh(v));
#else
  store(p, v, AllLanes{});
#endif
}
inline void put(bf16* p, Vec<float> v, FirstLanes part) { store(p, v, part); }

// A group's share of the pixels that are needed later: all at once, the products would wait.
inline __attribute__((always_inline)) void prefetch_share(const Map& map, int64_t n, int64_t h,
                                                          int64_t w, int64_t count, int64_t column,
                                                          int64_t outputs) {
  const int64_t first = count * column / outputs;
  const int64_t last = count * least(column + kMatrixOutputs, outputs) / outputs;
  prefetch_tile<bf16>(map, n, h, w + first, last - first);
}

// out[i][c] = f(i, c, span) for `count` pixels and the channels of a group, and with their sum to
// `total` unless that is null.
template <class F>
inline __attribute__((always_inline)) void put_block(bf16* out, int64_t step, int64_t count,
                                                     int64_t channels, double* total, F f) {
  lanes<float>(channels, [&](int64_t c, auto span) {
    Vec<float> all{};
    for (int64_t i = 0; i < count; ++i) {
      bf16* const to = out + i * step + c;
      put(to, f(i, c, span), span);
      if (total != nullptr) all += load(to, span);
    }
    if (total != nullptr) add_to<float>(total + c, all, span);
  });
}

}  // namespace mirnet_fast::cpu::MIRNET_ISA
