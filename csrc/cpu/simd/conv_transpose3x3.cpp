// conv_transpose3x3: the transposed 3x3 convolution of stride 2 (padding 1, output padding 1) as
// its four sub-pixel phases: an even output row or column has one tap, an odd one two, and these go
// by F(4, 2). Fused: bias, and in conv_transpose3x3_tail all of residual_up_tail and the sums of
// the result for skff_select. Floor: the products of 16 + 20 + 20 + 25 points for 144 multiply-adds
// of the phases (and 576 with inserted zeros). A tile is 4 x 4 pixels of each phase, from 5 x 5 of
// the input; the phases of a block follow each other, so its input is in the cache.
#include "winograd/block.h"
#include "winograd/weights.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

// Units [begin, end).
template <class T>
void conv_transpose3x3_pack(const ConvPackArgs& args, int64_t begin, int64_t end) {
  const int64_t columns = (args.outputs + kConvGroup - 1) / kConvGroup * kConvGroup;
  const int64_t each = args.inputs * columns;
  for (int64_t i = begin; i < end; ++i) {
    const PackUnit unit = pack_unit(args, i);
    const PackedTaps<T> taps(args, unit);
    float* packed = args.packed;
    pack_weights<OneTap, OneTap>(args, unit, taps, packed);
    pack_weights<OneTap, TwoTaps>(args, unit, taps, packed += kWeights<OneTap, OneTap> * each);
    pack_weights<TwoTaps, OneTap>(args, unit, taps, packed += kWeights<OneTap, TwoTaps> * each);
    pack_weights<TwoTaps, TwoTaps>(args, unit, taps, packed += kWeights<TwoTaps, OneTap> * each);
  }
}

namespace {

// f(Rows, Cols, args) for each phase: which axes have a second tap, and the convolution's output
// and weights there.
template <class T, class F>
inline void phases(const ConvArgs& args, F f) {
  const auto phase = [&](auto rows, auto cols, T* out, const float* packed) {
    ConvArgs own = args;
    own.out.data = out;
    own.packed = packed;
    f(rows, cols, own);
  };
  T* out = static_cast<T*>(args.out.data);
  const int64_t down = args.out.sh / 2, right = args.out.sw / 2;
  const int64_t each = args.in.c * columns_of(args);
  const float* packed = args.packed;
  phase(OneTap{}, OneTap{}, out, packed);
  phase(OneTap{}, TwoTaps{}, out + right, packed += kWeights<OneTap, OneTap> * each);
  phase(TwoTaps{}, OneTap{}, out + down, packed += kWeights<OneTap, TwoTaps> * each);
  phase(TwoTaps{}, TwoTaps{}, out + down + right, packed += kWeights<TwoTaps, OneTap> * each);
}

// The small map's row or column, or the nearest one that there is.
inline int64_t inside(int64_t index, int64_t first, int64_t count) {
  return index < first ? first : least(index, first + count - 1);
}

// The tile's output in one phase: the products in `sum`, and the enlarged projection. A pixel of a
// phase lies between two of the small map along each axis, at a quarter of their distance from one.
// `total`: null, or (D), to which the pixels are added.
template <class T, class Rows, class Cols>
inline void add_enlarged(const UpArgs& args, const Map& out, int64_t n, const Tile& tile,
                         const float* sum, int64_t ldo, double* total) {
  constexpr int kOut = Cols::kOut, kNear = kOut + 1;
  static_assert(Rows::kOut == kOut);
  constexpr int kDown = Rows::kTaps - 1, kRight = Cols::kTaps - 1;
  // Of the two, the nearer one first, as in the table that residual_up_tail_rows goes by.
  const auto between = [](V before, V after, int second) __attribute__((always_inline)) {
    V y{};
    y += 0.75f * (second ? before : after);
    y += 0.25f * (second ? after : before);
    return y;
  };
  const int64_t outputs = args.out.c, first = args.projected_first;
  const int64_t line = args.bottom.w * outputs;
  const float* map = static_cast<const float*>(args.projected) + n * args.projected_rows * line;
  const float* bias = static_cast<const float*>(args.bias);
  const float* row[kNear];
  int64_t col[kNear];
  for (int i = 0; i < kNear; ++i) {
    const int64_t h = args.first_row / 2 + tile.h - 1 + kDown + i;
    row[i] = map + (inside(h, first, args.projected_rows) - first) * line;
    col[i] = inside(tile.w - 1 + kRight + i, 0, args.bottom.w) * outputs;
  }
  T* to = address<T>(out, n, tile.h, tile.w);
  lanes<float>(outputs, [&](int64_t c, auto span) {
    V half[kOut][kNear];
#pragma GCC unroll 5
    for (int j = 0; j < kNear; ++j) {
      V near[kNear];
#pragma GCC unroll 5
      for (int i = 0; i < kNear; ++i) near[i] = load(row[i] + col[j] + c, span);
#pragma GCC unroll 4
      for (int i = 0; i < kOut; ++i) half[i][j] = between(near[i], near[i + 1], kDown);
    }
    const V shift = bias == nullptr ? V{} : load(bias + c, span);
    const float* products[kOut];
    T* rows[kOut];
    for (int i = 0; i < kOut; ++i) {
      products[i] = hide_provenance(sum + i * kOut * ldo + c);
      rows[i] = hide_provenance(to + i * out.sh + c);
    }
    V all{};
    pixels<Rows, Cols>(tile, [&](int i, int j) __attribute__((always_inline)) {
      const V y = load(products[i] + j * ldo, AllLanes{}) +
                  between(half[i][j], half[i][j + 1], kRight) + shift;
      store(rows[i] + j * out.sw, y, span);
      all += y;
    });
    if (total != nullptr) add_to<float>(total + c, all, span);
  });
}

}  // namespace

