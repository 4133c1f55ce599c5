// conv_transpose3x3: the transposed 3x3 convolution of stride 2 (padding 1, output padding 1) as
// its four sub-pixel phases: an even output row or column has one tap, an odd one two, and these go
// by F(4, 2). Fused: bias, PReLU, and in conv_transpose3x3_tail all of residual_up_tail. Floor: the
// products of 16 + 20 + 20 + 25 points for 144 multiply-adds of the phases (and 576 with inserted
// zeros). A tile is 4 x 4 pixels of each phase, from 5 x 5 of the input; the phases of a block
// follow each other, so its input is in the cache.
#include "winograd.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

namespace {

template <class Rows, class Cols>
inline void convolve_phase(ConvArgs& args, int64_t block, const Scratch& scratch) {
  convolve_block<Rows, Cols>(args, block, scratch);
  args.packed += kWeights<Rows, Cols> * args.in.c * columns_of(args);
}

}  // namespace

// Units [begin, end).
template <class T>
void conv_transpose3x3_pack(const ConvPackArgs& args, int64_t begin, int64_t end) {
  const int64_t columns = (args.outputs + kConvGroup - 1) / kConvGroup * kConvGroup;
  const int64_t each = args.inputs * columns;
  for (int64_t i = begin; i < end; ++i) {
    const PackUnit unit = pack_unit(args, i);
    float* packed = args.packed;
    pack_weights<OneTap, OneTap>(args, unit, packed);
    pack_weights<OneTap, TwoTaps>(args, unit, packed += kWeights<OneTap, OneTap> * each);
    pack_weights<TwoTaps, OneTap>(args, unit, packed += kWeights<OneTap, TwoTaps> * each);
    pack_weights<TwoTaps, TwoTaps>(args, unit, packed += kWeights<TwoTaps, OneTap> * each);
  }
}

namespace {

inline void convolve_blocks(const ConvArgs& args, const Scratch& scratch, int64_t begin,
                            int64_t end) {
  float* out = static_cast<float*>(args.out.data);
  const int64_t down = args.out.sh / 2, right = args.out.sw / 2;
  for (int64_t block = begin; block < end; ++block) {
    ConvArgs phase = args;
    convolve_phase<OneTap, OneTap>(phase, block, scratch);
    phase.out.data = out + right;
    convolve_phase<OneTap, TwoTaps>(phase, block, scratch);
    phase.out.data = out + down;
    convolve_phase<TwoTaps, OneTap>(phase, block, scratch);
    phase.out.data = out + down + right;
    convolve_phase<TwoTaps, TwoTaps>(phase, block, scratch);
  }
}

}  // namespace

// Blocks [begin, end) of N * blocks.
template <class T>
void conv_transpose3x3_blocks(const ConvArgs& args, int64_t begin, int64_t end) {
  const Scratch scratch(args, panel_of(columns_of(args)));
  convolve_blocks(args, scratch, begin, end);
}

// Strips [begin, end) of N * strips. A strip of the large map goes no further than the cache, and
// a thread's strips lie in the same place.
template <class T>
void conv_transpose3x3_tail(const ConvTailArgs& args, int64_t begin, int64_t end) {
  const int64_t C = args.conv.out.c, width = 2 * args.conv.out.w, line = width * C;
  const int64_t line_of_projected = args.tail.bottom.w * args.tail.out.c;
  const Scratch scratch(args.conv, panel_of(columns_of(args.conv)));
  Buffer<float> top(2 * args.strip_rows * line);
  for (int64_t strip = begin; strip < end; ++strip) {
    const int64_t n = strip / args.strips, first = strip % args.strips * args.strip_rows;
    const int64_t rows = least(args.strip_rows, args.conv.out.h - first);
    ConvArgs conv = args.conv;
    conv.in.data = address<float>(conv.in, n, 0, 0);
    conv.first_row += first;
    conv.out = {top, 1, C, rows, width / 2, 0, 1, 2 * line, 2 * C};
    const int64_t tiles = ((rows + kOut - 1) / kOut) * ((conv.out.w + kOut - 1) / kOut);
    conv.blocks = (tiles + conv.block_tiles - 1) / conv.block_tiles;
    convolve_blocks(conv, scratch, 0, conv.blocks);
    UpArgs tail = args.tail;
    tail.top = {top, 1, C, 2 * rows, width, 0, 1, line, C};
    tail.out.data = address<float>(tail.out, n, 2 * first, 0);
    tail.first_row += 2 * first;
    tail.projected =
        static_cast<float*>(tail.projected) + n * tail.projected_rows * line_of_projected;
    up_tail<float>(tail, 0, 2 * rows);
  }
}

template void conv_transpose3x3_pack<float>(const ConvPackArgs&, int64_t, int64_t);
template void conv_transpose3x3_blocks<float>(const ConvArgs&, int64_t, int64_t);
template void conv_transpose3x3_tail<float>(const ConvTailArgs&, int64_t, int64_t);

}  // namespace mirnet_fast::cpu::MIRNET_ISA
