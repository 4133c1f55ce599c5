// dau_attention: one pass over r gives each pixel's channel maximum and mean and each channel's
// sum; the gates follow from these small maps; one more pass multiplies r by both halves of the
// 1x1 convolution, gates applied on the way, bias and residual added, and sums the result for
// skff_select where it is to. Floor: 4 maps. Backward:
// statistics again (1 map), one pass over gradient and r that leaves all but the pooled terms in
// the gradient of r (3 maps), one that adds those (2 maps).
#include "gemm.h"
#include "tile_reduce.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

template <class A>
inline int32_t first_index(const A* pixel, int64_t channels, A value) {
  for (int64_t c = 0; c < channels; ++c)
    if (pixel[c] == value || pixel[c] != pixel[c]) return int32_t(c);
  return 0;
}

// pooled, sums (chunks, C), and argmax where it is wanted; chunks [begin, end).
template <class T>
void dau_stats(const DauArgs& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const Map& r = args.r;
  const int64_t plane = r.h * r.w;
  Buffer<A> buffer(kTile * pad<A>(r.c));
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const ChunkRows rows = rows_of(args.chunks, chunk, r.h);
    double* total = args.sums + chunk * r.c;
    zero(total, r.c);
    A* max = static_cast<A*>(args.pooled) + rows.n * 2 * plane;
    A* mean = max + plane;
    tiles(rows.begin, rows.end, r.w, [&](int64_t h, int64_t w, int64_t count) {
      const View<A> x = view_tile<T>(r, rows.n, h, w, count, buffer);
      const int64_t at = h * r.w + w;
      pool_channels(x, r.c, count, max + at, mean + at);
      for (int64_t i = 0; i < count; ++i) mean[at + i] /= A(r.c);
      if (args.argmax != nullptr)
        for (int64_t i = 0; i < count; ++i)
          args.argmax[rows.n * plane + at + i] = first_index(x.data + i * x.ld, r.c, max[at + i]);
      add_columns<A>(total, r.c, count, [&](int64_t i, int64_t c, auto span) {
        return load(x.data + i * x.ld + c, span);
      });
    });
  }
}

inline float exponential(float x) { return __builtin_expf(x); }
inline double exponential(double x) { return __builtin_exp(x); }

// f(channel, dy, dx, first, last): the taps that reach row h of `height`, and the columns w for
// which w + dx lies inside.
template <class F>
inline void reach(const DauArgs& args, int64_t height, int64_t h, F f) {
  const int64_t half = args.taps / 2;
  for (int64_t ch = 0; ch < 2; ++ch)
    for (int64_t dy = -half; dy <= half; ++dy) {
      if (h + dy < 0 || h + dy >= height) continue;
      for (int64_t dx = -half; dx <= half; ++dx) {
        const int64_t first = dx < 0 ? -dx : 0, last = dx > 0 ? args.r.w - dx : args.r.w;
        if (first < last) f(ch, dy, dx, first, last);
      }
    }
}

// spatial_gate = sigmoid(conv(given)); rows [begin, end) of N * H.
template <class T>
void dau_gate(const DauArgs& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t width = args.r.w, plane = args.r.h * width, half = args.taps / 2;
  const A* weight = static_cast<const A*>(args.spatial_weight);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / args.r.h, h = row % args.r.h;
    A* gate = static_cast<A*>(args.spatial_gate) + n * plane + h * width;
    zero(gate, width);
    const Map& given = args.given;
    const int64_t at = args.first_row + h;
    reach(args, given.h, at, [&](int64_t ch, int64_t dy, int64_t dx, int64_t first, int64_t last) {
      const A tap = weight[(ch * args.taps + dy + half) * args.taps + dx + half];
      const A* source = address<const A>(given, n, at + dy, dx) + ch * given.sc;
#pragma omp simd
      for (int64_t w = first; w < last; ++w) gate[w] += tap * source[w];
    });
    for (int64_t w = 0; w < width; ++w) gate[w] = A(1) / (A(1) + exponential(-gate[w]));
  }
}

