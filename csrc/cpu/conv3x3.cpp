// conv3x3 on the CPU: weights packed once for simd/conv3x3.cpp, and the statistics of its blocks.
#include "winograd.h"

namespace mirnet_fast::cpu {

namespace {

constexpr const char* kOp = "conv3x3";

void check_statistics(const Tensor& x, int64_t channels, const OptionalTensor& pooled,
                      const OptionalTensor& sums) {
  STD_TORCH_CHECK(pooled.has_value() == sums.has_value(), kOp,
                  ": pooled and sums go together; only one was given");
  if (!pooled) return;
  check(kOp, "pooled", *pooled, {x.size(0), 2, x.size(2), x.size(3)}, x);
  STD_TORCH_CHECK(pooled->is_contiguous(), kOp, ": pooled must be contiguous");
  const Shape shape = {x.size(0), channels};
  STD_TORCH_CHECK(sums->scalar_type() == torch::headeronly::ScalarType::Double && sums->is_cpu() &&
                      sums->is_contiguous() && shape_of(*sums) == shape,
                  kOp, ": sums must be contiguous float64 of shape ", text(shape));
}

// (N, C) from (N * blocks, C), in order.
void add_blocks(const std::vector<double>& parts, const ConvArgs& args, double* sums) {
  const int64_t C = args.out.c;
  std::fill(sums, sums + args.out.n * C, 0.0);
  for (int64_t block = 0; block < args.out.n * args.blocks; ++block)
    for (int64_t c = 0; c < C; ++c) sums[block / args.blocks * C + c] += parts[block * C + c];
}

}  // namespace

Tensor conv3x3_pack(Tensor weight) {
  check_filter("conv3x3_pack", weight, "(C', C, 3, 3)");
  const int64_t outputs = weight.size(0), inputs = weight.size(1);
  const std::vector<double> filters = values<float, double>(weight);
  Tensor packed = torch::stable::empty({36, inputs, grouped(outputs)}, weight.scalar_type());
  pack_filters(three_taps(), three_taps(), outputs, inputs, static_cast<float*>(packed.data_ptr()),
               [&](int64_t o, int64_t c, size_t i, size_t j) {
                 return filters[((o * inputs + c) * 3 + i) * 3 + j];
               });
  return packed;
}

// residual may be out: a pixel is read before it is written. x may not.
void conv3x3_into(Tensor out, Tensor x, Tensor packed, OptionalTensor bias, OptionalTensor slope,
                  OptionalTensor residual, OptionalTensor pooled, OptionalTensor sums) {
  check_input(kOp, x);
  check_map(kOp, "out", out);
  const int64_t C = out.size(1);
  const Shape shape = {x.size(0), C, x.size(2), x.size(3)};
  check_convolution(kOp, out, shape, x, packed, bias, slope);
  if (residual) {
    check(kOp, "residual", *residual, shape, x);
    check_channels_last(kOp, "residual", *residual);
  }
  check_statistics(x, C, pooled, sums);

  ConvArgs args{};
  args.in = map_of(x);
  args.out = map_of(out);
  if (residual) args.residual = map_of(*residual);
  const std::vector<float> biases = per_channel(bias, C, 0), slopes = per_channel(slope, C, 1);
  args.packed = static_cast<const float*>(packed.data_ptr());
  args.bias = biases.data();
  args.slope = slopes.data();
  set_blocks(args);
  const int64_t blocks = args.out.n * args.blocks;
  std::vector<double> parts(pooled ? blocks * C : 0);
  if (pooled) {
    args.pooled = static_cast<float*>(pooled->data_ptr());
    args.sums = parts.data();
  }
  run(MIRNET_KERNEL(conv3x3_blocks, float), args, blocks,
      args.block_tiles * 16 * std::max(args.in.c, C));
  if (sums) add_blocks(parts, args, static_cast<double*>(sums->data_ptr()));
}

Tensor conv3x3(Tensor x, Tensor packed, int64_t channels, OptionalTensor bias, OptionalTensor slope,
               OptionalTensor residual) {
  check_input(kOp, x);
  STD_TORCH_CHECK(channels > 0, kOp, ": channels must be at least 1; got ", channels);
  Tensor out = channels_last_map(x, channels, x.size(2), x.size(3));
  conv3x3_into(out, x, packed, bias, slope, residual, std::nullopt, std::nullopt);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cpu, CPU, m) {
  m.impl("conv3x3", TORCH_BOX(&conv3x3));
  m.impl("conv3x3_into", TORCH_BOX(&conv3x3_into));
  m.impl("conv3x3_pack", TORCH_BOX(&conv3x3_pack));
}

}  // namespace mirnet_fast::cpu
