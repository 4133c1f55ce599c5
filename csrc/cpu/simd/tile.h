// The pieces every op is made of. A tile is up to kTile pixels of one row, channels last, in the
// accumulation type: it stays in the first-level cache, so any layout and dtype costs one
// conversion on the way in and out, and channels_last float32 none.
#pragma once

#include "vec.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

// 48 pixels: a multiple of the GEMM's 6 rows; 64 channels of both halves take 24 KiB.
constexpr int64_t kTile = 48;
constexpr int kRows = 6;
// Memory is asked for what so many pixels will need while their products are made: asked for at
// once, what a whole tile needs would keep these waiting.
constexpr int64_t kAtOnce = 2 * kRows;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class A>
inline int64_t pad(int64_t count) {
  return (count + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
}

// A buffer of the calling thread, aligned to a cache line.
template <class A>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : block_(__builtin_malloc(size_t(count) * sizeof(A) + 64)),
        data_(reinterpret_cast<A*>((reinterpret_cast<uintptr_t>(block_) + 63) & ~uintptr_t(63))) {
    if (block_ == nullptr) out_of_memory(count * int64_t(sizeof(A)) + 64);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { __builtin_free(block_); }
  operator A*() const { return data_; }

 private:
  using size_t = decltype(sizeof(0));
  void* block_;
  A* data_;
};

// A tile for reading: pixel i starts at data + i * ld.
template <class A>
struct View {
  const A* data;
  int64_t ld;
};

template <class T>
inline T* address(const Map& map, int64_t n, int64_t h, int64_t w) {
  return static_cast<T*>(map.data) + n * map.sn + h * map.sh + w * map.sw;
}

// f(i, c) for the squares of kLanes pixels and as many channels that cover a tile, where it has so
// many: the last ones overlap with those before.
template <class A, class F>
inline bool squares(int64_t pixels, int64_t channels, F f) {
  constexpr int64_t kAll = kLanes<A>;
  if (pixels < kAll || channels < kAll) return false;
  for (int64_t c = 0; c < channels; c += kAll)
    for (int64_t i = 0; i < pixels; i += kAll)
      f(least(i, pixels - kAll), least(c, channels - kAll));
  return true;
}

// dst[i][c] = f(map[n, c, h, w + i], c): f takes a vector or a scalar, with its channel.
template <class T, class F>
inline void load_tile(const Map& map, int64_t n, int64_t h, int64_t w, int64_t count, Acc<T>* dst,
                      int64_t ld, F f) {
  using A = Acc<T>;
  const T* p = address<T>(map, n, h, w);
  if (map.sc == 1) {
    for (int64_t i = 0; i < count; ++i)
      lanes<A>(map.c, [&](int64_t c, auto span) {
        store(dst + i * ld + c, f(load(p + i * map.sw + c, span), c), Full{});
      });
    return;
  }
  const auto turn = [&](int64_t i, int64_t c) {
    Vec<A> v[kLanes<A>];
    load_turned<A>(p + c * map.sc + i, map.sc, v);
    for (int j = 0; j < kLanes<A>; ++j) store(dst + (i + j) * ld + c, f(v[j], c), Full{});
  };
  if (map.sw == 1 && squares<A>(count, map.c, turn)) return;
  for (int64_t c = 0; c < map.c; ++c)
    for (int64_t i = 0; i < count; ++i) dst[i * ld + c] = f(to_acc(p[c * map.sc + i * map.sw]), c);
}

template <class T>
inline void copy_tile(const Map& map, int64_t n, int64_t h, int64_t w, int64_t count, Acc<T>* dst,
                      int64_t ld) {
  load_tile<T>(map, n, h, w, count, dst, ld, [](auto x, int64_t) { return x; });
}

// The tile where it lies when that is possible, else a copy in `buffer` (kTile x padded C).
template <class T>
inline View<Acc<T>> view_tile(const Map& map, int64_t n, int64_t h, int64_t w, int64_t count,
                              Acc<T>* buffer) {
  if constexpr (sizeof(T) == sizeof(Acc<T>)) {
    if (map.sc == 1) return {address<T>(map, n, h, w), map.sw};
  }
  const int64_t ld = pad<Acc<T>>(map.c);
  copy_tile<T>(map, n, h, w, count, buffer, ld);
  return {buffer, ld};
}

// As view_tile, but whole vectors may be read: the last one of a pixel is padded.
template <class T>
inline View<Acc<T>> padded_tile(const Map& map, int64_t n, int64_t h, int64_t w, int64_t count,
                                Acc<T>* buffer) {
  if (map.c % kLanes<Acc<T>> == 0) return view_tile<T>(map, n, h, w, count, buffer);
  const int64_t ld = pad<Acc<T>>(map.c);
  copy_tile<T>(map, n, h, w, count, buffer, ld);
  return {buffer, ld};
}

// Asks for a tile that is needed after some arithmetic, or that may lie past the end of the row.
// Always inline: gcc takes a function that only asks for one without effects, and drops its calls.
template <class T>
inline __attribute__((always_inline)) void prefetch_tile(const Map& map, int64_t n, int64_t h,
                                                         int64_t w, int64_t count) {
  if (map.sc != 1) return;
  const char* p = reinterpret_cast<const char*>(address<T>(map, n, h, w));
  for (int64_t i = 0; i < count; ++i)
    for (int64_t byte = 0; byte < map.c * int64_t(sizeof(T)); byte += 64)
      __builtin_prefetch(p + i * map.sw * int64_t(sizeof(T)) + byte, 0, 2);
}

// map[n, c, h, w + i] = f(i, c, span): f gives a vector of the channels from c on.
template <class T, class F>
inline void store_tile(const Map& map, int64_t n, int64_t h, int64_t w, int64_t count,
                       Acc<T>* buffer, F f) {
  using A = Acc<T>;
  T* p = address<T>(map, n, h, w);
  if (map.sc == 1) {
    for (int64_t i = 0; i < count; ++i)
      lanes<A>(map.c,
               [&](int64_t c, auto span) { store(p + i * map.sw + c, f(i, c, span), span); });
    return;
  }
  const int64_t ld = pad<A>(map.c);
  for (int64_t i = 0; i < count; ++i)
    lanes<A>(map.c,
             [&](int64_t c, auto span) { store(buffer + i * ld + c, f(i, c, span), Full{}); });
  const auto turn = [&](int64_t i, int64_t c) {
    Vec<A> v[kLanes<A>];
    load_turned<A>(buffer + i * ld + c, ld, v);
    for (int j = 0; j < kLanes<A>; ++j) store(p + (c + j) * map.sc + i, v[j], Full{});
  };
  if (map.sw == 1 && squares<A>(count, map.c, turn)) return;
  for (int64_t c = 0; c < map.c; ++c)
    for (int64_t i = 0; i < count; ++i) from_acc(buffer[i * ld + c], p + c * map.sc + i * map.sw);
}

template <class A>
inline void zero(A* data, int64_t count) {
  __builtin_memset(data, 0, count * sizeof(A));
}

// x is a vector or a scalar.
template <class V>
inline V prelu(V x, V slope) {
  return x > V{} ? x : x * slope;
}

// The channel's slope as a vector or a scalar, to go with x. Slopes are padded to whole vectors.
template <class A>
inline Vec<A> at(const A* values, int64_t c, Vec<A>) {
  return load(values + c, Full{});
}
template <class A>
inline A at(const A* values, int64_t c, A) {
  return values[c];
}

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

// Of three rows read side by side, the last two are new, and the processor's own prefetching stops
// at every page.
template <class T>
inline __attribute__((always_inline)) void ask_ahead(const T* const* p, int64_t at) {
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
        ask_ahead(p, at);
        store(line + at, three<A>(p, weight, at, Full{}, [](auto x) { return x; }), Full{});
      });
      return;
    }
    for (int64_t i = 0; i < count; ++i)
      lanes<A>(map.c, [&](int64_t c, auto span) {
        const Vec<A> s = slope == nullptr ? splat<A>(1) : load(slope + c, Full{});
        auto f = [&](Vec<A> x) { return prelu(x, s); };
        ask_ahead(p, i * map.sw + c);
        store(line + i * ld + c, three<A>(p, weight, i * map.sw + c, span, f), Full{});
      });
    return;
  }
  // Any other layout or filter: a row at a time, brought into channels_last first if it must be.
  Buffer<A> row(map.sc == 1 ? 0 : count * ld);
  for (int32_t e = begin; e < end; ++e) {
    const A weight = A(rows.weight[e]);
    const bool first = e == begin;
    auto add = [&](A* out, Vec<A> x, int64_t c) {
      if (slope != nullptr) x = prelu(x, load(slope + c, Full{}));
      store(out, first ? weight * x : load(out, Full{}) + weight * x, Full{});
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
          add(line + i * ld + c, load(row + i * ld + c, Full{}), c);
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
        put(i, c, three<A>(p, tap, c, Full{}, [](auto x) { return x; }), part);
      });
    } else {
      lanes<A>(map.c, [&](int64_t c, auto part) {
        Vec<A> total{};
        for (int32_t t = 0; t < taps; ++t)
          total += A(weight[t]) * load(line + (index[t] - span.first) * ld + c, Full{});
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
  resample_to<T>(map, rows, cols, n, h, w, count, slope, line, ld,
                 [&](int64_t i, int64_t c, auto v, auto) { store(dst + i * ld + c, v, Full{}); });
}

// out[m][n] (+)= sum over k of a[m * sm + k * sk] * w[k * ldw + n], registers only.
template <class A, int R, int V>
inline void micro(const A* a, int64_t sm, int64_t sk, const A* w, int64_t ldw, int64_t k_count,
                  A* out, int64_t ldo, bool accumulate) {
  Vec<A> sum[R][V];
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < V; ++j) sum[i][j] = Vec<A>{};
  constexpr int64_t kLine = 64 / sizeof(A);
  int64_t k = 0;
  do {
    // The rows of the product that usually follows.
    for (int i = 0; i < R; ++i) __builtin_prefetch(a + (R + i) * sm + k * sk, 0, 3);
    const int64_t last = least(k + kLine, k_count);
    do {
      Vec<A> row[V];
      for (int j = 0; j < V; ++j) row[j] = load(w + k * ldw + j * kLanes<A>, Full{});
      for (int i = 0; i < R; ++i) {
        const A x = a[i * sm + k * sk];
        for (int j = 0; j < V; ++j) sum[i][j] += x * row[j];
      }
    } while (++k < last);
  } while (k < k_count);
  // `out` joins last: over many tiles the sum of short sums rounds less than one long sum.
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < V; ++j) {
      A* const to = out + i * ldo + j * kLanes<A>;
      store(to, accumulate ? sum[i][j] + load(to, Full{}) : sum[i][j], Full{});
    }
}