// out = A (spatial_gate r) + B (channel_gate r) + bias + x; rows [begin, end) of N * H.
template <class T>
void dau_apply(const DauArgs& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t channels = args.r.c, height = args.r.h, ld = pad<A>(channels), size = kTile * ld;
  const A* bias = static_cast<const A*>(args.bias);
  const bool residual = args.x.data != nullptr;
  Buffer<A> r_buffer(size), x_buffer(size), gated(size), sum(size), spare(size);
  tiles(begin, end, args.r.w, [&](int64_t row, int64_t w, int64_t count) {
    const int64_t n = row / height, h = row % height;
    const View<A> r = view_tile<T>(args.r, n, h, w, count, r_buffer);
    const A* gate = static_cast<const A*>(args.spatial_gate) + row * args.r.w + w;
    for (int64_t i = 0; i < count; ++i)
      lanes<A>(channels, [&](int64_t c, auto span) {
        store(gated + i * ld + c, gate[i] * load(r.data + i * r.ld + c, span), AllLanes{});
      });
    const A* packed_channel =
        static_cast<const A*>(args.packed_channel) + n * args.packed_channel_stride;
    // A few pixels at a time, so that what the sums and the next tile need arrives meanwhile.
    for (int64_t i = 0; i < count; i += kAtOnce) {
      const int64_t some = least(kAtOnce, count - i);
      if (residual) prefetch_tile<T>(args.x, n, h, w + i, some);
      prefetch_tile<T>(args.out, n, h, w + i, some);
      prefetch_tile<T>(args.r, n, h, w + count + i, some);
      gemm<A>(gated + i * ld, ld, 1, some, args.packed_spatial, channels, channels, sum + i * ld,
              ld, false);
      gemm<A>(r.data + i * r.ld, r.ld, 1, some, packed_channel, channels, channels, sum + i * ld,
              ld, true);
    }
    const auto put = [&](auto f) {
      store_tile<T>(args.out, n, h, w, count, spare, [&](int64_t i, int64_t c, auto span) {
        const Vec<A> v = f(i, c, span);
        return bias == nullptr ? v : v + load(bias + c, span);
      });
    };
    if (residual) {
      const View<A> x = view_tile<T>(args.x, n, h, w, count, x_buffer);
      put([&](int64_t i, int64_t c, auto span) {
        return load(sum + i * ld + c, AllLanes{}) + load(x.data + i * x.ld + c, span);
      });
    } else {
      put([&](int64_t i, int64_t c, auto) { return load(sum + i * ld + c, AllLanes{}); });
    }
    if (args.out_sums != nullptr)
      add_tile<T>(args.out_sums + row * channels, args.out, n, h, w, count, spare);
  });
}

// With u = A' grad and v = B' grad: r_grad = spatial_gate u + channel_gate v, spatial_grad = u . r,
// and the sums over pixels for the channel gate, the bias and both halves of the 1x1 weight.
template <class T>
void dau_apply_backward(const DauArgs& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t channels = args.r.c, ld = pad<A>(channels), size = kTile * ld;
  Buffer<A> r_buffer(size), g_buffer(size), gated(size), u(size), v(size), spare(size);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const ChunkRows rows = rows_of(args.chunks, chunk, args.r.h);
    const A* channel_gate = static_cast<const A*>(args.channel_gate) + rows.n * channels;
    double* gate_sum = args.sums + chunk * 2 * channels;
    double* bias_sum = gate_sum + channels;
    A* spatial_sum = static_cast<A*>(args.weight_sums) + chunk * 2 * channels * ld;
    A* channel_sum = spatial_sum + channels * ld;
    zero(gate_sum, 2 * channels);
    zero(spatial_sum, 2 * channels * ld);
    tiles(rows.begin, rows.end, args.r.w, [&](int64_t h, int64_t w, int64_t count) {
      const View<A> r = padded_tile<T>(args.r, rows.n, h, w, count, r_buffer);
      const View<A> g = view_tile<T>(args.grad, rows.n, h, w, count, g_buffer);
      const int64_t at = (rows.n * args.r.h + h) * args.r.w + w;
      const A* gate = static_cast<const A*>(args.spatial_gate) + at;
      A* gate_grad = static_cast<A*>(args.spatial_grad) + at;
      gemm<A>(g.data, g.ld, 1, count, args.packed_spatial, channels, channels, u, ld, false);
      gemm<A>(g.data, g.ld, 1, count, args.packed_channel, channels, channels, v, ld, false);
      for (int64_t i = 0; i < count; ++i) {
        Vec<A> dot{};
        lanes<A>(channels, [&](int64_t c, auto span) {
          const Vec<A> x = load(r.data + i * r.ld + c, span);
          // Lanes past the last channel may hold anything in u: the load cuts them off.
          dot += load(u + i * ld + c, span) * x;
          store(gated + i * ld + c, gate[i] * x, AllLanes{});
        });
        gate_grad[i] = sum_of<A>(dot);
      }
      add_columns<A>(gate_sum, channels, count, [&](int64_t i, int64_t c, auto span) {
        return load(v + i * ld + c, span) * load(r.data + i * r.ld + c, span);
      });
      add_columns<A>(bias_sum, channels, count, [&](int64_t i, int64_t c, auto span) {
        return load(g.data + i * g.ld + c, span);
      });
      add_outer<A>(g.data, g.ld, channels, {gated, ld}, count, channels, spatial_sum, ld);
      add_outer<A>(g.data, g.ld, channels, r, count, channels, channel_sum, ld);
      store_tile<T>(args.r_grad, rows.n, h, w, count, spare, [&](int64_t i, int64_t c, auto span) {
        return gate[i] * load(u + i * ld + c, AllLanes{}) +
               load(channel_gate + c, span) * load(v + i * ld + c, AllLanes{});
      });
    });
  }
}

