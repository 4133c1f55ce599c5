// What the convolutions share: checks of their arguments; and for those on simd/winograd/, tiles
// and blocks.
#pragma once

#include "packed_weights.h"

namespace mirnet_fast::cpu {

inline void check_channels_last(const char* op, const char* name, const Tensor& tensor) {
  MIRNET_CHECK(tensor.size(1) == 1 || tensor.stride(1) == 1, op, ": ", name,
               " must be channels_last");
}

inline void check_input(const char* op, const Tensor& x) {
  check_map(op, "x", x);
  MIRNET_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16, op,
               ": x must be float32 or bfloat16");
  check_channels_last(op, "x", x);
}

// (channels of the input in dimension `inputs`, those of the output in the other, taps, taps): the
// latter.
inline int64_t check_weight(const char* op, const Tensor& x, const Tensor& weight, int inputs,
                            int64_t taps = 3) {
  const Shape size = shape_of(weight);
  MIRNET_CHECK(size.size() == 4 && size[inputs] == x.size(1) && size[1 - inputs] > 0 &&
                   size[2] == taps && size[3] == taps,
               op, ": weight must be ", inputs == 1 ? "(C', C, " : "(C, C', ", taps, ", ", taps,
               ") with C = ", x.size(1), " and C' >= 1; got ", text(size));
  check(op, "weight", weight, size, x);
  return size[1 - inputs];
}

// bias and slope, and an output of this shape.
inline void check_convolution(const char* op, const Tensor& out, const Shape& shape,
                              const Tensor& x, const OptionalTensor& bias,
                              const OptionalTensor& slope) {
  const int64_t channels = shape[1];
  check(op, "out", out, shape, x);
  check_channels_last(op, "out", out);
  if (bias) check(op, "bias", *bias, {channels}, x);
  if (slope) check(op, "slope", *slope, {slope->numel() == 1 ? 1 : channels}, x);
}

// f(Tag<T>) for the type that the maps of an input that was checked are stored in.
template <class F>
void by_stored(const Tensor& x, F f) {
  if (x.scalar_type() == ScalarType::Float)
    f(Tag<float>{});
  else
    f(Tag<bf16>{});
}

// The tensor's value or values of T, one a channel in whole groups; null without a tensor.
template <class T>
class PerChannel {
 public:
  PerChannel(const OptionalTensor& tensor, int64_t channels) {
    if (!tensor) return;
    values_ = values<T>(*tensor);
    if (values_.size() == 1) values_.assign(channels, values_[0]);
    values_.resize(grouped(channels));
  }
  const float* data() const { return values_.empty() ? nullptr : values_.data(); }

 private:
  Vector<float> values_;
};

// Of the tiles of conv3x3: 6 where that is fewer products, and the channels are few: the error
// grows with their root, to 2.2e-6 of the result at 128 against 1.1e-6 with 4 columns, and with
// more of them reading the weights would take what is gained.
inline int64_t tile_columns(const Map& in, const Map& out) {
  constexpr int64_t kFewInputs = 128;
  const int64_t wide = tile_points(6) * ((out.w + 5) / 6);
  return in.c <= kFewInputs && wide < tile_points(4) * ((out.w + 3) / 4) ? 6 : 4;
}

// Blocks that keep every thread busy to the end: of at most 36 tiles (44 of 6 columns), which the
// second-level cache about has room for, and not of few, as reading the weights takes a block as
// long as 8 tiles more would.
inline void set_blocks(ConvArgs& args) {
  constexpr int64_t kWeights = 8;
  const int64_t threads = torch::stable::get_num_threads(), tiles = tiles_of(args);
  int64_t shortest = INT64_MAX;
  for (int64_t most = args.tile_columns == 6 ? 44 : 36; most > 0; most -= kSumTiles) {
    const int64_t blocks = (tiles + most - 1) / most;
    const int64_t time = (args.out.n * blocks + threads - 1) / threads * (most + kWeights);
    if (time >= shortest) continue;
    shortest = time;
    args.block_tiles = most;
    args.blocks = blocks;
  }
}

// A convolution on simd/winograd/ of maps of T: its arguments with what they point to.
template <class T>
struct Convolution {
  ConvArgs args;

  // maps: its maps, rows and tile_columns.
  Convolution(const ConvArgs& maps, Packing packing, const Tensor& weight, bool outputs_first,
              const OptionalTensor& bias, const OptionalTensor& slope, bool keep_weights)
      : args(maps),
        biases_(bias, maps.out.c),
        slopes_(slope, maps.out.c),
        packed_(pack_for<T>(packing, weight, outputs_first, maps.tile_columns,
                            maps.out.n * tiles_of(maps), keep_weights)),
        ordered_(weight.is_contiguous() ? weight : torch::stable::contiguous(weight)) {
    args.packed = packed_.get();
    args.weight = ordered_.data_ptr();
    args.output_stride = 9 * (outputs_first ? weight.size(1) : 1);
    args.input_stride = 9 * (outputs_first ? 1 : weight.size(1));
    args.bias = biases_.data();
    args.slope = slopes_.data();
    set_blocks(args);
  }

 private:
  PerChannel<T> biases_, slopes_;
  PackedWeights packed_;
  Tensor ordered_;  // the weight, for the tiles that the packed one does not serve
};

// Of a transposed convolution's output the pixels of the first phase, with so many channels: those
// of the others lie beside them.
inline Map first_phase(const Tensor& out, int64_t channels) {
  Map map = map_of(out);
  map.c = channels;
  map.h /= 2;
  map.w /= 2;
  map.sh *= 2;
  map.sw *= 2;
  return map;
}

}  // namespace mirnet_fast::cpu
