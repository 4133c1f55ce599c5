// Matrix products of a block: operands staged in shared memory, sums in registers.
//
// float16 and bfloat16 on the tensor cores (mma.sync m16n8k16, float32 sums); float32 by FMA, never
// in TF32, each thread holding the same places of the result. Rows in shared memory are 16 bytes
// longer than their values, which keeps ldmatrix free of bank conflicts.
#pragma once

#include "device.cuh"

namespace mirnet_fast::cuda {

// Distance of rows of K values in shared memory.
template <class T, int K>
constexpr int kRow = K + 16 / int(sizeof(T));

// f(row, piece) by one of `threads` for every 16-byte piece of `rows` rows in shared memory. Eight
// threads access it at once: pieces of one row, or where rows have only four, the same piece of
// eight rows, for the pieces of two rows 16 bytes apart would share banks.
template <int Pieces, class F>
MIRNET_DEVICE void each_piece(int rows, int threads, F f) {
  // The accesses do not wait for one another; unrolled, their addresses would fill the registers.
#pragma unroll 1
  for (int i = threadIdx.x; i < (rows + 7) / 8 * 8 * Pieces; i += threads) {
    const int row = Pieces == 4 ? i / 32 * 8 + i % 8 : i / Pieces;
    if (row < rows) f(row, Pieces == 4 ? i % 32 / 8 : i % Pieces);
  }
}

// Rows of K values from global to shared memory, kRow apart: the values [first, first + K) of what
// row_at(i) points to, zeros past `count` values and where row_at is null. By copy_async where
// `Aligned` (then V divides `count` and all addresses are multiples of 16 bytes).
template <class T, int K, bool Aligned, class RowAt>
MIRNET_DEVICE void copy_rows(T* to, int rows, int threads, int first, int count, RowAt row_at) {
  constexpr int V = kWide<T>;
  each_piece<K / V>(rows, threads, [&](int row, int piece) {
    const int c = first + piece * V;
    const T* from = row_at(row);
    T* place = to + row * kRow<T, K> + piece * V;
    if constexpr (Aligned) {
      const bool inside = from != nullptr && c < count;
      copy_async(place, inside ? from + c : nullptr, inside);
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j)
        place[j] = from != nullptr && c + j < count ? from[c + j] : rounded<T>(0);
    }
  });
}

// One warp's (16 MT, 8 NT) part of a product, spread over its lanes as mma spreads it.
template <class T, int MT, int NT>
struct WarpTile {
  static_assert(NT % 2 == 0, "columns are multiplied 16 at a time");
  float sums[MT][NT][4];

  MIRNET_DEVICE void clear() {
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int n = 0; n < NT; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][n][i] = 0;
  }

  MIRNET_DEVICE void add(const WarpTile& other) {
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int n = 0; n < NT; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][n][i] += other.sums[m][n][i];
  }

  // f(row)(column, s0, s1) for the two neighbouring columns of each place.
  template <class F>
  MIRNET_DEVICE void each_row(F f) {
    const int g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto at_row = f(16 * m + 8 * half + g);
#pragma unroll
        for (int n = 0; n < NT; ++n)
          at_row(8 * n + 2 * t, sums[m][n][2 * half], sums[m][n][2 * half + 1]);
      }
  }

  // f(row, column, s0, s1).
  template <class F>
  MIRNET_DEVICE void each_pair(F f) {
    each_row([&](int row) {
      return [&f, row](int column, float& s0, float& s1) { f(row, column, s0, s1); };
    });
  }

  // sums += a b over K values. a is this warp's (16 MT, K), row after row `lda` apart, or where
  // TransposedA (K, 16 MT); b is (8 NT, K), `ldb` apart, or where TransposedB (K, 8 NT).
  template <int K, bool TransposedA = false, bool TransposedB = false>
  MIRNET_DEVICE void multiply(const T* a, int lda, const T* b, int ldb) {
    if constexpr (sizeof(T) == 2)
      on_tensor_cores<K, TransposedA, TransposedB>(a, lda, b, ldb);
    else
      by_fma<K, TransposedA, TransposedB>(a, lda, b, ldb);
  }

 private:
  template <int K, bool TransposedA, bool TransposedB>
  MIRNET_DEVICE void on_tensor_cores(const T* a, int lda, const T* b, int ldb) {
    static_assert(K % 16 == 0, "mma takes 16 values at a time");
    const int i = lane() / 8, j = lane() % 8;
#pragma unroll
    for (int k = 0; k < K; k += 16) {
      uint32_t left[MT][4];
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        if constexpr (TransposedA)
          load_matrices_transposed(left[m], a + (k + i / 2 * 8 + j) * lda + 16 * m + i % 2 * 8);
        else
          load_matrices(left[m], a + (16 * m + i % 2 * 8 + j) * lda + k + i / 2 * 8);
      }
#pragma unroll
      for (int n = 0; n < NT; n += 2) {
        uint32_t right[4];
        if constexpr (TransposedB)
          load_matrices_transposed(right, b + (k + i % 2 * 8 + j) * ldb + 8 * n + i / 2 * 8);
        else
          load_matrices(right, b + (8 * n + i / 2 * 8 + j) * ldb + k + i % 2 * 8);
#pragma unroll
        for (int m = 0; m < MT; ++m) {
          cuda::multiply<T>(sums[m][n], left[m], right[0], right[1]);
          cuda::multiply<T>(sums[m][n + 1], left[m], right[2], right[3]);
        }
      }
    }
  }

  template <int K, bool TransposedA, bool TransposedB>
  MIRNET_DEVICE void by_fma(const T* a, int lda, const T* b, int ldb) {
    static_assert(K % 4 == 0, "values are read four at a time");
    const int g = lane() / 4, t = lane() % 4;
#pragma unroll 1
    for (int k = 0; k < K; k += 4) {
      float left[MT][2][4];
#pragma unroll
      for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int row = 16 * m + 8 * r + g;
          if constexpr (TransposedA) {
#pragma unroll
            for (int q = 0; q < 4; ++q) left[m][r][q] = a[(k + q) * lda + row];
          } else {
            load<4>(left[m][r], a + row * lda + k);
          }
        }
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        float right[2][4];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int column = 8 * n + 2 * t + c;
          if constexpr (TransposedB) {
#pragma unroll
            for (int q = 0; q < 4; ++q) right[c][q] = b[(k + q) * ldb + column];
          } else {
            load<4>(right[c], b + column * ldb + k);
          }
        }
