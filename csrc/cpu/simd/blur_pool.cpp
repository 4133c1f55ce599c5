// blur_pool: the binomial filter and its stride as one separable sparse map; the backward is the
// same loop over the transposed map. Floor: the input read once, the output written once. A tile
// is 48 output pixels: its input rows stay in the second-level cache between output rows.
#include "tile_resample.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

// Output rows [begin, end) of N * H'.
template <class T>
void blur_pool_rows(const BlurPoolArgs& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t ld = pad<A>(args.in.c), height = args.out.h;
  Buffer<A> line(widest(args.cols, args.out.w) * ld), result(kTile * ld), spare(kTile * ld);
  tiles(begin, end, args.out.w, [&](int64_t row, int64_t w, int64_t count) {
    const int64_t n = row / height, h = row % height;
    if (args.out.sc == 1) {
      T* out = address<T>(args.out, n, h, w);
      resample_to<T>(args.in, args.rows, args.cols, n, h, w, count, nullptr, line, ld,
                     [&](int64_t i, int64_t c, auto v, auto span) {
                       store(out + i * args.out.sw + c, v, span);
                     });
      return;
    }
    resample<T>(args.in, args.rows, args.cols, n, h, w, count, nullptr, line, result, ld);
    store_tile<T>(args.out, n, h, w, count, spare, [&](int64_t i, int64_t c, auto) {
      return load(result + i * ld + c, AllLanes{});
    });
  });
}

MIRNET_INSTANTIATE(blur_pool_rows, BlurPoolArgs)

}  // namespace mirnet_fast::cpu::MIRNET_ISA