template <class A, int V>
inline void micro_rows(int64_t rows, const A* a, int64_t sm, int64_t sk, const A* w, int64_t ldw,
                       int64_t k, A* out, int64_t ldo, bool accumulate) {
  switch (rows) {
    case 1:
      return micro<A, 1, V>(a, sm, sk, w, ldw, k, out, ldo, accumulate);
    case 2:
      return micro<A, 2, V>(a, sm, sk, w, ldw, k, out, ldo, accumulate);
    case 3:
      return micro<A, 3, V>(a, sm, sk, w, ldw, k, out, ldo, accumulate);
    case 4:
      return micro<A, 4, V>(a, sm, sk, w, ldw, k, out, ldo, accumulate);
    case 5:
      return micro<A, 5, V>(a, sm, sk, w, ldw, k, out, ldo, accumulate);
    default:
      return micro<A, 6, V>(a, sm, sk, w, ldw, k, out, ldo, accumulate);
  }
}

// Rows in groups that the registers have room for, as equal as can be: one or two rows alone would
// wait for their weights.
struct RowGroups {
  int64_t count, fewest, larger;
  explicit RowGroups(int64_t rows)
      : count((rows + kRows - 1) / kRows),
        fewest(rows / (count > 0 ? count : 1)),
        larger(rows - fewest * count) {}
  int64_t rows(int64_t group) const { return fewest + (group < larger ? 1 : 0); }
};