// spatial_grad becomes that of the logits (pass 1, by tap_sums null), then pooled_grad and
// tap_sums follow from it; chunks [begin, end).
template <class T>
void dau_gate_backward(const DauArgs& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t width = args.r.w, plane = args.r.h * width, half = args.taps / 2;
  const A* weight = static_cast<const A*>(args.spatial_weight);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const ChunkRows rows = rows_of(args.chunks, chunk, args.r.h);
    A* grad = static_cast<A*>(args.spatial_grad) + rows.n * plane;
    if (args.tap_sums == nullptr) {
      const A* gate = static_cast<const A*>(args.spatial_gate) + rows.n * plane;
      for (int64_t p = rows.begin * width; p < rows.end * width; ++p)
        grad[p] *= gate[p] * (A(1) - gate[p]);
      continue;
    }
    double* taps = args.tap_sums + chunk * 2 * args.taps * args.taps;
    zero(taps, 2 * args.taps * args.taps);
    const A* pooled = static_cast<const A*>(args.pooled) + rows.n * 2 * plane;
    A* pooled_grad = static_cast<A*>(args.pooled_grad) + rows.n * 2 * plane;
    for (int64_t h = rows.begin; h < rows.end; ++h) {
      for (int64_t ch = 0; ch < 2; ++ch) zero(pooled_grad + ch * plane + h * width, width);
      reach(args, args.r.h, h,
            [&](int64_t ch, int64_t dy, int64_t dx, int64_t first, int64_t last) {
              // Pixel (h, w) read the pooled value at (h + dy, w + dx); and was read, through the
              // mirrored tap, by the pixel there.
              const A mirrored = weight[(ch * args.taps + half - dy) * args.taps + half - dx];
              const A* reader = grad + (h + dy) * width + dx;
              A* out = pooled_grad + ch * plane + h * width;
#pragma omp simd
              for (int64_t w = first; w < last; ++w) out[w] += mirrored * reader[w];
              const A* own = grad + h * width;
              const A* value = pooled + ch * plane + (h + dy) * width + dx;
              A sum = 0;
#pragma omp simd reduction(+ : sum)
              for (int64_t w = first; w < last; ++w) sum += own[w] * value[w];
              taps[(ch * args.taps + dy + half) * args.taps + dx + half] += double(sum);
            });
    }
  }
}

// r_grad += what came through the maximum, the mean and the global pooling; rows of N * H.
template <class T>
void dau_stats_backward(const DauArgs& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t channels = args.r.c, height = args.r.h, plane = height * args.r.w;
  const int64_t ld = pad<A>(channels);
  Buffer<A> sum(kTile * ld), spare(kTile * ld);
  tiles(begin, end, args.r.w, [&](int64_t row, int64_t w, int64_t count) {
    const int64_t n = row / height, h = row % height;
    const A* shift = static_cast<const A*>(args.shift) + n * channels;
    const A* max_grad = static_cast<const A*>(args.pooled_grad) + n * 2 * plane + h * args.r.w + w;
    const A* mean_grad = max_grad + plane;
    const int32_t* argmax = args.argmax + row * args.r.w + w;
    copy_tile<T>(args.r_grad, n, h, w, count, sum, ld);
    for (int64_t i = 0; i < count; ++i) {
      const Vec<A> mean = splat<A>(mean_grad[i] / A(channels));
      lanes<A>(channels, [&](int64_t c, auto span) {
        A* s = sum + i * ld + c;
        store(s, load(s, AllLanes{}) + (load(shift + c, span) + mean), AllLanes{});
      });
      sum[i * ld + argmax[i]] += max_grad[i];
    }
    store_tile<T>(args.r_grad, n, h, w, count, spare,
                  [&](int64_t i, int64_t c, auto) { return load(sum + i * ld + c, AllLanes{}); });
  });
}

MIRNET_INSTANTIATE(dau_stats, DauArgs)
MIRNET_INSTANTIATE(dau_gate, DauArgs)
MIRNET_INSTANTIATE(dau_apply, DauArgs)
MIRNET_INSTANTIATE(dau_apply_backward, DauArgs)
MIRNET_INSTANTIATE(dau_gate_backward, DauArgs)
MIRNET_INSTANTIATE(dau_stats_backward, DauArgs)

}  // namespace mirnet_fast::cpu::MIRNET_ISA
