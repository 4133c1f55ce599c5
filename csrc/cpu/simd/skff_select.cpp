// skff_select: one pass sums the branches over the pixels, one pass weighs and adds them; the
// logits in between are a few thousand multiplications and done by the caller. Floor: 2 B + 1
// maps; B + 1 where what made the branches left their sums, and there is no first pass. Backward:
// one pass over gradient and branches, one that writes B gradients; 2 B + 2 maps.
#include "tile_reduce.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

constexpr int kFewBranches = 4;

// sums (chunks, C): the branches' sum over the pixels of a chunk.
template <class T>
void skff_pool(const SkffArgs& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const Map& first = args.inputs[0];
  Buffer<A> buffer(kTile * pad<A>(first.c));
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const ChunkRows rows = rows_of(args.chunks, chunk, first.h);
    double* total = args.sums + chunk * first.c;
    zero(total, first.c);
    tiles(rows.begin, rows.end, first.w, [&](int64_t h, int64_t w, int64_t count) {
      for (int64_t b = 0; b < args.branches; ++b)
        add_tile<T>(total, args.inputs[b], rows.n, h, w, count, buffer);
    });
  }
}

template <class T, int B>
inline void combine_few(const SkffArgs& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t channels = args.out.c, size = kTile * pad<A>(channels), height = args.out.h;
  Buffer<A> buffer(B * size), spare(size);
  tiles(begin, end, args.out.w, [&](int64_t row, int64_t w, int64_t count) {
    const int64_t n = row / height, h = row % height;
    const A* attention = static_cast<const A*>(args.attention) + n * B * channels;
    View<A> x[B];
    for (int b = 0; b < B; ++b)
      x[b] = view_tile<T>(args.inputs[b], n, h, w, count, buffer + b * size);
    store_tile<T>(args.out, n, h, w, count, spare, [&](int64_t i, int64_t c, auto span) {
      Vec<A> sum = load(attention + c, span) * load(x[0].data + i * x[0].ld + c, span);
      for (int b = 1; b < B; ++b)
        sum += load(attention + b * channels + c, span) * load(x[b].data + i * x[b].ld + c, span);
      return sum;
    });
  });
}

template <class T>
inline void combine_many(const SkffArgs& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t channels = args.out.c, ld = pad<A>(channels), height = args.out.h;
  Buffer<A> buffer(kTile * ld), sum(kTile * ld), spare(kTile * ld);
  tiles(begin, end, args.out.w, [&](int64_t row, int64_t w, int64_t count) {
    const int64_t n = row / height, h = row % height;
    zero<A>(sum, count * ld);
    for (int64_t b = 0; b < args.branches; ++b) {
      const A* attention =
          static_cast<const A*>(args.attention) + (n * args.branches + b) * channels;
      const View<A> x = view_tile<T>(args.inputs[b], n, h, w, count, buffer);
      for (int64_t i = 0; i < count; ++i)
        lanes<A>(channels, [&](int64_t c, auto span) {
          A* s = sum + i * ld + c;
          store(s,
                load(s, AllLanes{}) + load(attention + c, span) * load(x.data + i * x.ld + c, span),
                AllLanes{});
        });
    }
    store_tile<T>(args.out, n, h, w, count, spare,
                  [&](int64_t i, int64_t c, auto) { return load(sum + i * ld + c, AllLanes{}); });
  });
}

// out = sum over b of attention[n, b, c] * input b; rows [begin, end) of N * H.
template <class T>
void skff_combine(const SkffArgs& args, int64_t begin, int64_t end) {
  switch (args.branches) {
    case 1:
      return combine_few<T, 1>(args, begin, end);
    case 2:
      return combine_few<T, 2>(args, begin, end);
    case 3:
      return combine_few<T, 3>(args, begin, end);
    case kFewBranches:
      return combine_few<T, kFewBranches>(args, begin, end);
    default:
      return combine_many<T>(args, begin, end);
  }
}

// sums (chunks, 1 + B, C): the branches' sum again, and gradient * branch for each branch.
template <class T>
void skff_pool_backward(const SkffArgs& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const Map& grad = args.grad;
  const int64_t size = kTile * pad<A>(grad.c);
  Buffer<A> grad_buffer(size), buffer(size);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const ChunkRows rows = rows_of(args.chunks, chunk, grad.h);
    double* total = args.sums + chunk * (1 + args.branches) * grad.c;
    zero(total, (1 + args.branches) * grad.c);
    tiles(rows.begin, rows.end, grad.w, [&](int64_t h, int64_t w, int64_t count) {
      const View<A> g = view_tile<T>(grad, rows.n, h, w, count, grad_buffer);
      for (int64_t b = 0; b < args.branches; ++b) {
        const View<A> x = view_tile<T>(args.inputs[b], rows.n, h, w, count, buffer);
        add_columns<A>(total, grad.c, count, [&](int64_t i, int64_t c, auto span) {
          return load(x.data + i * x.ld + c, span);
        });
        add_columns<A>(
            total + (1 + b) * grad.c, grad.c, count, [&](int64_t i, int64_t c, auto span) {
              return load(g.data + i * g.ld + c, span) * load(x.data + i * x.ld + c, span);
            });
      }
    });
  }
}

// input_grads[b] = attention[n, b, c] * grad + shift[n, c]; rows [begin, end) of N * H.
template <class T>
void skff_combine_backward(const SkffArgs& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t channels = args.grad.c, size = kTile * pad<A>(channels), height = args.grad.h;
  Buffer<A> buffer(size), spare(size);
  tiles(begin, end, args.grad.w, [&](int64_t row, int64_t w, int64_t count) {
    const int64_t n = row / height, h = row % height;
    const View<A> g = view_tile<T>(args.grad, n, h, w, count, buffer);
    const A* shift = static_cast<const A*>(args.shift) + n * channels;
    for (int64_t b = 0; b < args.branches; ++b) {
      const A* attention =
          static_cast<const A*>(args.attention) + (n * args.branches + b) * channels;
      store_tile<T>(args.input_grads[b], n, h, w, count, spare,
                    [&](int64_t i, int64_t c, auto span) {
                      return load(attention + c, span) * load(g.data + i * g.ld + c, span) +
                             load(shift + c, span);
                    });
    }
  });
}

MIRNET_INSTANTIATE(skff_pool, SkffArgs)
MIRNET_INSTANTIATE(skff_combine, SkffArgs)
MIRNET_INSTANTIATE(skff_pool_backward, SkffArgs)
MIRNET_INSTANTIATE(skff_combine_backward, SkffArgs)

}  // namespace mirnet_fast::cpu::MIRNET_ISA
