// conv3x3 on the CPU: weights packed once for the products of simd/conv3x3.cpp, and its blocks.
#include <cmath>

#include "common.h"

namespace mirnet_fast::cpu {

namespace {

constexpr const char* kOp = "conv3x3";
constexpr int64_t kPoints = 36;

int64_t grouped(int64_t channels) { return (channels + kConvGroup - 1) / kConvGroup * kConvGroup; }

void check_float(const char* op, const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.scalar_type() == torch::headeronly::ScalarType::Float, op, ": ", name,
                  " must be float32");
  STD_TORCH_CHECK(tensor.is_cpu(), op, ": ", name, " must be on the CPU");
}

void check_channels_last(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.size(1) == 1 || tensor.stride(1) == 1, kOp, ": ", name,
                  " must be channels_last");
}

void check_input(const Tensor& x) {
  check_map(kOp, "x", x);
  check_float(kOp, "x", x);
  check_channels_last("x", x);
}

// The filter's values at the points of simd/conv3x3.cpp, times what the transforms leave out.
void filter_points(const double* filter, double* points) {
  const double a = std::sqrt(0.5), b = std::sqrt(2.0);
  const double matrix[6][3] = {{1, 0, 0},
                               {-1 / 1.5, -a / 1.5, -0.5 / 1.5},
                               {-1 / 1.5, a / 1.5, -0.5 / 1.5},
                               {1 / 6., b / 6, 2 / 6.},
                               {1 / 6., -b / 6, 2 / 6.},
                               {0, 0, 1}};
  double half[6][3] = {};
  for (int p = 0; p < 6; ++p)
    for (int j = 0; j < 3; ++j)
      for (int i = 0; i < 3; ++i) half[p][j] += matrix[p][i] * filter[i * 3 + j];
  for (int p = 0; p < 6; ++p)
    for (int q = 0; q < 6; ++q) {
      double sum = 0;
      for (int j = 0; j < 3; ++j) sum += half[p][j] * matrix[q][j];
      points[p * 6 + q] = sum;
    }
}

// Values of a (1) or (channels) tensor, one a channel in whole groups.
std::vector<float> per_channel(const Tensor& tensor, int64_t channels) {
  std::vector<float> result = values<float>(tensor);
  if (result.size() == 1) result.assign(channels, result[0]);
  result.resize(grouped(channels));
  return result;
}

// Blocks of 36 tiles, of fewer where that leaves less than 16 of them for the threads, but of 12
// still, or reading the weights would take longer than multiplying by them. The shape alone
// decides, so that the statistics do not depend on the number of threads.
void set_blocks(ConvArgs& args) {
  const int64_t tiles = ((args.out.h + 3) / 4) * ((args.out.w + 3) / 4);
  const int64_t most = std::clamp<int64_t>(tiles / 16, 12, 36);
  const int64_t blocks = (tiles + most - 1) / most;
  args.block_tiles = (tiles + blocks - 1) / blocks;
  args.blocks = (tiles + args.block_tiles - 1) / args.block_tiles;
}

// (N, C) from (N * blocks, C), in order.
void add_blocks(const std::vector<double>& parts, const ConvArgs& args, double* sums) {
  const int64_t count = args.out.n * args.out.c;
  std::fill(sums, sums + count, 0.0);
  for (size_t i = 0; i < parts.size(); ++i) {
    const int64_t block = int64_t(i) / args.out.c;
    sums[block / args.blocks * args.out.c + int64_t(i) % args.out.c] += parts[i];
  }
}

}  // namespace

// (36, C, C' in whole groups): for each panel of the output channels that a product makes at once,
// for each point, (C, panel).
Tensor conv3x3_pack(Tensor weight) {
  const Shape size = shape_of(weight);
  STD_TORCH_CHECK(size.size() == 4 && size[0] > 0 && size[1] > 0 && size[2] == 3 && size[3] == 3,
                  "conv3x3_pack: weight must be (C', C, 3, 3) with C', C >= 1; got ", text(size));
  check_float("conv3x3_pack", "weight", weight);
  const int64_t outputs = size[0], inputs = size[1], columns = grouped(outputs);
  const int64_t panel = MIRNET_KERNEL(panel_columns, float)();
  const std::vector<double> filters = values<float, double>(weight);
  Tensor packed = torch::stable::empty({kPoints, inputs, columns}, weight.scalar_type());
  float* data = static_cast<float*>(packed.data_ptr());
  torch::stable::parallel_for(0, columns, kConvGroup, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      const int64_t column = o / panel * panel, width = std::min(panel, columns - column);
      float* to = data + column * inputs * kPoints + (o - column);
      for (int64_t c = 0; c < inputs; ++c) {
        double points[kPoints] = {};
        if (o < outputs) filter_points(&filters[(o * inputs + c) * 9], points);
        for (int64_t p = 0; p < kPoints; ++p) to[(p * inputs + c) * width] = float(points[p]);
      }
    }
  });
  return packed;
}

