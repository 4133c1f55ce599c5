// Convolutions of bfloat16 maps: 3x3, 1x1, and the phases of the transposed 3x3, as sums over the
// taps of products of pixels with weights. Fused: bias, PReLU and residual, and the statistics of
// what is stored.
#include "unit.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

namespace {

// to[k] = a tap's weights of one output, zeros behind them.
inline void tap_weights(const MatrixPackArgs& args, int64_t output, int64_t tap, bf16* to) {
  const int64_t inputs = output < args.outputs ? args.inputs : 0;
  const bf16* weight = args.weight + output * args.output_stride + tap;
  if (args.input_stride == 1 && args.scale != nullptr) {
    lanes<float>(inputs, [&](int64_t k, auto span) {
      put(to + k, load(weight + k, span) * load(args.scale + k, span), span);
    });
  } else {
    for (int64_t k = 0; k < inputs; ++k) {
      to[k] = weight[k * args.input_stride];
      if (args.scale != nullptr) from_acc(to_acc(to[k]) * args.scale[k], to + k);
    }
  }
  zero(to + inputs, whole(args.inputs, kMatrixInputs) - inputs);
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

}  // namespace

// Of the packed weight.
int64_t packed_values(const MatrixPackArgs& args) {
  int64_t taps = 0;
  with_taps(args.taps, [&](auto rows, auto cols, int64_t) { taps = rows.kCount * cols.kCount; });
  return whole(args.outputs, kMatrixOutputs) / kMatrixOutputs * taps * group_values(args.inputs);
}

// Groups [begin, end) of kMatrixOutputs: (taps, inputs / 32, 2, 16 pairs of inputs, 16 outputs, 2).
void pack(const MatrixPackArgs& args, int64_t begin, int64_t end) {
  const int64_t inputs = whole(args.inputs, kMatrixInputs);
  Buffer<bf16> rows_of_tap(kMatrixOutputs * inputs);
  with_taps(args.taps, [&](auto rows, auto cols, int64_t side) {
    for (int64_t group = begin; group < end; ++group) {
      bf16* to = args.packed + group * rows.kCount * cols.kCount * group_values(args.inputs);
      for (int i = 0; i < rows.kCount; ++i)
        for (int j = 0; j < cols.kCount; ++j) {
          for (int64_t o = 0; o < kMatrixOutputs; ++o)
            tap_weights(args, group * kMatrixOutputs + o, rows.kTap[i] * side + cols.kTap[j],
                        rows_of_tap + o * inputs);
          for (int64_t k = 0; k < inputs; k += kMatrixInputs)
            for (int64_t tile = 0; tile < 2; ++tile)
              for (int64_t pair = 0; pair < kMatrixInputs; pair += 2)
                for (int64_t o = 0; o < kTileSide; ++o, to += 2)
                  __builtin_memcpy(to, rows_of_tap + (tile * kTileSide + o) * inputs + k + pair,
                                   2 * sizeof(bf16));
        }
    }
  });
}

// Rows [begin, end) of N * H.
void convolution(const MatrixConvArgs& args, int64_t begin, int64_t end) {
  const Unit unit;
  with_taps(args.taps, [&](auto rows, auto cols, int64_t) {
    constexpr int kDown = rows.kCount, kAcross = cols.kCount;
    const int64_t inputs = whole(args.in.c, kMatrixInputs);
    const int64_t each = kDown * kAcross * group_values(args.in.c);
    Buffer<bf16> buffer(buffer_values(args.in.c, kDown, kAcross));
    Buffer<float> sums(kBlock * kMatrixOutputs), tile(kTile * pad<float>(args.out.c));
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / args.out.h, h = row % args.out.h;
      blocks(args.out.w, [&](int64_t w, int64_t count) {
        const Pixels x = pixels_of(args.in, n, args.first_row + h + rows.kFirst, w + cols.kFirst,
                                   count, kDown, kAcross, buffer);
        groups(args.out.c, [&](int64_t column, int64_t channels) {
          prefetch_share(args.out, n, h, w, count, column, args.out.c);
          block_sums({x, kDown, kAcross, inputs, args.packed + column / kMatrixOutputs * each},
                     count, channels, sums);
          const bf16* residual = args.residual.data == nullptr
                                     ? nullptr
                                     : address<bf16>(args.residual, n, h, w) + column;
          const float* bias = args.bias == nullptr ? nullptr : args.bias + column;
          const float* slope = args.slope == nullptr ? nullptr : args.slope + column;
          put_block(address<bf16>(args.out, n, h, w) + column, args.out.sw, count, channels,
                    nullptr, [&](int64_t i, int64_t c, auto span) {
                      Vec<float> y = load(sums + i * kMatrixOutputs + c, AllLanes{});
                      if (bias != nullptr) y += load(bias + c, AllLanes{});
                      if (slope != nullptr) y = prelu(y, load(slope + c, AllLanes{}));
                      if (residual != nullptr) y += load(residual + i * args.residual.sw + c, span);
                      return y;
                    });
        });
      });
      if (args.sums != nullptr) row_statistics(args, row, tile);
    }
  });
}

}  // namespace mirnet_fast::cpu::MIRNET_ISA
