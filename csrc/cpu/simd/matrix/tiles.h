// Products by AMX: eight tiles of 16 rows of 64 bytes, and the product of two of them. Or one value
// after the other where MIRNET_EMULATED_TILES is defined, for tests on any machine.
//
// A block is 32 pixels and 32 outputs: 2 x 2 tiles of sums in registers, so that the four tiles
// that a step loads (4 KiB) feed four products of 16 cycles. Arithmetic intensity of a step:
// 4 x 16,384 FLOP / 4 KiB = 16 FLOP a byte of the first-level cache, whose 128 bytes a cycle give
// them in half of the 64 cycles that the products take. Pixels are read where they lie, nine times
// out of the first-level cache for 3x3. Weights of 32 outputs are 9 * 64 * C bytes: up to C = 64
// they stay in that cache along a row, beyond it come from the second-level one at 32 bytes a
// cycle, about half of what it gives. Expected, not measured: 70 % of peak at 64 channels, 55 % at
// 256.
#pragma once

#include "product.h"

#if !defined(MIRNET_EMULATED_TILES)
#include <immintrin.h>
#endif

namespace mirnet_fast::cpu::MIRNET_ISA {

constexpr bool kHasTiles = true;
constexpr int64_t kBlock = 2 * kTileSide;  // pixels
constexpr int64_t kPixelStep = kTileSide;  // whole such are read

#if defined(MIRNET_EMULATED_TILES)

struct TileRegister {
  uint8_t bytes[16][64];
};
inline thread_local TileRegister tile_registers[8];

inline void configure_tiles() {}
inline void before_tiles() {}
inline void release_tiles() {}

template <int R>
inline void zero_tile() {
  __builtin_memset(&tile_registers[R], 0, sizeof(TileRegister));
}

// Row i from data + i * step bytes.
template <int R>
inline void load_tile_register(const void* data, int64_t step) {
  for (int64_t i = 0; i < 16; ++i)
    __builtin_memcpy(tile_registers[R].bytes[i], static_cast<const char*>(data) + i * step, 64);
}

template <int R>
inline void store_tile_register(float* data, int64_t step) {
  for (int64_t i = 0; i < 16; ++i)
    __builtin_memcpy(reinterpret_cast<char*>(data) + i * step, tile_registers[R].bytes[i], 64);
}

// sum[m][n] += a[m][k] * b[k / 2][2 n + k % 2]: as Intel's manual has TDPBF16PS, first the sums of
// even and of odd k, each product with one rounding; denormals are zero.
template <int Sum, int A, int B>
inline void multiply_tiles() {
  const auto flushed = [](float x) {
    const float size = x < 0 ? -x : x;
    return size < 1.17549435e-38f ? x * 0.0f : x;
  };
  const auto value = [&](const uint8_t* bytes) {
    bf16 half;
    __builtin_memcpy(&half, bytes, 2);
    return flushed(to_acc(half));
  };
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) {
      float even = 0, odd = 0, total;
      for (int k = 0; k < 16; ++k) {
        const uint8_t* a = tile_registers[A].bytes[m] + 4 * k;
        const uint8_t* b = tile_registers[B].bytes[k] + 4 * n;
        even = flushed(__builtin_fmaf(value(a), value(b), even));
        odd = flushed(__builtin_fmaf(value(a + 2), value(b + 2), odd));
      }
      uint8_t* at = tile_registers[Sum].bytes[m] + 4 * n;
      __builtin_memcpy(&total, at, 4);
      total = flushed(flushed(total) + flushed(even + odd));
      __builtin_memcpy(at, &total, 4);
    }
}

#else

// The compiler does not know what memory the instructions read: what was written to it before is
// there.
inline __attribute__((always_inline)) void before_tiles() { __asm__ volatile("" ::: "memory"); }

// All eight tiles full: what a block lacks is zeros, or left out when it is stored.
inline void configure_tiles() {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } settings;
  for (int i = 0; i < 8; ++i) settings.row_bytes[i] = 64, settings.rows[i] = 16;
  __asm__ volatile("" ::"r"(&settings) : "memory");
  _tile_loadconfig(&settings);
}
inline void release_tiles() { _tile_release(); }

// The intrinsics are macros that take numbers, not constants.
#define MIRNET_TILE_CASES(f)  \
  if constexpr (R == 0) f(0); \
  if constexpr (R == 1) f(1); \
  if constexpr (R == 2) f(2); \
  if constexpr (R == 3) f(3); \
  if constexpr (R == 4) f(4); \
  if constexpr (R == 5) f(5); \
  if constexpr (R == 6) f(6); \
  if constexpr (R == 7) f(7);

