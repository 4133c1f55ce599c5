// conv1x1 on the CPU: weights packed for simd/conv1x1.cpp.
#include "convolution.h"
#include "matrix_unit.h"
#include "panels.h"

namespace mirnet_fast::cpu {

namespace {

constexpr const char* kOp = "conv1x1";

}  // namespace

// out may not be x.
void conv1x1_into(Tensor out, Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor slope) {
  check_input(kOp, x);
  check_map(kOp, "out", out);
  const int64_t C = x.size(1), D = check_weight(kOp, x, weight, 1, 1);
  check_convolution(kOp, out, {x.size(0), D, x.size(2), x.size(3)}, x, bias, slope);

  ConvArgs args{};
  args.in = map_of(x);
  args.out = map_of(out);
  if (const MatrixKernels* kernels = matrix_for(x)) {
    MatrixConvArgs maps{};
    maps.in = args.in;
    maps.out = args.out;
    maps.taps = MatrixTaps::one;
    return matrix_convolution(*kernels, maps, weight, true, bias, slope, std::nullopt, true);
  }
  by_stored(x, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const PerChannel<T> biases(bias, D), slopes(slope, D);
    const auto panels = packed(Ordered<T>(weight).data(), C, 1, D, C);
    args.packed = panels.get();
    args.bias = biases.data();
    args.slope = slopes.data();
    run(MIRNET_KERNEL(conv1x1_rows, T), args, args.out.n * args.out.h, args.out.w * std::max(C, D));
  });
}

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cpu, CPU, m) { MIRNET_IMPL(conv1x1_into); }

}  // namespace mirnet_fast::cpu
