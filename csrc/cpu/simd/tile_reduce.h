// Sums, maxima and means over a tile's pixels or channels.
#pragma once

#include "tile_io.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

template <class A>
inline void add_to(double* total, Vec<A> sum, AllLanes) {
  typedef double Wide __attribute__((vector_size(kLanes<A> * sizeof(double))));
  typedef double WideUnaligned
      __attribute__((vector_size(kLanes<A> * sizeof(double)), aligned(8), may_alias));
  *reinterpret_cast<WideUnaligned*>(total) += __builtin_convertvector(sum, Wide);
}
template <class A>
inline void add_to(double* total, Vec<A> sum, FirstLanes part) {
  for (int64_t j = 0; j < part.count; ++j) total[j] += double(sum[j]);
}

// total[c] += sum over the tile's pixels of f(i, c, span), by way of vectors: a tile is short, so
// the float32 sums lose nothing that counts before they enter the double total.
template <class A, class F>
inline void add_columns(double* total, int64_t channels, int64_t count, F f) {
  constexpr int kTogether = 4;  // memory in order, and independent sums
  int64_t c = 0;
  for (; c + kTogether * kLanes<A> <= channels; c += kTogether * kLanes<A>) {
    Vec<A> sum[kTogether]{};
    for (int64_t i = 0; i < count; ++i)
      for (int j = 0; j < kTogether; ++j) sum[j] += f(i, c + j * kLanes<A>, AllLanes{});
    for (int j = 0; j < kTogether; ++j) add_to<A>(total + c + j * kLanes<A>, sum[j], AllLanes{});
  }
  lanes<A>(channels - c, [&](int64_t rest, auto span) {
    Vec<A> sum{};
    for (int64_t i = 0; i < count; ++i) sum += f(i, c + rest, span);
    add_to<A>(total + c + rest, sum, span);
  });
}

// The same for a tile of a map.
template <class T>
inline void add_tile(double* total, const Map& map, int64_t n, int64_t h, int64_t w, int64_t count,
                     Acc<T>* buffer) {
  const View<Acc<T>> x = view_tile<T>(map, n, h, w, count, buffer);
  add_columns<Acc<T>>(total, map.c, count, [&](int64_t i, int64_t c, auto span) {
    return load(x.data + i * x.ld + c, span);
  });
}

// A NaN of the pixel becomes its maximum: comparisons pass over it. Its sum is one too, and that is
// rare.
template <class T, class A>
inline void keep_nan(const T* pixel, int64_t channels, A sum, A* max) {
  if (sum == sum) return;
  for (int64_t c = 0; c < channels; ++c)
    if (const A value = to_acc(pixel[c]); value != value) *max = value;
}

// Maximum and sum over the channels of `count` pixels; a NaN wins, as in torch.max.
template <class A>
inline void pool_channels(View<A> x, int64_t channels, int64_t count, A* max, A* total) {
  constexpr int kTogether = kLanes<A>;
  for (int64_t i = 0; i < count; i += kTogether) {
    const int64_t valid = least(kTogether, count - i);
    // Not `best[kTogether]{}`: for that the compiler calls a slow instruction.
    Vec<A> best[kTogether], sum[kTogether];
    for (int64_t j = valid; j < kTogether; ++j) best[j] = sum[j] = Vec<A>{};
    for (int64_t j = 0; j < valid; ++j) {
      const A* pixel = x.data + (i + j) * x.ld;
      Vec<A> b = splat<A>(-__builtin_inf()), s{};
      lanes<A>(channels, [&](int64_t c, auto span) {
        Vec<A> value = load(pixel + c, span);
        s += value;
        if constexpr (__is_same(decltype(span), FirstLanes))
          for (int64_t l = span.count; l < kLanes<A>; ++l) value[l] = -__builtin_inf();
        b = select<A>(value > b, value, b);
      });
      best[j] = b;
      sum[j] = s;
    }
    reduce_each<A>(best, [](Vec<A> a, Vec<A> b) { return select<A>(a > b, a, b); });
    reduce_each<A>(sum, [](Vec<A> a, Vec<A> b) { return a + b; });
    if (valid == kTogether) {
      store(max + i, best[0], AllLanes{});
      store(total + i, sum[0], AllLanes{});
    } else {
      store(max + i, best[0], FirstLanes{valid});
      store(total + i, sum[0], FirstLanes{valid});
    }
  }
  for (int64_t i = 0; i < count; ++i) keep_nan(x.data + i * x.ld, channels, total[i], max + i);
}

}  // namespace mirnet_fast::cpu::MIRNET_ISA
