// conv3x3: 'same' 3x3 convolution by F(4x6, 3x3), or by F(4x4, 3x3) where convolution.h's
// tile_columns says so. Fused: bias, PReLU, residual, and the statistics of dau_attention
// (per-pixel maximum and mean, per-channel sum), so that the output is not read again. Floor: the
// products, 48 / 216 or 36 / 144 of the plain convolution's multiply-adds. A tile is 6 x 8 pixels
// in and 4 x 6 out, or 6 x 6 and 4 x 4: the next larger one, 6 x 6, loses too much accuracy in
// float32.
#include "winograd/block.h"
#include "winograd/weights.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

namespace {

// f(Cols): the taps along a row, for tiles of this many columns.
template <class F>
inline void with_columns(int64_t tile_columns, F f) {
  if (tile_columns == ThreeTapsWide::kOut)
    f(ThreeTapsWide{});
  else
    f(ThreeTaps{});
}

}  // namespace

// Units [begin, end).
template <class T>
void conv3x3_pack(const ConvPackArgs& args, int64_t begin, int64_t end) {
  with_columns(args.tile_columns, [&](auto cols) {
    for (int64_t i = begin; i < end; ++i) {
      const PackUnit unit = pack_unit(args, i);
      pack_weights<ThreeTaps, decltype(cols)>(args, unit, PackedTaps<T>(args, unit), args.packed);
    }
  });
}

// Blocks [begin, end) of N * blocks.
template <class T>
void conv3x3_blocks(const ConvArgs& args, int64_t begin, int64_t end) {
  with_columns(args.tile_columns, [&](auto cols) {
    const Scratch<T, ThreeTaps, decltype(cols)> scratch(args);
    for (int64_t block = begin; block < end; ++block)
      convolve_block<To::kJoined, T, ThreeTaps, decltype(cols)>(args, block, scratch);
  });
}

MIRNET_INSTANTIATE_STORED(conv3x3_pack, ConvPackArgs)
MIRNET_INSTANTIATE_STORED(conv3x3_blocks, ConvArgs)

}  // namespace mirnet_fast::cpu::MIRNET_ISA