// Blocks [begin, end) of N * blocks.
template <class T>
void conv_transpose3x3_blocks(const ConvArgs& args, int64_t begin, int64_t end) {
  const Scratch<T, TwoTaps, TwoTaps> scratch(args);
  for (int64_t block = begin; block < end; ++block)
    phases<T>(args, [&](auto rows, auto cols, const ConvArgs& phase) {
      convolve_block<To::kMap, T, decltype(rows), decltype(cols)>(phase, block, scratch);
    });
}

// Blocks [begin, end) of N * blocks. A phase of a block of the large map goes no further than the
// cache.
template <class T>
void conv_transpose3x3_tail(const ConvTailArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kAll = kPixels<TwoTaps, TwoTaps>, kTogether = kTile / kAll;
  const ConvArgs& conv = args.conv;
  const int64_t C = conv.out.c, D = args.tail.out.c, ld = pad<float>(C), ldo = pad<float>(D);
  const Scratch<T, TwoTaps, TwoTaps> scratch(conv);
  Buffer<float> top(conv.block_tiles * kAll * ld), sum(kTile * ldo);
  const int64_t tiles = tiles_of(conv);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t n = block / conv.blocks, first = block % conv.blocks * conv.block_tiles;
    const int64_t count = least(conv.block_tiles, tiles - first);
    phases<T>(conv, [&](auto rows, auto cols, const ConvArgs& phase) {
      using Rows = decltype(rows);
      using Cols = decltype(cols);
      convolve_block<To::kTop, T, Rows, Cols>(phase, block, scratch, top);
      for (int64_t t = 0; t < count; t += kTogether) {
        const int64_t now = least(kTogether, count - t);
        gemm<float>(top + t * kAll * ld, ld, 1, now * kAll, args.tail.packed_top, C, D, sum, ldo,
                    false);
        for (int64_t i = 0; i < now; ++i) {
          const int64_t tile = first + t + i;
          double* const total = args.sums == nullptr
                                    ? nullptr
                                    : args.sums + (n * sum_groups(tiles) + tile / kSumTiles) * D;
          add_enlarged<T, Rows, Cols>(args.tail, phase.out, n, tile_at<Rows, Cols>(conv.out, tile),
                                      sum + i * kAll * ldo, ldo, total);
        }
      }
    });
  }
}

MIRNET_INSTANTIATE_STORED(conv_transpose3x3_pack, ConvPackArgs)
MIRNET_INSTANTIATE_STORED(conv_transpose3x3_blocks, ConvArgs)
MIRNET_INSTANTIATE_STORED(conv_transpose3x3_tail, ConvTailArgs)

}  // namespace mirnet_fast::cpu::MIRNET_ISA
