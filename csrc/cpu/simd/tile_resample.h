// Tiles of a map that is resampled along both axes by sparse tables.
#pragma once

#include "tile_io.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

// First and last input column that the outputs [begin, end) read.
struct Span {
  int64_t first, last;
};
inline Span columns(const Taps& taps, int64_t begin, int64_t end) {
  Span span{INT32_MAX, -1};
  for (int64_t e = taps.start[begin]; e < taps.start[end]; ++e) {
    if (taps.index[e] < span.first) span.first = taps.index[e];
    if (taps.index[e] > span.last) span.last = taps.index[e];
  }
  return span;
}

// The widest such span over all tiles of a row.
inline int64_t widest(const Taps& taps, int64_t outputs) {
  int64_t width = 0;
  for (int64_t w = 0; w < outputs; w += kTile) {
    Span span = columns(taps, w, least(w + kTile, outputs));
    if (span.last - span.first + 1 > width) width = span.last - span.first + 1;
  }
  return width;
}

// The usual blur in one sweep: p[0..2] weighed and added.
template <class A, class T, class Span, class F>
inline __attribute__((always_inline)) Vec<A> three(const T* const* p, const A* weight, int64_t at,
                                                   Span span, F f) {
  return weight[0] * f(load(p[0] + at, span)) + weight[1] * f(load(p[1] + at, span)) +
         weight[2] * f(load(p[2] + at, span));
}

// Prefetches the last two of three rows read side by side, which are new: the processor's own
// prefetching stops at every page.
template <class T>
inline __attribute__((always_inline)) void prefetch_rows(const T* const* p, int64_t at) {
  constexpr int64_t kAhead = 4096 / sizeof(T);
  for (int t = 1; t < 3; ++t) __builtin_prefetch(p[t] + at + kAhead);
}

// line[i][c] = sum over the row taps [begin, end) of weight * map[n, c, row, w + i], after a PReLU
// where `slope` is not null.
template <class T>
inline void combine_rows(const Map& map, const Taps& rows, int32_t begin, int32_t end, int64_t n,
                         int64_t w, int64_t count, const Acc<T>* slope, Acc<T>* line, int64_t ld) {
  using A = Acc<T>;
  if (begin == end) return zero(line, count * ld);
  if (map.sc == 1 && end - begin == 3) {
    const T* p[3];
    A weight[3];
    for (int t = 0; t < 3; ++t) {
      p[t] = address<T>(map, n, rows.index[begin + t], w);
      weight[t] = A(rows.weight[begin + t]);
    }
    if (slope == nullptr && map.sw == ld && map.c == ld) {
      lanes<A>(count * ld, [&](int64_t at, auto) {
        prefetch_rows(p, at);
        store(line + at, three<A>(p, weight, at, AllLanes{}, [](auto x) { return x; }), AllLanes{});
      });
      return;
    }
    for (int64_t i = 0; i < count; ++i)
      lanes<A>(map.c, [&](int64_t c, auto span) {
        const Vec<A> s = slope == nullptr ? splat<A>(1) : load(slope + c, AllLanes{});
        auto f = [&](Vec<A> x) { return prelu(x, s); };
        prefetch_rows(p, i * map.sw + c);
        store(line + i * ld + c, three<A>(p, weight, i * map.sw + c, span, f), AllLanes{});
      });
    return;
  }
  // Any other layout or filter: a row at a time, brought into channels_last first if it must be.
  Buffer<A> row(map.sc == 1 ? 0 : count * ld);
  for (int32_t e = begin; e < end; ++e) {
    const A weight = A(rows.weight[e]);
    const bool first = e == begin;
    auto add = [&](A* out, Vec<A> x, int64_t c) {
      if (slope != nullptr) x = prelu(x, load(slope + c, AllLanes{}));
      store(out, first ? weight * x : load(out, AllLanes{}) + weight * x, AllLanes{});
    };
    if (map.sc == 1) {
      const T* p = address<T>(map, n, rows.index[e], w);
      for (int64_t i = 0; i < count; ++i)
        lanes<A>(map.c, [&](int64_t c, auto span) {
          add(line + i * ld + c, load(p + i * map.sw + c, span), c);
        });
    } else {
      copy_tile<T>(map, n, rows.index[e], w, count, row, ld);
      for (int64_t i = 0; i < count; ++i)
        for (int64_t c = 0; c < ld; c += kLanes<A>)
          add(line + i * ld + c, load(row + i * ld + c, AllLanes{}), c);
    }
  }
}

// put(i, c, vector) for the outputs [w, w + count) of row h of the resampled map: rows first into
// `line` (widest() x ld), then columns. `slope` null, or a PReLU on the way in.
template <class T, class F>
inline void resample_to(const Map& map, const Taps& rows, const Taps& cols, int64_t n, int64_t h,
                        int64_t w, int64_t count, const Acc<T>* slope, Acc<T>* line, int64_t ld,
                        F put) {
  using A = Acc<T>;
  const Span span = columns(cols, w, w + count);
  const int64_t width = span.last < 0 ? 0 : span.last - span.first + 1;
  combine_rows<T>(map, rows, rows.start[h], rows.start[h + 1], n, span.first, width, slope, line,
                  ld);
  for (int64_t i = 0; i < count; ++i) {
    const int32_t begin = cols.start[w + i], taps = cols.start[w + i + 1] - begin;
    const int32_t* index = cols.index + begin;
    const double* weight = cols.weight + begin;
    if (taps == 3) {
      const A* p[3];
      A tap[3];
      for (int t = 0; t < 3; ++t) {
        p[t] = line + (index[t] - span.first) * ld;
        tap[t] = A(weight[t]);
      }
      lanes<A>(map.c, [&](int64_t c, auto part) {
        put(i, c, three<A>(p, tap, c, AllLanes{}, [](auto x) { return x; }), part);
      });
    } else {
      lanes<A>(map.c, [&](int64_t c, auto part) {
        Vec<A> total{};
        for (int32_t t = 0; t < taps; ++t)
          total += A(weight[t]) * load(line + (index[t] - span.first) * ld + c, AllLanes{});
        put(i, c, total, part);
      });
    }
  }
}

// The same into dst (kTile x ld).
template <class T>
inline void resample(const Map& map, const Taps& rows, const Taps& cols, int64_t n, int64_t h,
                     int64_t w, int64_t count, const Acc<T>* slope, Acc<T>* line, Acc<T>* dst,
                     int64_t ld) {
  resample_to<T>(
      map, rows, cols, n, h, w, count, slope, line, ld,
      [&](int64_t i, int64_t c, auto v, auto) { store(dst + i * ld + c, v, AllLanes{}); });
}

}  // namespace mirnet_fast::cpu::MIRNET_ISA