// residual may be out: a pixel is read before it is written. x may not.
void conv3x3_into(Tensor out, Tensor x, Tensor packed, OptionalTensor bias, OptionalTensor slope,
                  OptionalTensor residual, OptionalTensor pooled, OptionalTensor sums) {
  check_input(x);
  check_map(kOp, "out", out);
  const int64_t C = out.size(1);
  const Shape shape = {x.size(0), C, x.size(2), x.size(3)};
  check(kOp, "out", out, shape, x);
  check_channels_last("out", out);
  check(kOp, "packed", packed, {kPoints, x.size(1), grouped(C)}, x);
  STD_TORCH_CHECK(packed.is_contiguous(), kOp, ": packed must be contiguous");
  if (bias) check(kOp, "bias", *bias, {C}, x);
  if (slope) check(kOp, "slope", *slope, {slope->numel() == 1 ? 1 : C}, x);
  if (residual) {
    check(kOp, "residual", *residual, shape, x);
    check_channels_last("residual", *residual);
  }
  STD_TORCH_CHECK(pooled.has_value() == sums.has_value(), kOp,
                  ": pooled and sums go together; only one was given");

  ConvArgs args{};
  args.in = map_of(x);
  args.out = map_of(out);
  if (residual) args.residual = map_of(*residual);
  const std::vector<float> biases =
      bias ? per_channel(*bias, C) : std::vector<float>(grouped(C), 0.0f);
  const std::vector<float> slopes =
      slope ? per_channel(*slope, C) : std::vector<float>(grouped(C), 1.0f);
  args.packed = static_cast<const float*>(packed.data_ptr());
  args.bias = biases.data();
  args.slope = slopes.data();
  set_blocks(args);
  const int64_t blocks = args.out.n * args.blocks;
  std::vector<double> parts(pooled ? blocks * C : 0);
  if (pooled) {
    check(kOp, "pooled", *pooled, {x.size(0), 2, x.size(2), x.size(3)}, x);
    STD_TORCH_CHECK(pooled->is_contiguous(), kOp, ": pooled must be contiguous");
    STD_TORCH_CHECK(sums->scalar_type() == torch::headeronly::ScalarType::Double &&
                        sums->is_contiguous() && shape_of(*sums) == Shape({x.size(0), C}),
                    kOp, ": sums must be contiguous float64 of shape ", text({x.size(0), C}));
    args.pooled = static_cast<float*>(pooled->data_ptr());
    args.sums = parts.data();
  }
  run(MIRNET_KERNEL(conv3x3_blocks, float), args, blocks, args.block_tiles * kPoints * C);
  if (sums) add_blocks(parts, args, static_cast<double*>(sums->data_ptr()));
}

Tensor conv3x3(Tensor x, Tensor packed, int64_t channels, OptionalTensor bias, OptionalTensor slope,
               OptionalTensor residual) {
  check_input(x);
  STD_TORCH_CHECK(channels > 0, kOp, ": channels must be at least 1; got ", channels);
  Tensor out = torch::stable::empty({x.size(0), channels, x.size(2), x.size(3)}, x.scalar_type(),
                                    std::nullopt, x.device(), std::nullopt,
                                    torch::headeronly::MemoryFormat::ChannelsLast);
  ask_for_large_pages(out.data_ptr(), out.numel() * int64_t(out.element_size()));
  conv3x3_into(out, x, packed, bias, slope, residual, std::nullopt, std::nullopt);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cpu, CPU, m) {
  m.impl("conv3x3", TORCH_BOX(&conv3x3));
  m.impl("conv3x3_into", TORCH_BOX(&conv3x3_into));
  m.impl("conv3x3_pack", TORCH_BOX(&conv3x3_pack));
}

}  // namespace mirnet_fast::cpu
