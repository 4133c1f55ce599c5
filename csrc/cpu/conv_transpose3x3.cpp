// conv_transpose3x3 on the CPU: weights packed for the four phases of simd/conv_transpose3x3.cpp.
#include "convolution.h"
#include "run.h"

namespace mirnet_fast::cpu {

namespace {

constexpr const char* kOp = "conv_transpose3x3";

void convolve(Tensor out, Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor slope,
              int64_t first_row, bool keep_weights) {
  check_input(kOp, x);
  check_map(kOp, "out", out);
  const int64_t C = check_weight(kOp, x, weight, 0);
  const int64_t rows = out.size(2) / 2;
  check_convolution(kOp, out, {x.size(0), C, 2 * rows, 2 * x.size(3)}, x, bias, slope);
  check_rows(kOp, first_row, rows, x.size(2));

  ConvArgs args{};
  args.in = map_of(x);
  args.out = map_of(out);
  // The pixels of the first phase: those of the others lie beside them.
  args.first_row = first_row;
  args.out.h = rows;
  args.out.w = x.size(3);
  args.out.sh *= 2;
  args.out.sw *= 2;
  const PerChannel biases(bias, C), slopes(slope, C);
  const PackedWeights packed =
      pack_for(MIRNET_KERNEL(conv_transpose3x3_pack, float), weight, false, args.tile_columns,
               args.out.n * tiles_of(args), keep_weights);
  args.packed = packed.get();
  const Tensor ordered = set_weight(args, weight, false);
  args.bias = biases.data();
  args.slope = slopes.data();
  set_blocks(args);
  run(MIRNET_KERNEL(conv_transpose3x3_blocks, float), args, args.out.n * args.blocks,
      args.block_tiles * 64 * std::max(args.in.c, C));
}

}  // namespace

// The rows of the convolution from 2 * first_row on, as many as out has. out may not be x.
void conv_transpose3x3_into(Tensor out, Tensor x, Tensor weight, OptionalTensor bias,
                            OptionalTensor slope, int64_t first_row) {
  convolve(out, x, weight, bias, slope, first_row, true);
}

Tensor conv_transpose3x3(Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor slope) {
  check_input(kOp, x);
  Tensor out =
      empty(x, {x.size(0), check_weight(kOp, x, weight, 0), 2 * x.size(2), 2 * x.size(3)}, true);
  convolve(out, x, weight, bias, slope, 0, false);
  return out;
}

template <auto F>
using Op = Named<F, &kOp>;

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cpu, CPU, m) {
  m.impl("conv_transpose3x3", TORCH_BOX(&Op<&conv_transpose3x3>::call));
  m.impl("conv_transpose3x3_into", TORCH_BOX(&Op<&conv_transpose3x3_into>::call));
}

}  // namespace mirnet_fast::cpu
