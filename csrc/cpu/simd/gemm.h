// Matrix products of tiles with packed weights, and sums of outer products.
#pragma once

#include "tile_io.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

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
      for (int j = 0; j < V; ++j) row[j] = load(w + k * ldw + j * kLanes<A>, AllLanes{});
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
      store(to, accumulate ? sum[i][j] + load(to, AllLanes{}) : sum[i][j], AllLanes{});
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

}  // namespace mirnet_fast::cpu::MIRNET_ISA
