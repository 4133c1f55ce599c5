// Convolutions by Winograd's minimal filtering: a tile of outputs of a small filter from the
// products at a few points, where the plain way would keep the arithmetic unit busy several times
// as long.
//
// A block is about 30 tiles of 4 x 4 or 4 x 6 outputs. Its transformed input stays in the
// second-level cache while the products of a panel of output channels are made, and so does a
// panel's result until it is transformed back: nothing in between goes to memory. transforms.h says
// how along each axis.
#pragma once

#include "epilogue.h"
#include "products.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

namespace {

inline int64_t panel_of(int64_t columns) { return least(kMaxVectors * kLanes<float>, columns); }

inline int64_t columns_of(const ConvArgs& args) {
  return (args.out.c + kConvGroup - 1) / kConvGroup * kConvGroup;
}

// The memory of one thread, for the tiles that have the most inputs, points and outputs.
template <class T, class Rows, class Cols>
struct Scratch {
  Buffer<float> in, products, pooled;
  Buffer<T> window;
  Buffer<const T*> next_in, next_out, next_residual;

  explicit Scratch(const ConvArgs& args)
      : in(Rows::kPoints * Cols::kPoints * plane(args.block_tiles, pad<float>(args.in.c))),
        products(Rows::kPoints * Cols::kPoints *
                 plane(args.block_tiles, panel_of(columns_of(args)))),
        pooled(args.pooled.data == nullptr
                   ? 0
                   : args.block_tiles * kPixels<Rows, Cols> * 2 * kLanes<float>),
        window(Rows::kIn * Cols::kIn * pad<float>(args.in.c)),
        next_in(args.block_tiles * Rows::kIn),
        next_out(args.block_tiles * Rows::kOut),
        next_residual(args.block_tiles * Rows::kOut) {}
};

template <To Ends, class T, class Rows, class Cols, class S>
inline void convolve_block(const ConvArgs& args, int64_t block, const S& scratch,
                           float* top = nullptr) {
  const int64_t columns = columns_of(args), tiles = tiles_of(args);
  static_assert(Rows::kOut == kTileRows);
  const int64_t first = block % args.blocks * args.block_tiles;
  const int64_t count = least(args.block_tiles, tiles - first);
  const int64_t n = block / args.blocks;
  double* sums = nullptr;
  if (args.pooled.data != nullptr)
    sums = args.sums + (n * sum_groups(tiles) + first / kSumTiles) * args.out.c;
  const Work<T> work{args,
                     n,
                     first,
                     count,
                     tiles,
                     pad<float>(args.in.c),
                     scratch.in,
                     scratch.products,
                     scratch.window,
                     scratch.pooled,
                     top,
                     sums,
                     scratch.next_in,
                     scratch.next_out,
                     scratch.next_residual};
  if (args.pooled.data != nullptr) clear_statistics<Rows, Cols>(work);
  find_prefetches<Rows, Cols>(work);
  block_in<Rows, Cols>(work);
  for (int64_t column = 0; column < columns; column += panel_of(columns)) {
    const int64_t width = panel_of(columns - column);
    panel_products<Rows, Cols>(work, column, width);
    for (int64_t t = 0; t < count; ++t) tile_out<Ends, Rows, Cols>(work, t, column, width);
  }
  if (args.pooled.data != nullptr) write_pooled<Rows, Cols>(work);
}

}  // namespace

}  // namespace mirnet_fast::cpu::MIRNET_ISA
