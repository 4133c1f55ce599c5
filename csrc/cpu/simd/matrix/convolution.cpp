// Convolutions of bfloat16 maps on the matrix unit: 3x3, 1x1, and the phases of the transposed 3x3,
// as sums over the taps of products of 16 pixels x 32 inputs with 32 inputs x 16 outputs. Fused:
// bias, PReLU and residual, in float32, and the statistics of what is stored.
//
// A block is 32 pixels of a row and 32 outputs: 2 x 2 tiles of sums in registers, so that the four
// tiles that a step loads (4 KiB) feed four products of 16 cycles. Arithmetic intensity of a step:
// 4 x 16,384 FLOP / 4 KiB = 16 FLOP a byte of the first-level cache, whose 128 bytes a cycle give
// them in half of the 64 cycles that the products take. Pixels are read where they lie, nine times
// out of the first-level cache for 3x3. Weights of 32 outputs are 9 * 64 * C bytes: up to C = 64
// they stay in that cache along a row, beyond it come from the second-level one at 32 bytes a
// cycle, about half of what it gives. Expected, not measured: 70 % of peak at 64 channels, 55 % at
// 256.
#include "../tile_reduce.h"
#include "loops.h"
#include "unit.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

namespace {

constexpr int64_t kPixels = 2 * kTileSide;
constexpr int64_t kTileValues = kTileSide * kTileInputs;

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

inline int64_t whole(int64_t count, int64_t each) { return (count + each - 1) / each * each; }

// The pixels that a block reads: pixel (i, j) at data + i * sh + j * sw, whole kTileInputs of them.
struct Pixels {
  const bf16* data;
  int64_t sh, sw;
};

// Where they lie if that is possible, else copied to `buffer` with zeros around the map.
template <class Rows, class Cols>
inline Pixels pixels_of(const MatrixConvArgs& args, int64_t n, int64_t h, int64_t w, int64_t count,
                        bf16* buffer) {
  const Map& in = args.in;
  const int64_t top = args.first_row + h + Rows::kFirst, left = w + Cols::kFirst;
  const int64_t across = whole(count, kTileSide) + Cols::kCount - 1;
  const bool inside = top >= 0 && left >= 0 && top + Rows::kCount <= in.h && left + across <= in.w;
  if (inside && in.c % kTileInputs == 0) return {address<bf16>(in, n, top, left), in.sh, in.sw};
  const int64_t ld = whole(in.c, kTileInputs);
  for (int64_t i = 0; i < Rows::kCount; ++i)
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

// sums (32 pixels x 32 outputs) of a block; M and N tiles of it.
template <class Rows, class Cols, int M, int N>
inline void block_sums(const Pixels& x, const bf16* weights, int64_t inputs, float* sums) {
  before_tiles();
  zero_tile<0>();
  if constexpr (N > 1) zero_tile<1>();
  if constexpr (M > 1) zero_tile<2>();
  if constexpr (M > 1 && N > 1) zero_tile<3>();
  const int64_t step = x.sw * int64_t(sizeof(bf16));
  for (int i = 0; i < Rows::kCount; ++i)
    for (int j = 0; j < Cols::kCount; ++j) {
      const bf16* pixel = x.data + i * x.sh + j * x.sw;
      for (int64_t k = 0; k < inputs; k += kTileInputs, weights += 2 * kTileValues) {
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
  constexpr int64_t kStep = kMatrixOutputs * sizeof(float);
  store_tile_register<0>(sums, kStep);
  if constexpr (N > 1) store_tile_register<1>(sums + kTileSide, kStep);
  if constexpr (M > 1) store_tile_register<2>(sums + kTileSide * kMatrixOutputs, kStep);
  if constexpr (M > 1 && N > 1)
    store_tile_register<3>(sums + kTileSide * kMatrixOutputs + kTileSide, kStep);
}

// A block's outputs from `column` on, from their sums.
inline void block_out(const MatrixConvArgs& args, int64_t n, int64_t h, int64_t w, int64_t count,
                      int64_t column, const float* sums) {
  const int64_t channels = least(kMatrixOutputs, args.out.c - column);
  bf16* out = address<bf16>(args.out, n, h, w) + column;
  const bf16* residual =
      args.residual.data == nullptr ? nullptr : address<bf16>(args.residual, n, h, w) + column;
  lanes<float>(channels, [&](int64_t c, auto span) {
    const Vec<float> bias =
        args.bias == nullptr ? Vec<float>{} : load(args.bias + column + c, AllLanes{});
    const Vec<float> slope =
        args.slope == nullptr ? splat<float>(1) : load(args.slope + column + c, AllLanes{});
    for (int64_t i = 0; i < count; ++i) {
      Vec<float> y = prelu(load(sums + i * kMatrixOutputs + c, AllLanes{}) + bias, slope);
      if (residual != nullptr) y += load(residual + i * args.residual.sw + c, span);
      store(out + i * args.out.sw + c, y, span);
    }
  });
}

// pooled and sums of a row of `out`.
inline void row_statistics(const MatrixConvArgs& args, int64_t row, float* buffer) {
  const Map& map = args.out;
  const int64_t n = row / map.h, h = row % map.h, ld = pad<float>(map.c);
  for (int64_t w = 0; w < map.w; w += kTile) {
    const int64_t count = least(kTile, map.w - w);
    copy_tile<bf16>(map, n, h, w, count, buffer, ld);
    add_columns<float>(args.sums + row * map.c, map.c, count, [&](int64_t i, int64_t c, auto span) {
      return load(buffer + i * ld + c, span);
    });
    if (args.pooled.data == nullptr) continue;
    float* max = address<float>(args.pooled, n, h, w);
    float* mean = max + args.pooled.sc;
    pool_channels(View<float>{buffer, ld}, map.c, count, max, mean);
    for (int64_t i = 0; i < count; ++i) mean[i] /= float(map.c);
  }
}

template <class Rows, class Cols>
inline void convolve_rows(const MatrixConvArgs& args, int64_t begin, int64_t end) {
  const int64_t inputs = whole(args.in.c, kTileInputs);
  const int64_t each = Rows::kCount * Cols::kCount * inputs * kMatrixOutputs;
  Buffer<bf16> buffer(Rows::kCount * (kPixels + Cols::kCount - 1) * inputs);
  Buffer<float> sums(kPixels * kMatrixOutputs), tile(kTile * pad<float>(args.out.c));
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / args.out.h, h = row % args.out.h;
    for (int64_t column = 0; column < args.out.c; column += kMatrixOutputs) {
      const bf16* weights = args.packed + column / kMatrixOutputs * each;
      const bool wide = args.out.c - column > kTileSide;
      for (int64_t w = 0; w < args.out.w; w += kPixels) {
        const int64_t count = least(kPixels, args.out.w - w);
        const Pixels x = pixels_of<Rows, Cols>(args, n, h, w, count, buffer);
        if (count > kTileSide && wide)
          block_sums<Rows, Cols, 2, 2>(x, weights, inputs, sums);
        else if (count > kTileSide)
          block_sums<Rows, Cols, 2, 1>(x, weights, inputs, sums);
        else if (wide)
          block_sums<Rows, Cols, 1, 2>(x, weights, inputs, sums);
        else
          block_sums<Rows, Cols, 1, 1>(x, weights, inputs, sums);
        block_out(args, n, h, w, count, column, sums);
      }
    }
    if (args.sums != nullptr) row_statistics(args, row, tile);
  }
}

}  // namespace

// Of the packed weight.
static int64_t packed_values(const MatrixPackArgs& args) {
  int64_t taps = 0;
  with_taps(args.taps, [&](auto rows, auto cols, int64_t) { taps = rows.kCount * cols.kCount; });
  return taps * whole(args.inputs, kMatrixInputs) * whole(args.outputs, kMatrixOutputs);
}

// Groups of outputs [begin, end): (group, tap, inputs / 32, 2 tiles, inputs / 2, outputs, 2).
static void pack(const MatrixPackArgs& args, int64_t begin, int64_t end) {
  with_taps(args.taps, [&](auto rows, auto cols, int64_t side) {
    const int64_t inputs = whole(args.inputs, kMatrixInputs);
    for (int64_t group = begin; group < end; ++group) {
      bf16* to = args.packed + group * rows.kCount * cols.kCount * inputs * kMatrixOutputs;
      for (int i = 0; i < rows.kCount; ++i)
        for (int j = 0; j < cols.kCount; ++j)
          for (int64_t k = 0; k < inputs; k += kTileInputs)
            for (int64_t tile = 0; tile < 2; ++tile)
              for (int64_t pair = 0; pair < kTileInputs; pair += 2)
                for (int64_t o = 0; o < kTileSide; ++o)
                  for (int64_t second = 0; second < 2; ++second) {
                    const int64_t output = group * kMatrixOutputs + tile * kTileSide + o;
                    const int64_t input = k + pair + second;
                    const int64_t tap = rows.kTap[i] * side + cols.kTap[j];
                    *to++ = output < args.outputs && input < args.inputs
                                ? args.weight[output * args.output_stride +
                                              input * args.input_stride + tap]
                                : bf16{0};
                  }
    }
  });
}

// Rows [begin, end) of N * H.
static void rows(const MatrixConvArgs& args, int64_t begin, int64_t end) {
  configure_tiles();
  with_taps(args.taps, [&](auto rows, auto cols, int64_t) {
    convolve_rows<decltype(rows), decltype(cols)>(args, begin, end);
  });
  release_tiles();
}

// The statistics alone; rows [begin, end) of N * H.
static void statistics(const MatrixConvArgs& args, int64_t begin, int64_t end) {
  const Buffer<float> tile(kTile * pad<float>(args.out.c));
  for (int64_t row = begin; row < end; ++row) row_statistics(args, row, tile);
}

extern const MatrixKernels matrix_kernels;
const MatrixKernels matrix_kernels{packed_values, pack, rows, statistics};

}  // namespace mirnet_fast::cpu::MIRNET_ISA
