// conv_transpose3x3 on the CPU: weights packed for the four phases of simd/conv_transpose3x3.cpp.
#include "convolution.h"
#include "matrix_unit.h"
#include "run.h"

namespace mirnet_fast::cpu {

constexpr const char* kOp = "conv_transpose3x3";

Tensor conv_transpose3x3(Tensor x, Tensor weight, OptionalTensor bias) {
  check_input(kOp, x);
  const int64_t C = check_weight(kOp, x, weight, 0);
  if (bias) check(kOp, "bias", *bias, {C}, x);
  Tensor out = empty(x, {x.size(0), C, 2 * x.size(2), 2 * x.size(3)}, true);

  ConvArgs args{};
  args.in = map_of(x);
  args.out = first_phase(out, C);
  if (const MatrixKernels* kernels = matrix_for(x)) {
    matrix_transposed(*kernels, args.in, args.out, weight, bias);
    return out;
  }
  // The weights are trained: there would be no second time.
  by_stored(x, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Convolution<T> conv(args, MIRNET_KERNEL(conv_transpose3x3_pack, T), weight, false, bias,
                              std::nullopt, false);
    run(MIRNET_KERNEL(conv_transpose3x3_blocks, T), conv.args, args.out.n * conv.args.blocks,
        conv.args.block_tiles * 64 * std::max(args.in.c, C));
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cpu, CPU, m) { MIRNET_IMPL(conv_transpose3x3); }

}  // namespace mirnet_fast::cpu
