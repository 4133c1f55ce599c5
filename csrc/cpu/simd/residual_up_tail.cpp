// residual_up_tail: the small map is projected before it is enlarged (a quarter of the work, half a
// map kept), then a tile of 48 output pixels starts from the enlarged projection and adds the large
// map's PReLU times the 1x1 weight. Floor: 4 + 1 maps read, 2 written. Backward: one pass over the
// large maps, one over the small ones with the transposed enlargement; nothing kept in between.
#include "gemm.h"
#include "prelu_gradient.h"
#include "tile_resample.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

// projected = bottom times packed_bottom; rows [begin, end) of N * projected rows.
template <class T>
void up_project(const UpArgs& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const Map& bottom = args.bottom;
  const int64_t outputs = args.out.c, ldo = pad<A>(outputs), height = args.projected_rows;
  Buffer<A> buffer(kTile * pad<A>(bottom.c)), sum(kTile * ldo);
  tiles(begin, end, bottom.w, [&](int64_t row, int64_t w, int64_t count) {
    const View<A> x =
        view_tile<T>(bottom, row / height, args.projected_first + row % height, w, count, buffer);
    gemm<A>(x.data, x.ld, 1, count, args.packed_bottom, bottom.c, outputs, sum, ldo, false);
    A* out = static_cast<A*>(args.projected) + (row * bottom.w + w) * outputs;
    for (int64_t i = 0; i < count; ++i)
      lanes<A>(outputs, [&](int64_t c, auto span) {
        store(out + i * outputs + c, load(sum + i * ldo + c, AllLanes{}), span);
      });
  });
}

// dst = PReLU(map tile).
template <class T>
inline void rectified(const Map& map, const Acc<T>* slope, int64_t n, int64_t h, int64_t w,
                      int64_t count, Acc<T>* dst, int64_t ld) {
  load_tile<T>(map, n, h, w, count, dst, ld,
               [&](auto x, int64_t c) { return prelu(x, at<Acc<T>>(slope, c, x)); });
}

// Rows [begin, end) of N * top's rows.
template <class T>
void up_tail(const UpArgs& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t channels = args.top.c, outputs = args.out.c, height = args.top.h;
  const int64_t ld = pad<A>(channels), ldo = pad<A>(outputs);
  const A* bias = static_cast<const A*>(args.bias);
  const Map& b = args.bottom;
  const int64_t line_size = b.w * outputs;
  const Map projected{static_cast<A*>(args.projected) - args.projected_first * line_size,
                      b.n,
                      outputs,
                      b.h,
                      b.w,
                      args.projected_rows * line_size,
                      1,
                      line_size,
                      outputs};
  Buffer<A> line(widest(args.cols, args.out.w) * ldo), top(kTile * ld), sum(kTile * ldo);
  Buffer<A> spare(kTile * ldo);
  tiles(begin, end, args.out.w, [&](int64_t row, int64_t w, int64_t count) {
    const int64_t n = row / height, h = row % height;
    resample<A>(projected, args.rows, args.cols, n, args.first_row + h, w, count, nullptr, line,
                sum, ldo);
    View<A> x{top, ld};
    if (args.slope == nullptr)
      x = view_tile<T>(args.top, n, h, w, count, top);
    else
      rectified<T>(args.top, static_cast<const A*>(args.slope), n, h, w, count, top, ld);
    gemm<A>(x.data, x.ld, 1, count, args.packed_top, channels, outputs, sum, ldo, true);
    store_tile<T>(args.out, n, h, w, count, spare, [&](int64_t i, int64_t c, auto span) {
      const Vec<A> v = load(sum + i * ldo + c, AllLanes{});
      return bias == nullptr ? v : v + load(bias + c, span);
    });
  });
}

// top_grad, and the sums for bias, slope and top weight; chunks [begin, end) of the large map.
template <class T>
void up_tail_backward_large(const UpArgs& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t channels = args.top.c, outputs = args.grad.c;
  const int64_t ld = pad<A>(channels), ldo = pad<A>(outputs);
  const A* slope = static_cast<const A*>(args.slope);
  Buffer<A> g_buffer(kTile * ldo), x_buffer(kTile * ld), top(kTile * ld), back(kTile * ld);
  Buffer<A> spare(kTile * ld);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const ChunkRows rows = rows_of(args.chunks, chunk, args.top.h);
    double* bias_sum = args.sums + chunk * (outputs + channels);
    double* slope_sum = bias_sum + outputs;
    A* weight_sum = static_cast<A*>(args.top_sums) + chunk * outputs * ld;
    zero(bias_sum, outputs + channels);
    zero(weight_sum, outputs * ld);
    tiles(rows.begin, rows.end, args.top.w, [&](int64_t h, int64_t w, int64_t count) {
      const View<A> g = view_tile<T>(args.grad, rows.n, h, w, count, g_buffer);
      add_columns<A>(bias_sum, outputs, count, [&](int64_t i, int64_t c, auto span) {
        return load(g.data + i * g.ld + c, span);
      });
      rectified<T>(args.top, slope, rows.n, h, w, count, top, ld);
      add_outer<A>(g.data, g.ld, outputs, {top, ld}, count, channels, weight_sum, ld);
      gemm<A>(g.data, g.ld, 1, count, args.packed_top, outputs, channels, back, ld, false);
      prelu_gradient<T>(args.top, args.top_grad, slope, rows.n, h, w, count, back, ld, slope_sum,
                        x_buffer, spare);
    });
  }
}

// bottom_grad and the sums for the bottom weight; chunks [begin, end) of the small map.
template <class T>
void up_tail_backward_small(const UpArgs& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t inputs = args.bottom.c, outputs = args.grad.c;
  const int64_t ld = pad<A>(inputs), ldo = pad<A>(outputs), width = args.bottom.w;
  Buffer<A> line(widest(args.cols_back, width) * ldo), g(kTile * ldo), x_buffer(kTile * ld);
  Buffer<A> back(kTile * ld), spare(kTile * ld);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const ChunkRows rows = rows_of(args.small_chunks, chunk, args.bottom.h);
    A* weight_sum = static_cast<A*>(args.bottom_sums) + chunk * outputs * ld;
    zero(weight_sum, outputs * ld);
    tiles(rows.begin, rows.end, width, [&](int64_t h, int64_t w, int64_t count) {
      resample<T>(args.grad, args.rows_back, args.cols_back, rows.n, h, w, count, nullptr, line, g,
                  ldo);
      const View<A> x = padded_tile<T>(args.bottom, rows.n, h, w, count, x_buffer);
      add_outer<A>(g, ldo, outputs, x, count, inputs, weight_sum, ld);
      gemm<A>(g, ldo, 1, count, args.packed_bottom, outputs, inputs, back, ld, false);
      store_tile<T>(args.bottom_grad, rows.n, h, w, count, spare, [&](int64_t i, int64_t c, auto) {
        return load(back + i * ld + c, AllLanes{});
      });
    });
  }
}

MIRNET_INSTANTIATE(up_project, UpArgs)
MIRNET_INSTANTIATE(up_tail, UpArgs)
MIRNET_INSTANTIATE(up_tail_backward_large, UpArgs)
MIRNET_INSTANTIATE(up_tail_backward_small, UpArgs)

}  // namespace mirnet_fast::cpu::MIRNET_ISA
