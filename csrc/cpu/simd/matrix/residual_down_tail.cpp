// residual_down_tail: a block of the result is blurred from both maps in float32 (PReLU on the way
// in), rounded, and multiplied by both 1x1 weights; summed for skff_select where it is to be.
#include "../tile_resample.h"
#include "unit.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

// out; rows [begin, end) of N * H'.
void down_tail(const DownArgs& args, int64_t begin, int64_t end) {
  const Unit unit;
  const int64_t channels = args.top.c, outputs = args.out.c, height = args.out.h;
  const int64_t ld = pad<float>(channels), inputs = whole(channels, kMatrixInputs);
  const bf16* packed_top = static_cast<const bf16*>(args.packed_top);
  const bf16* packed_bottom = static_cast<const bf16*>(args.packed_bottom);
  const float* bias = static_cast<const float*>(args.bias);
  int64_t widest_block = 0;
  blocks(args.out.w, [&](int64_t w, int64_t count) {
    const Span span = columns(args.cols, w, w + count);
    if (span.last - span.first >= widest_block) widest_block = span.last - span.first + 1;
  });
  Buffer<bf16> top(kBlock * inputs), bottom(kBlock * inputs);
  Buffer<float> line(widest_block * ld), sums(kBlock * kMatrixOutputs);
  zero<bf16>(top, kBlock * inputs);  // behind the channels they stay so
  zero<bf16>(bottom, kBlock * inputs);
  for (int64_t row = begin; row < end; ++row)
    blocks(args.out.w, [&](int64_t w, int64_t count) {
      const int64_t n = row / height, h = row % height;
      const auto blurred = [&](const Map& map, const void* slope, bf16* to) {
        resample_to<bf16>(map, args.rows, args.cols, n, h, w, count,
                          static_cast<const float*>(slope), line, ld,
                          [&](int64_t i, int64_t c, Vec<float> v, auto span) {
                            put(to + i * inputs + c, v, span);
                          });
      };
      blurred(args.top, args.slope, top);
      blurred(args.bottom, nullptr, bottom);
      double* total = args.out_sums == nullptr ? nullptr : args.out_sums + row * outputs;
      groups(outputs, [&](int64_t column, int64_t some) {
        prefetch_share(args.out, n, h, w, count, column, outputs);
        const int64_t at = column * inputs;
        block_sums({{top, 0, inputs}, 1, 1, inputs, packed_top + at}, count, some, sums);
        block_sums({{bottom, 0, inputs}, 1, 1, inputs, packed_bottom + at}, count, some, sums,
                   true);
        put_block(address<bf16>(args.out, n, h, w) + column, args.out.sw, count, some,
                  total == nullptr ? nullptr : total + column,
                  [&](int64_t i, int64_t c, auto span) {
                    const Vec<float> y = load(sums + i * kMatrixOutputs + c, AllLanes{});
                    return bias == nullptr ? y : y + load(bias + column + c, span);
                  });
      });
    });
}

}  // namespace mirnet_fast::cpu::MIRNET_ISA