#pragma unroll
        for (int m = 0; m < MT; ++m)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            // Four at a time: one long sum would round more.
            float four = 0;
#pragma unroll
            for (int q = 0; q < 4; ++q) four += left[m][i / 2][q] * right[i % 2][q];
            sums[m][n][i] += four;
          }
      }
    }
  }
};

// use(buffer) for every chunk in turn, buffer being 0 or 1, while the next one's copies, which
// start(chunk, buffer) starts, are on their way. mine(chunk, buffer) sees only what this thread has
// copied; use sees all. meanwhile() has the time that the first chunk takes to come. The sums that
// use adds to are the caller's, who clears them before.
template <class Start, class Mine, class Use, class Meanwhile>
MIRNET_DEVICE void pipelined(int chunks, Start start, Mine mine, Use use, Meanwhile meanwhile) {
  start(0, 0);
  commit_copies();
  meanwhile();
  for (int i = 0; i < chunks; ++i) {
    if (i + 1 < chunks) start(i + 1, (i + 1) % 2);
    commit_copies();
    wait_for_copies<1>();
    mine(i, i % 2);
    sync_threads();
    use(i % 2);
    sync_threads();
  }
}

template <class Start, class Mine, class Use>
MIRNET_DEVICE void pipelined(int chunks, Start start, Mine mine, Use use) {
  pipelined(chunks, start, mine, use, [] {});
}

// A tile of `rows` pixels by N channels from shared memory, rows kRow<T, N> apart, to the
// channels [first, first + N) below `count` of what row_at(i) points to; nothing where it is null.
template <class T, int N, bool Aligned, class RowAt>
MIRNET_DEVICE void write_rows(const T* from, int rows, int threads, int first, int count,
                              RowAt row_at) {
  constexpr int V = kWide<T>, kPieces = N / V;
  for (int i = threadIdx.x; i < rows * kPieces; i += threads) {
    const int c = first + i % kPieces * V;
    T* to = row_at(i / kPieces);
    if (to == nullptr) continue;
    const T* place = from + i / kPieces * kRow<T, N> + i % kPieces * V;
    if constexpr (Aligned) {
      if (c < count)
        *reinterpret_cast<Pack<T, V>*>(to + c) = *reinterpret_cast<const Pack<T, V>*>(place);
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j)
        if (c + j < count) to[c + j] = place[j];
    }
  }
}

// ---- tiles of pixels -------------------------------------------------------------------------

// A block's TH x TW pixels of one image, row after row.
template <int TH, int TW>
struct PixelTile {
  int n, h, w, height, width;  // h, w: of its first pixel

  // Tile number i of image n_, or of all images'.
  MIRNET_DEVICE PixelTile(int n_, int i, int height_, int width_)
      : n(n_), height(height_), width(width_) {
    h = i / across(width) * TH;
    w = i % across(width) * TW;
  }
  MIRNET_DEVICE PixelTile(int i, int height_, int width_)
      : PixelTile(i / of_image(height_, width_), i % of_image(height_, width_), height_, width_) {}

  static MIRNET_DEVICE int across(int width) { return (width + TW - 1) / TW; }
  static MIRNET_DEVICE int of_image(int height, int width) {
    return (height + TH - 1) / TH * across(width);
  }

  MIRNET_DEVICE int row(int pixel) const { return h + pixel / TW; }
  MIRNET_DEVICE int column(int pixel) const { return w + pixel % TW; }
  MIRNET_DEVICE bool inside(int pixel) const {
    return row(pixel) < height && column(pixel) < width;
  }
};

template <int TH, int TW>
constexpr int64_t tiles_of(int64_t n, int64_t height, int64_t width) {
  return n * ((height + TH - 1) / TH) * ((width + TW - 1) / TW);
}

}  // namespace mirnet_fast::cuda
