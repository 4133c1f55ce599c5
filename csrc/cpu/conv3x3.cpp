// conv3x3 on the CPU: weights packed for simd/conv3x3.cpp, and its statistics.
#include "convolution.h"
#include "matrix_unit.h"
#include "run.h"
#include "sums.h"

namespace mirnet_fast::cpu {

namespace {

constexpr const char* kOp = "conv3x3";

void convolve(Tensor out, Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor slope,
              OptionalTensor residual, OptionalTensor pooled, OptionalTensor sums,
              int64_t first_row, bool keep_weights) {
  check_input(kOp, x);
  check_map(kOp, "out", out);
  const int64_t C = check_weight(kOp, x, weight, 1);
  const Shape shape = {x.size(0), C, out.size(2), x.size(3)};
  check_convolution(kOp, out, shape, x, bias, slope);
  if (residual) {
    check(kOp, "residual", *residual, shape, x);
    check_channels_last(kOp, "residual", *residual);
  }
  MIRNET_CHECK(first_row >= 0 && first_row + out.size(2) <= x.size(2), kOp,
               ": the rows from first_row on must lie inside x's ", x.size(2),
               "; got first_row = ", first_row, " and ", out.size(2), " rows");
  check_statistics(kOp, out, C, pooled, sums);

  ConvArgs args{};
  args.in = map_of(x);
  args.out = map_of(out);
  if (residual) args.residual = map_of(*residual);
  args.first_row = first_row;
  if (pooled) args.pooled = map_of(*pooled);
  if (const MatrixKernels* kernels = matrix_for(x); kernels != nullptr && kernels->tiles) {
    MatrixConvArgs maps{};
    maps.in = args.in;
    maps.out = args.out;
    maps.residual = args.residual;
    maps.first_row = first_row;
    maps.taps = MatrixTaps::three;
    maps.pooled = args.pooled;
    return matrix_convolution(*kernels, maps, weight, true, bias, slope, sums, keep_weights);
  }
  args.tile_columns = tile_columns(args.in, args.out);
  by_stored(x, [&](auto tag) {
    using T = typename decltype(tag)::type;
    Convolution<T> conv(args, MIRNET_KERNEL(conv3x3_pack, T), weight, true, bias, slope,
                        keep_weights);
    GroupedSums grouped(sums, args.out.n, sum_groups(tiles_of(args)), C);
    conv.args.sums = grouped.parts();
    run(MIRNET_KERNEL(conv3x3_blocks, T), conv.args, args.out.n * conv.args.blocks,
        conv.args.block_tiles * kTileRows * args.tile_columns * std::max(args.in.c, C));
    grouped.finish();
  });
}

}  // namespace

// The rows of the convolution from first_row on, as many as out has. residual may be out: a pixel
// is read before it is written. x may not.
void conv3x3_into(Tensor out, Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor slope,
                  OptionalTensor residual, OptionalTensor pooled, OptionalTensor sums,
                  int64_t first_row) {
  convolve(out, x, weight, bias, slope, residual, pooled, sums, first_row, true);
}

Tensor conv3x3(Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor slope,
               OptionalTensor residual) {
  check_input(kOp, x);
  Tensor out = empty(x, {x.size(0), check_weight(kOp, x, weight, 1), x.size(2), x.size(3)}, true);
  // The weights are trained, or made for a gradient: there would be no second time.
  convolve(out, x, weight, bias, slope, residual, std::nullopt, std::nullopt, 0, false);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cpu, CPU, m) {
  MIRNET_IMPL(conv3x3);
  MIRNET_IMPL(conv3x3_into);
}

}  // namespace mirnet_fast::cpu
