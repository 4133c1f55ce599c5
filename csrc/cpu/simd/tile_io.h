// Tiles, of which every op is made, and their way from a map and back. A tile is up to kTile pixels
// of one row, channels last, in the accumulation type: it stays in the first-level cache, so any
// layout and dtype costs one conversion on the way in and out, and channels_last float32 none.
#pragma once

#include "vec.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

// 48 pixels: a multiple of the GEMM's 6 rows; 64 channels of both halves take 24 KiB.
constexpr int64_t kTile = 48;
constexpr int kRows = 6;
// Pixels whose products are made between two prefetches: if a tile prefetched all that it needs at
// once, the products would wait for it.
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
        store(dst + i * ld + c, f(load(p + i * map.sw + c, span), c), AllLanes{});
      });
    return;
  }
  const auto transpose_square = [&](int64_t i, int64_t c) {
    Vec<A> v[kLanes<A>];
    load_transposed<A>(p + c * map.sc + i, map.sc, v);
    for (int j = 0; j < kLanes<A>; ++j) store(dst + (i + j) * ld + c, f(v[j], c), AllLanes{});
  };
  if (map.sw == 1 && squares<A>(count, map.c, transpose_square)) return;
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

// Prefetches a tile that is needed after some arithmetic; it may lie past the end of the row.
// Always inline: gcc takes a function that only prefetches for one without effects, and drops its
// calls.
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
             [&](int64_t c, auto span) { store(buffer + i * ld + c, f(i, c, span), AllLanes{}); });
  const auto transpose_square = [&](int64_t i, int64_t c) {
    Vec<A> v[kLanes<A>];
    load_transposed<A>(buffer + i * ld + c, ld, v);
    for (int j = 0; j < kLanes<A>; ++j) store(p + (c + j) * map.sc + i, v[j], AllLanes{});
  };
  if (map.sw == 1 && squares<A>(count, map.c, transpose_square)) return;
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
  return load(values + c, AllLanes{});
}
template <class A>
inline A at(const A* values, int64_t c, A) {
  return values[c];
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

}  // namespace mirnet_fast::cpu::MIRNET_ISA
