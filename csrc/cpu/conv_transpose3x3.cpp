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
  args.out = first_phase(out, C);
  args.first_row = first_row;
  const Convolution conv(args, MIRNET_KERNEL(conv_transpose3x3_pack, float), weight, false, bias,
                         slope, keep_weights);
  run(MIRNET_KERNEL(conv_transpose3x3_blocks, float), conv.args, args.out.n * conv.args.blocks,
      conv.args.block_tiles * 64 * std::max(args.in.c, C));
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
