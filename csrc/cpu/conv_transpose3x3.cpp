// conv_transpose3x3 on the CPU: weights packed once for the four phases of
// simd/conv_transpose3x3.cpp.
#include "winograd.h"

namespace mirnet_fast::cpu {

namespace {

constexpr const char* kOp = "conv_transpose3x3";

// An even output row reads one input row by the filter's middle; an odd one this row by the
// filter's last row and the next by its first.
struct Phase {
  FilterAxis points;
  std::vector<int> taps;
};

const Phase& phase(int odd) {
  static const double a = 0.5, b = 1.25, at_a = 2 * a * (a * a - b * b),
                      at_b = 2 * b * (b * b - a * a);
  static const Phase phases[2] = {{{{1}}, {1}},
                                  {{{1 / at_a, a / at_a},
                                    {-1 / at_a, a / at_a},
                                    {0, 1},
                                    {1 / at_b, b / at_b},
                                    {-1 / at_b, b / at_b}},
                                   {2, 0}}};
  return phases[odd];
}

}  // namespace

Tensor conv_transpose3x3_pack(Tensor weight) {
  check_filter("conv_transpose3x3_pack", weight, "(C, C', 3, 3)");
  const int64_t inputs = weight.size(0), outputs = weight.size(1);
  const std::vector<double> filters = values<float, double>(weight);
  Tensor packed = torch::stable::empty({36, inputs, grouped(outputs)}, weight.scalar_type());
  float* data = static_cast<float*>(packed.data_ptr());
  for (int odd_row = 0; odd_row < 2; ++odd_row)
    for (int odd_col = 0; odd_col < 2; ++odd_col) {
      const Phase &rows = phase(odd_row), &cols = phase(odd_col);
      pack_filters(rows.points, cols.points, outputs, inputs, data,
                   [&](int64_t o, int64_t c, size_t i, size_t j) {
                     return filters[((c * outputs + o) * 3 + rows.taps[i]) * 3 + cols.taps[j]];
                   });
      data += rows.points.size() * cols.points.size() * inputs * grouped(outputs);
    }
  return packed;
}

// out may not be x.
void conv_transpose3x3_into(Tensor out, Tensor x, Tensor packed, OptionalTensor bias,
                            OptionalTensor slope) {
  check_input(kOp, x);
  check_map(kOp, "out", out);
  const int64_t C = out.size(1);
  check_convolution(kOp, out, {x.size(0), C, 2 * x.size(2), 2 * x.size(3)}, x, packed, bias, slope);

  ConvArgs args{};
  args.in = map_of(x);
  args.out = map_of(out);
  // The pixels of the first phase: those of the others lie beside them.
  args.out.h = x.size(2);
  args.out.w = x.size(3);
  args.out.sh *= 2;
  args.out.sw *= 2;
  const std::vector<float> biases = per_channel(bias, C, 0), slopes = per_channel(slope, C, 1);
  args.packed = static_cast<const float*>(packed.data_ptr());
  args.bias = biases.data();
  args.slope = slopes.data();
  set_blocks(args);
  run(MIRNET_KERNEL(conv_transpose3x3_blocks, float), args, args.out.n * args.blocks,
      args.block_tiles * 64 * std::max(args.in.c, C));
}

Tensor conv_transpose3x3(Tensor x, Tensor packed, int64_t channels, OptionalTensor bias,
                         OptionalTensor slope) {
  check_input(kOp, x);
  STD_TORCH_CHECK(channels > 0, kOp, ": channels must be at least 1; got ", channels);
  Tensor out = channels_last_map(x, channels, 2 * x.size(2), 2 * x.size(3));
  conv_transpose3x3_into(out, x, packed, bias, slope);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cpu, CPU, m) {
  m.impl("conv_transpose3x3", TORCH_BOX(&conv_transpose3x3));
  m.impl("conv_transpose3x3_into", TORCH_BOX(&conv_transpose3x3_into));
  m.impl("conv_transpose3x3_pack", TORCH_BOX(&conv_transpose3x3_pack));
}

}  // namespace mirnet_fast::cpu
