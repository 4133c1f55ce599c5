// conv1x1: 1x1 convolution. Fused: bias and PReLU. Floor: C values read and C' written a pixel;
// with 64 channels and more the products take longer. A tile is 48 pixels of a row, and of their
// outputs one panel of the weights at a time: 12 KiB that are in the first-level cache when they
// are stored.
#include "gemm.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

// Rows [begin, end) of N * H.
template <class T>
void conv1x1_rows(const ConvArgs& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t inputs = args.in.c, outputs = args.out.c, height = args.out.h;
  constexpr int64_t kPanel = kMaxVectors * kLanes<A>;
  Buffer<A> buffer(kTile * pad<A>(inputs)), sum(kTile * kPanel);
  tiles(begin, end, args.out.w, [&](int64_t row, int64_t w, int64_t count) {
    const int64_t n = row / height, h = row % height;
    const View<A> x = view_tile<T>(args.in, n, h, w, count, buffer);
    T* out = address<T>(args.out, n, h, w);
    for (int64_t column = 0; column < outputs; column += kPanel) {
      const int64_t width = least(kPanel, outputs - column);
      // Prefetch a panel's share of the next tile, and where its outputs go: a wait for that memory
      // at the stores takes as long as a third of the products.
      const int64_t prefetched = count * column / outputs,
                    next = count * (column + width) / outputs;
      prefetch_tile<T>(args.in, n, h, w + count + prefetched, next - prefetched);
      for (int64_t i = 0; i < count; ++i)
        for (int64_t c = column; c < column + width; c += 64 / int64_t(sizeof(T)))
          __builtin_prefetch(out + i * args.out.sw + c, 1, 2);
      gemm<A>(x.data, x.ld, 1, count, args.packed + column * inputs, inputs, width, sum, kPanel,
              false);
      for (int64_t i = 0; i < count; ++i)
        lanes<A>(width, [&](int64_t c, auto span) {
          Vec<A> v = load(sum + i * kPanel + c, AllLanes{});
          if (args.bias != nullptr) v += load(args.bias + column + c, AllLanes{});
          if (args.slope != nullptr) v = prelu(v, load(args.slope + column + c, AllLanes{}));
          store(out + i * args.out.sw + column + c, v, span);
        });
    }
  });
}

MIRNET_INSTANTIATE_STORED(conv1x1_rows, ConvArgs)

}  // namespace mirnet_fast::cpu::MIRNET_ISA
