// residual_down_tail: blur and 1x1 convolution commute with the sum of both halves, so a tile of
// 48 output pixels is blurred from both maps (PReLU on the way in) and multiplied once with K = 2C,
// and summed for skff_select where it is to.
// Floor: both maps read, one of half their size written. Backward: a pass over the small map gives
// the weights' gradients and the gradients of both blurred maps (half a map each, kept for the next
// pass), a pass over the large maps applies the transposed blur and the PReLU's derivative.
#include "gemm.h"
#include "prelu_gradient.h"
#include "tile_resample.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

// out; rows [begin, end) of N * H'.
template <class T>
void down_tail(const DownArgs& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t channels = args.top.c, outputs = args.out.c, height = args.out.h;
  const int64_t ld = pad<A>(channels), ldo = pad<A>(outputs);
  const A* bias = static_cast<const A*>(args.bias);
  Buffer<A> line(widest(args.cols, args.out.w) * ld), top(kTile * ld), bottom(kTile * ld);
  Buffer<A> sum(kTile * ldo), spare(kTile * ldo);
  tiles(begin, end, args.out.w, [&](int64_t row, int64_t w, int64_t count) {
    const int64_t n = row / height, h = row % height;
    resample<T>(args.top, args.rows, args.cols, n, h, w, count, static_cast<const A*>(args.slope),
                line, top, ld);
    resample<T>(args.bottom, args.rows, args.cols, n, h, w, count, nullptr, line, bottom, ld);
    for (int64_t i = 0; i < count; i += kAtOnce) {
      const int64_t some = least(kAtOnce, count - i);
      prefetch_tile<T>(args.out, n, h, w + i, some);
      gemm<A>(top + i * ld, ld, 1, some, args.packed_top, channels, outputs, sum + i * ldo, ldo,
              false);
      gemm<A>(bottom + i * ld, ld, 1, some, args.packed_bottom, channels, outputs, sum + i * ldo,
              ldo, true);
    }
    store_tile<T>(args.out, n, h, w, count, spare, [&](int64_t i, int64_t c, auto span) {
      const Vec<A> v = load(sum + i * ldo + c, AllLanes{});
      return bias == nullptr ? v : v + load(bias + c, span);
    });
    if (args.out_sums != nullptr)
      add_tile<T>(args.out_sums + row * outputs, args.out, n, h, w, count, spare);
  });
}

// small_top, small_bottom, and the sums for bias and weights; chunks [begin, end) of the small map.
template <class T>
void down_tail_backward_small(const DownArgs& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t channels = args.top.c, outputs = args.grad.c;
  const int64_t ld = pad<A>(channels), height = args.grad.h, width = args.grad.w;
  Buffer<A> line(widest(args.cols, width) * ld), blurred(kTile * ld), back(kTile * ld);
  Buffer<A> g_buffer(kTile * pad<A>(outputs));
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const ChunkRows rows = rows_of(args.chunks, chunk, height);
    double* bias_sum = args.sums + chunk * outputs;
    A* weight_sum = static_cast<A*>(args.weight_sums) + chunk * 2 * outputs * ld;
    zero(bias_sum, outputs);
    zero(weight_sum, 2 * outputs * ld);
    tiles(rows.begin, rows.end, width, [&](int64_t h, int64_t w, int64_t count) {
      const View<A> g = view_tile<T>(args.grad, rows.n, h, w, count, g_buffer);
      add_columns<A>(bias_sum, outputs, count, [&](int64_t i, int64_t c, auto span) {
        return load(g.data + i * g.ld + c, span);
      });
      auto half = [&](const Map& map, const void* slope, const void* packed, void* small, A* sum) {
        resample<T>(map, args.rows, args.cols, rows.n, h, w, count, static_cast<const A*>(slope),
                    line, blurred, ld);
        add_outer<A>(g.data, g.ld, outputs, {blurred, ld}, count, channels, sum, ld);
        gemm<A>(g.data, g.ld, 1, count, packed, outputs, channels, back, ld, false);
        A* out = static_cast<A*>(small) + ((rows.n * height + h) * width + w) * channels;
        for (int64_t i = 0; i < count; ++i)
          lanes<A>(channels, [&](int64_t c, auto span) {
            store(out + i * channels + c, load(back + i * ld + c, AllLanes{}), span);
          });
      };
      half(args.top, args.slope, args.packed_top, args.small_top, weight_sum);
      half(args.bottom, nullptr, args.packed_bottom, args.small_bottom, weight_sum + outputs * ld);
    });
  }
}

// top_grad, bottom_grad and slope_sums; chunks [begin, end) of the large map.
template <class T>
void down_tail_backward_large(const DownArgs& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t channels = args.top.c, ld = pad<A>(channels), width = args.top.w;
  const A* slope = static_cast<const A*>(args.slope);
  auto small = [&](void* data) {
    const Map& g = args.grad;
    return Map{data, g.n, channels, g.h, g.w, g.h * g.w * channels, 1, g.w * channels, channels};
  };
  const Map small_top = small(args.small_top), small_bottom = small(args.small_bottom);
  Buffer<A> line(widest(args.cols_back, width) * ld), back(kTile * ld), buffer(kTile * ld);
  Buffer<A> spare(kTile * ld);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const ChunkRows rows = rows_of(args.big_chunks, chunk, args.top.h);
    double* slope_sum = args.slope_sums + chunk * channels;
    zero(slope_sum, channels);
    tiles(rows.begin, rows.end, width, [&](int64_t h, int64_t w, int64_t count) {
      resample<A>(small_bottom, args.rows_back, args.cols_back, rows.n, h, w, count, nullptr, line,
                  back, ld);
      store_tile<T>(args.bottom_grad, rows.n, h, w, count, spare, [&](int64_t i, int64_t c, auto) {
        return load(back + i * ld + c, AllLanes{});
      });
      resample<A>(small_top, args.rows_back, args.cols_back, rows.n, h, w, count, nullptr, line,
                  back, ld);
      prelu_gradient<T>(args.top, args.top_grad, slope, rows.n, h, w, count, back, ld, slope_sum,
                        buffer, spare);
    });
  }
}

MIRNET_INSTANTIATE(down_tail, DownArgs)
MIRNET_INSTANTIATE(down_tail_backward_small, DownArgs)
MIRNET_INSTANTIATE(down_tail_backward_large, DownArgs)

}  // namespace mirnet_fast::cpu::MIRNET_ISA
