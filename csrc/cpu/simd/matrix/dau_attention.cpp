// dau_attention's last pass: out = spatial_gate (A r) + B (channel_gate r) + bias + x. The first
// product takes r and its weight as they are and is gated in float32, the second one the weight
// with an image's gates, rounded: so r is multiplied where it lies.
#include "unit.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

// Rows [begin, end) of N * H.
void dau_apply(const DauArgs& args, int64_t begin, int64_t end) {
  const Unit unit;
  const int64_t channels = args.r.c, height = args.r.h, inputs = whole(channels, kMatrixInputs);
  const float* bias = static_cast<const float*>(args.bias);
  const bf16* packed_spatial = static_cast<const bf16*>(args.packed_spatial);
  // The outputs of one group must not be the inputs of the next.
  const bool copy = args.out.data == args.r.data;
  Buffer<bf16> buffer(buffer_values(channels));
  Buffer<float> spatial(kBlock * kMatrixOutputs), channel(kBlock * kMatrixOutputs);
  for (int64_t row = begin; row < end; ++row)
    blocks(args.r.w, [&](int64_t w, int64_t count) {
      const int64_t n = row / height, h = row % height;
      const Pixels r = pixels_of(args.r, n, h, w, count, 1, 1, buffer, copy);
      const float* gate = static_cast<const float*>(args.spatial_gate) + row * args.r.w + w;
      const bf16* packed_channel =
          static_cast<const bf16*>(args.packed_channel) + n * args.packed_channel_stride;
      double* total = args.out_sums == nullptr ? nullptr : args.out_sums + row * channels;
      groups(channels, [&](int64_t column, int64_t some) {
        if (args.x.data != nullptr) prefetch_share(args.x, n, h, w, count, column, channels);
        prefetch_share(args.out, n, h, w, count, column, channels);
        prefetch_share(args.r, n, h, w + count, count, column, channels);
        const int64_t at = column * inputs;
        block_sums({r, 1, 1, inputs, packed_spatial + at}, count, some, spatial);
        block_sums({r, 1, 1, inputs, packed_channel + at}, count, some, channel);
        const bf16* x = args.x.data == nullptr ? nullptr : address<bf16>(args.x, n, h, w) + column;
        put_block(address<bf16>(args.out, n, h, w) + column, args.out.sw, count, some,
                  total == nullptr ? nullptr : total + column,
                  [&](int64_t i, int64_t c, auto span) {
                    const int64_t from = i * kMatrixOutputs + c;
                    Vec<float> y = gate[i] * load(spatial + from, AllLanes{}) +
                                   load(channel + from, AllLanes{});
                    if (x != nullptr) y += load(x + i * args.x.sw + c, span);
                    return bias == nullptr ? y : y + load(bias + column + c, span);
                  });
      });
    });
}

}  // namespace mirnet_fast::cpu::MIRNET_ISA
