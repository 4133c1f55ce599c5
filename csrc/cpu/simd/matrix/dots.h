// Products by vdpbf16ps, which adds two products a lane to 16 sums: twice the multiply-adds of
// float32 a cycle. Or one value after the other where MIRNET_EMULATED_DOTS is defined, for tests on
// any machine.
//
// A step is 12 pixels x 32 outputs, 24 registers of sums, from 2 rows of the weights and a pair of
// each pixel: 14 loads for 24 products. Weights come from the second-level cache four times a
// block, 128 bytes in 24 cycles.
#pragma once

#include "product.h"

#if !defined(MIRNET_EMULATED_DOTS)
#include <immintrin.h>
#endif

namespace mirnet_fast::cpu::MIRNET_ISA {

constexpr bool kHasTiles = false;
constexpr int kDotRows = 12;
constexpr int64_t kBlock = 4 * kDotRows;  // pixels
constexpr int64_t kPixelStep = 1;

struct Unit {
  Unit() {}  // else the compiler warns of a variable that nobody uses
};

#if defined(MIRNET_EMULATED_DOTS)

struct Sums {
  float lane[kTileSide];
};
struct Pairs {
  bf16 lane[kTileSide][2];
};

inline Sums no_sums() { return {}; }
inline Sums load_sums(const float* p) {
  Sums sums;
  __builtin_memcpy(&sums, p, sizeof(sums));
  return sums;
}
inline void store_sums(float* p, const Sums& sums) { __builtin_memcpy(p, &sums, sizeof(sums)); }
inline Pairs load_pairs(const bf16* p) {
  Pairs pairs;
  __builtin_memcpy(&pairs, p, sizeof(pairs));
  return pairs;
}
inline Pairs everywhere(const bf16* pair) {
  Pairs pairs;
  for (auto& lane : pairs.lane) __builtin_memcpy(lane, pair, sizeof(lane));
  return pairs;
}

// As Intel's manual has VDPBF16PS: the second product of a pair is added first, each with one
// rounding; denormals are zero.
inline Sums add_products(Sums sums, const Pairs& a, const Pairs& b) {
  const auto flushed = [](float x) {
    const float size = x < 0 ? -x : x;
    return size < 1.17549435e-38f ? x * 0.0f : x;
  };
  for (int i = 0; i < kTileSide; ++i) {
    float sum = flushed(sums.lane[i]);
    for (int second = 1; second >= 0; --second)
      sum = flushed(__builtin_fmaf(flushed(to_acc(a.lane[i][second])),
                                   flushed(to_acc(b.lane[i][second])), sum));
    sums.lane[i] = sum;
  }
  return sums;
}

#else

using Sums = __m512;
using Pairs = __m512bh;

inline __attribute__((always_inline)) Sums no_sums() { return _mm512_setzero_ps(); }
inline __attribute__((always_inline)) Sums load_sums(const float* p) { return _mm512_loadu_ps(p); }
inline __attribute__((always_inline)) void store_sums(float* p, Sums sums) {
  _mm512_storeu_ps(p, sums);
}
inline __attribute__((always_inline)) Pairs load_pairs(const bf16* p) {
  return (Pairs)_mm512_loadu_si512(p);
}
inline __attribute__((always_inline)) Pairs everywhere(const bf16* pair) {
  int bits;
  __builtin_memcpy(&bits, pair, sizeof(bits));
  return (Pairs)_mm512_set1_epi32(bits);
}
inline __attribute__((always_inline)) Sums add_products(Sums sums, Pairs a, Pairs b) {
  return _mm512_dpbf16_ps(sums, a, b);
}

#endif

// R pixels and N times 16 outputs, registers only. Not inline, or the loop's registers would depend
// on what surrounds it.
template <int R, int N>
__attribute__((noinline, aligned(64))) void dot_sums(const Product& product, const bf16* first,
                                                     float* sums, bool accumulate) {
  Sums sum[R][N];
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) sum[r][n] = no_sums();
  if (accumulate)
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) sum[r][n] = load_sums(sums + r * kMatrixOutputs + n * kTileSide);
  const bf16* weights = product.weights;
  const int64_t step = product.x.sw;
  for (int i = 0; i < product.down; ++i)
    for (int j = 0; j < product.across; ++j) {
      const bf16* pixel = first + i * product.x.sh + j * step;
      for (int64_t k = 0; k < product.inputs; k += kMatrixInputs, weights += kTileValues)
        for (int64_t pair = 0; pair < kTileSide; ++pair, pixel += 2, weights += 2 * kTileSide) {
          Pairs row[N];
          for (int n = 0; n < N; ++n) row[n] = load_pairs(weights + n * kTileValues);
          for (int r = 0; r < R; ++r) {
            const Pairs value = everywhere(pixel + r * step);
            for (int n = 0; n < N; ++n) sum[r][n] = add_products(sum[r][n], value, row[n]);
          }
        }
    }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) store_sums(sums + r * kMatrixOutputs + n * kTileSide, sum[r][n]);
}

template <int N, int R = kDotRows>
inline void dot_rows(int64_t rows, const Product& product, const bf16* first, float* sums,
                     bool accumulate) {
  if constexpr (R > 1)
    if (rows < R) return dot_rows<N, R - 1>(rows, product, first, sums, accumulate);
  dot_sums<R, N>(product, first, sums, accumulate);
}

// The product for `count` pixels and so many of the group's outputs, at least; added to what `sums`
// has where `accumulate`.
inline void block_sums(const Product& product, int64_t count, int64_t outputs, float* sums,
                       bool accumulate = false) {
  const int64_t groups = (count + kDotRows - 1) / kDotRows;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t begin = count * group / groups, rows = count * (group + 1) / groups - begin;
    const bf16* first = product.x.data + begin * product.x.sw;
    float* to = sums + begin * kMatrixOutputs;
    if (outputs > kTileSide)
      dot_rows<2>(rows, product, first, to, accumulate);
    else
      dot_rows<1>(rows, product, first, to, accumulate);
  }
}

}  // namespace mirnet_fast::cpu::MIRNET_ISA