template <int R>
inline __attribute__((always_inline)) void zero_tile() {
#define MIRNET_TILE_STEP(r) _tile_zero(r)
  MIRNET_TILE_CASES(MIRNET_TILE_STEP)
#undef MIRNET_TILE_STEP
}

template <int R>
inline __attribute__((always_inline)) void load_tile_register(const void* data, int64_t step) {
#define MIRNET_TILE_STEP(r) _tile_loadd(r, data, step)
  MIRNET_TILE_CASES(MIRNET_TILE_STEP)
#undef MIRNET_TILE_STEP
}

template <int R>
inline __attribute__((always_inline)) void store_tile_register(float* data, int64_t step) {
#define MIRNET_TILE_STEP(r) _tile_stored(r, data, step)
  MIRNET_TILE_CASES(MIRNET_TILE_STEP)
#undef MIRNET_TILE_STEP
}

// Of a block of 2 x 2 tiles: sums 0 to 3, pixels 4 and 5, weights 6 and 7.
template <int Sum, int A, int B>
inline __attribute__((always_inline)) void multiply_tiles() {
  static_assert(A == 4 + Sum / 2 && B == 6 + Sum % 2);
  if constexpr (Sum == 0) _tile_dpbf16ps(0, 4, 6);
  if constexpr (Sum == 1) _tile_dpbf16ps(1, 4, 7);
  if constexpr (Sum == 2) _tile_dpbf16ps(2, 5, 6);
  if constexpr (Sum == 3) _tile_dpbf16ps(3, 5, 7);
}
#undef MIRNET_TILE_CASES

#endif

// For a kernel's time: all tiles are as it needs them.
struct Unit {
  Unit() { configure_tiles(); }
  ~Unit() { release_tiles(); }
  Unit(const Unit&) = delete;
};

// M and N tiles of a block.
template <int M, int N>
inline void tile_sums(const Product& product, float* sums, bool accumulate) {
  constexpr int64_t kStep = kMatrixOutputs * sizeof(float);
  float* const below = sums + kTileSide * kMatrixOutputs;
  before_tiles();
  if (accumulate) {
    load_tile_register<0>(sums, kStep);
    if constexpr (N > 1) load_tile_register<1>(sums + kTileSide, kStep);
    if constexpr (M > 1) load_tile_register<2>(below, kStep);
    if constexpr (M > 1 && N > 1) load_tile_register<3>(below + kTileSide, kStep);
  } else {
    zero_tile<0>();
    if constexpr (N > 1) zero_tile<1>();
    if constexpr (M > 1) zero_tile<2>();
    if constexpr (M > 1 && N > 1) zero_tile<3>();
  }
  const Pixels& x = product.x;
  const int64_t step = x.sw * int64_t(sizeof(bf16));
  const bf16* weights = product.weights;
  for (int i = 0; i < product.down; ++i)
    for (int j = 0; j < product.across; ++j) {
      const bf16* pixel = x.data + i * x.sh + j * x.sw;
      for (int64_t k = 0; k < product.inputs; k += kMatrixInputs, weights += 2 * kTileValues) {
        load_tile_register<4>(pixel + k, step);
        load_tile_register<6>(weights, 64);
        multiply_tiles<0, 4, 6>();
        if constexpr (N > 1) {
          load_tile_register<7>(weights + kTileValues, 64);
          multiply_tiles<1, 4, 7>();
        }
        if constexpr (M > 1) {
          load_tile_register<5>(pixel + kTileSide * x.sw + k, step);
          multiply_tiles<2, 5, 6>();
        }
        if constexpr (M > 1 && N > 1) multiply_tiles<3, 5, 7>();
      }
    }
  store_tile_register<0>(sums, kStep);
  if constexpr (N > 1) store_tile_register<1>(sums + kTileSide, kStep);
  if constexpr (M > 1) store_tile_register<2>(below, kStep);
  if constexpr (M > 1 && N > 1) store_tile_register<3>(below + kTileSide, kStep);
}

// The product for `count` pixels and so many of the group's outputs, at least; added to what `sums`
// has where `accumulate`.
inline void block_sums(const Product& product, int64_t count, int64_t outputs, float* sums,
                       bool accumulate = false) {
  const bool wide = outputs > kTileSide;
  if (count > kTileSide && wide)
    tile_sums<2, 2>(product, sums, accumulate);
  else if (count > kTileSide)
    tile_sums<2, 1>(product, sums, accumulate);
  else if (wide)
    tile_sums<1, 2>(product, sums, accumulate);
  else
    tile_sums<1, 1>(product, sums, accumulate);
}

}  // namespace mirnet_fast::cpu::MIRNET_ISA
