// What the ops on simd/winograd.h share: packing of weights, blocks, checks.
#pragma once

#include <cmath>

#include "common.h"

namespace mirnet_fast::cpu {

inline int64_t grouped(int64_t channels) {
  return (channels + kConvGroup - 1) / kConvGroup * kConvGroup;
}

inline void check_float(const char* op, const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.scalar_type() == torch::headeronly::ScalarType::Float, op, ": ", name,
                  " must be float32");
  STD_TORCH_CHECK(tensor.is_cpu(), op, ": ", name, " must be on the CPU");
}

inline void check_channels_last(const char* op, const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.size(1) == 1 || tensor.stride(1) == 1, op, ": ", name,
                  " must be channels_last");
}

inline void check_input(const char* op, const Tensor& x) {
  check_map(op, "x", x);
  check_float(op, "x", x);
  check_channels_last(op, "x", x);
}

inline void check_filter(const char* op, const Tensor& weight, const char* wanted) {
  const Shape size = shape_of(weight);
  STD_TORCH_CHECK(size.size() == 4 && size[0] > 0 && size[1] > 0 && size[2] == 3 && size[3] == 3,
                  op, ": weight must be ", wanted, " with C', C >= 1; got ", text(size));
  check_float(op, "weight", weight);
}

// x, packed, bias and slope, and an output of this shape.
inline void check_convolution(const char* op, const Tensor& out, const Shape& shape,
                              const Tensor& x, const Tensor& packed, const OptionalTensor& bias,
                              const OptionalTensor& slope) {
  const int64_t channels = shape[1];
  check(op, "out", out, shape, x);
  check_channels_last(op, "out", out);
  check(op, "packed", packed, {36, x.size(1), grouped(channels)}, x);
  STD_TORCH_CHECK(packed.is_contiguous(), op, ": packed must be contiguous");
  if (bias) check(op, "bias", *bias, {channels}, x);
  if (slope) check(op, "slope", *slope, {slope->numel() == 1 ? 1 : channels}, x);
}

// The tensor's value or values, one a channel in whole groups; `otherwise` where there is none.
inline std::vector<float> per_channel(const OptionalTensor& tensor, int64_t channels,
                                      float otherwise) {
  std::vector<float> result = tensor ? values<float>(*tensor) : std::vector<float>{otherwise};
  if (result.size() == 1) result.assign(channels, result[0]);
  result.resize(grouped(channels));
  return result;
}

// Blocks of 36 tiles, of fewer where that leaves less than 16 of them for the threads, but of 12
// still, or reading the weights would take longer than multiplying by them. The shape alone
// decides, so that statistics do not depend on the number of threads.
inline void set_blocks(ConvArgs& args) {
  const int64_t tiles = ((args.out.h + 3) / 4) * ((args.out.w + 3) / 4);
  const int64_t most = std::clamp<int64_t>(tiles / 16, 12, 36);
  const int64_t blocks = (tiles + most - 1) / most;
  args.block_tiles = (tiles + blocks - 1) / blocks;
  args.blocks = (tiles + args.block_tiles - 1) / args.block_tiles;
}

// Uninitialised.
inline Tensor channels_last_map(const Tensor& x, int64_t channels, int64_t h, int64_t w) {
  Tensor map =
      torch::stable::empty({x.size(0), channels, h, w}, x.scalar_type(), std::nullopt, x.device(),
                           std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  ask_for_large_pages(map.data_ptr(), map.numel() * int64_t(map.element_size()));
  return map;
}

// One axis of a filter at the points of simd/winograd.h: a row for each weight there, times what
// the transforms leave out.
using FilterAxis = std::vector<std::vector<double>>;

inline const FilterAxis& three_taps() {
  static const double a = std::sqrt(0.5), b = std::sqrt(2.0), at_a = -1.5, at_b = 6;
  static const FilterAxis axis = {
      {1 / at_a, a / at_a, a * a / at_a}, {1 / at_a, -a / at_a, a * a / at_a}, {1, 0, 0},
      {1 / at_b, b / at_b, b * b / at_b}, {1 / at_b, -b / at_b, b * b / at_b}, {0, 0, 1}};
  return axis;
}

// Weights (C, panel) for each pair of a row's and a column's point, for each panel of the output
// channels. tap(o, c, i, j) is the filter's.
template <class F>
void pack_filters(const FilterAxis& rows, const FilterAxis& cols, int64_t outputs, int64_t inputs,
                  float* data, F tap) {
  const int64_t columns = grouped(outputs), points = int64_t(rows.size() * cols.size());
  const int64_t most = MIRNET_KERNEL(panel_columns, float)();
  torch::stable::parallel_for(0, columns, kConvGroup, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      const int64_t column = o / most * most, width = std::min(most, columns - column);
      for (int64_t c = 0; c < inputs; ++c) {
        float* to = data + column * inputs * points + c * width + (o - column);
        for (const auto& row : rows)
          for (const auto& col : cols) {
            double sum = 0;
            for (size_t i = 0; o < outputs && i < row.size(); ++i)
              for (size_t j = 0; j < col.size(); ++j) sum += row[i] * col[j] * tap(o, c, i, j);
            *to = float(sum);
            to += inputs * width;
          }
      }
    }
  });
}

}  // namespace mirnet_fast::cpu