// f(column, width in vectors, first row, rows) for the pieces of a product that registers have room
// for: panels of up to kMaxVectors vectors of columns, in each all rows.
template <class A, class F>
inline void pieces(int64_t m, int64_t n, F f) {
  const int64_t vectors = pad<A>(n) / kLanes<A>;
  const RowGroups groups(m);
  for (int64_t v = 0; v < vectors; v += kMaxVectors)
    for (int64_t i = 0, group = 0; i < m; i += groups.rows(group++))
      f(v * kLanes<A>, least(kMaxVectors, vectors - v), i, groups.rows(group));
}

template <class A>
inline void piece(int64_t take, int64_t rows, const A* a, int64_t sm, int64_t sk, const A* w,
                  int64_t ldw, int64_t k, A* out, int64_t ldo, bool accumulate) {
  if (take == 1) micro_rows<A, 1>(rows, a, sm, sk, w, ldw, k, out, ldo, accumulate);
  if (take == 2) micro_rows<A, 2>(rows, a, sm, sk, w, ldw, k, out, ldo, accumulate);
#if defined(__AVX512F__)
  if (take == 3) micro_rows<A, 3>(rows, a, sm, sk, w, ldw, k, out, ldo, accumulate);
  if (take == 4) micro_rows<A, 4>(rows, a, sm, sk, w, ldw, k, out, ldo, accumulate);
#endif
}

// out (m x padded n, leading dimension ldo) (+)= a (m x k) times the packed weights (k x n).
template <class A>
inline void gemm(const A* a, int64_t sm, int64_t sk, int64_t m, const void* packed, int64_t k,
                 int64_t n, A* out, int64_t ldo, bool accumulate) {
  pieces<A>(m, n, [&](int64_t column, int64_t take, int64_t i, int64_t rows) {
    piece<A>(take, rows, a + i * sm, sm, sk, static_cast<const A*>(packed) + column * k,
             take * kLanes<A>, k, out + i * ldo + column, ldo, accumulate);
  });
}

// out (m x padded n, leading dimension ldo) += a's columns times the tile of k pixels with n
// channels, whole vectors of it: a sum of outer products. The pixels' distance may be 0.
template <class A>
inline void add_outer(const A* a, int64_t sk, int64_t m, View<A> tile, int64_t k, int64_t n, A* out,
                      int64_t ldo) {
  pieces<A>(m, n, [&](int64_t column, int64_t take, int64_t i, int64_t rows) {
    piece<A>(take, rows, a + i, 1, sk, tile.data + column, tile.ld, k, out + i * ldo + column, ldo,
             true);
  });
}

// Rows of a chunk: global chunk id -> image and rows [begin, end).
struct ChunkRows {
  int64_t n, begin, end;
};
inline ChunkRows rows_of(const Chunks& chunks, int64_t chunk, int64_t height) {
  const int64_t n = chunk / chunks.per_image;
  const int64_t begin = chunk % chunks.per_image * chunks.rows;
  return {n, begin, least(begin + chunks.rows, height)};
}

// f(h, w, count) for the tiles of the rows [begin, end).
template <class F>
inline void tiles(int64_t begin, int64_t end, int64_t width, F f) {
  for (int64_t h = begin; h < end; ++h)
    for (int64_t w = 0; w < width; w += kTile) f(h, w, least(kTile, width - w));
}

template <class A>
inline void add_to(double* total, Vec<A> sum, Full) {
  typedef double Wide __attribute__((vector_size(kLanes<A> * sizeof(double))));
  typedef double WideUnaligned
      __attribute__((vector_size(kLanes<A> * sizeof(double)), aligned(8), may_alias));
  *reinterpret_cast<WideUnaligned*>(total) += __builtin_convertvector(sum, Wide);
}
template <class A>
inline void add_to(double* total, Vec<A> sum, Part part) {
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
      for (int j = 0; j < kTogether; ++j) sum[j] += f(i, c + j * kLanes<A>, Full{});
    for (int j = 0; j < kTogether; ++j) add_to<A>(total + c + j * kLanes<A>, sum[j], Full{});
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
template <class A>
inline void keep_nan(const A* pixel, int64_t channels, A sum, A* max) {
  if (sum == sum) return;
  for (int64_t c = 0; c < channels; ++c)
    if (pixel[c] != pixel[c]) *max = pixel[c];
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
        if constexpr (__is_same(decltype(span), Part))
          for (int64_t l = span.count; l < kLanes<A>; ++l) value[l] = -__builtin_inf();
        b = select<A>(value > b, value, b);
      });
      best[j] = b;
      sum[j] = s;
    }
    reduce_each<A>(best, [](Vec<A> a, Vec<A> b) { return select<A>(a > b, a, b); });
    reduce_each<A>(sum, [](Vec<A> a, Vec<A> b) { return a + b; });
    if (valid == kTogether) {
      store(max + i, best[0], Full{});
      store(total + i, sum[0], Full{});
    } else {
      store(max + i, best[0], Part{valid});
      store(total + i, sum[0], Part{valid});
    }
  }
  for (int64_t i = 0; i < count; ++i) keep_nan(x.data + i * x.ld, channels, total[i], max + i);
}

}  // namespace mirnet_fast::cpu::MIRNET_ISA
