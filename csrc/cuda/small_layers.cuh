// The layers on global means, a few thousand numbers an image: one block an image, in F (float64
// where gradients cancel). All threads of the block call; what is written is there for all of them
// after it. Before them, many partial sums become few, and after them, the weights' gradients are
// sums over the images: small kernels of their own.
//
// Nothing else runs meanwhile, so what counts is how often the block waits for memory: every thread
// asks for eight times 16 bytes of partial sums at once. Of 528 rows of 64 channels, 135 KB, that
// is three times, at 64 bytes a cycle 1.2 us (predicted for an H200). To add more than half
// a megabyte so takes longer than another launch, which all multiprocessors share.
#pragma once

#include "launch.cuh"

namespace mirnet_fast::cuda {

constexpr int kSmallThreads = 512;

template <class F>
MIRNET_DEVICE F sum_of_warp(F value) {
#pragma unroll
  for (int mask = 16; mask >= 1; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// Partial sums that a thread loads at once.
constexpr int kSumsWide = 4;
// Values of shared memory that add_programs takes.
constexpr int kSumsRoom = kSmallThreads * kSumsWide;

template <int V, class F>
MIRNET_DEVICE void add_programs_by(const float* at, int programs, int64_t distance, int channels,
                                   F* room, F* result, F scale) {
  [[maybe_unused]] constexpr int kAtOnce = sizeof(F) == 4 ? 8 : 4;  // loads of a thread
  // Side by side as many programs as there are threads for, each over every so many.
  const int across = min(channels / V, kSmallThreads), side = kSmallThreads / across;
  const int place = threadIdx.x / across;
  for (int begin = 0; begin < channels; begin += across * V) {
    const int mine = threadIdx.x % across * V, c = begin + mine;
    F sum[V] = {};
    if (place < side && c < channels) {
#pragma unroll kAtOnce
      for (int p = place; p < programs; p += side) {
        float value[V];
        load<V>(value, at + p * distance + c);
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += value[j];
      }
#pragma unroll
      for (int j = 0; j < V; ++j) room[place * across * V + mine + j] = sum[j];
    }
    sync_threads();
    for (int i = threadIdx.x; i < across * V && begin + i < channels; i += kSmallThreads) {
      F total = 0;
#pragma unroll kAtOnce
      for (int s = 0; s < side; ++s) total += room[s * across * V + i];
      result[begin + i] = total * scale;
    }
    sync_threads();
  }
}

// result[c] = scale times the sum of at[p * distance + c] over the programs p, in a fixed order.
// room: kSumsRoom values of shared memory.
template <class F>
MIRNET_DEVICE void add_programs(const float* at, int programs, int64_t distance, int channels,
                                F* room, F* result, F scale) {
  // Sums begin where torch's allocator puts them, at a multiple of more than 16 bytes.
  if (channels % kSumsWide == 0 && distance % kSumsWide == 0)
    add_programs_by<kSumsWide>(at, programs, distance, channels, room, result, scale);
  else
    add_programs_by<1>(at, programs, distance, channels, room, result, scale);
}

// result[d] = weight (rows, columns) x + bias, a warp for each row; no bias where it is null.
template <class T, class F>
MIRNET_DEVICE void small_layer(const T* weight, const T* bias, const F* x, int rows, int columns,
                               F* result) {
  for (int d = warp(); d < rows; d += kSmallThreads / 32) {
    F sum = 0;
    for (int c = lane(); c < columns; c += 32)
      sum += F(to_float(weight[int64_t(d) * columns + c])) * x[c];
    sum = sum_of_warp(sum);
    if (lane() == 0) result[d] = sum + (bias ? F(to_float(bias[d])) : F(0));
  }
  sync_threads();
}

// ---- partial sums ----------------------------------------------------------------------------

constexpr int kFoldThreads = 256;
// Values of an image that one block adds: half a megabyte.
constexpr int64_t kSumsAtOnce = int64_t(1) << 17;

template <class F>
struct FoldArgs {
  const F* from;  // (N, programs, columns)
  F* to;          // (N, kept, columns)
  int programs, kept, columns, chunks;
};

// to: row k is the sum of the rows k, k + kept, ...
template <class F>
__global__ void __launch_bounds__(kFoldThreads) fold_kernel(FoldArgs<F> a) {
  const int n = blockIdx.x / a.chunks;
  const int i = blockIdx.x % a.chunks * kFoldThreads + threadIdx.x;
  if (i >= a.kept * a.columns) return;
  const F* const from = a.from + int64_t(n) * a.programs * a.columns + i % a.columns;
  double sum = 0;
#pragma unroll 4
  for (int p = i / a.columns; p < a.programs; p += a.kept) sum += from[int64_t(p) * a.columns];
  a.to[int64_t(n) * a.kept * a.columns + i] = F(sum);
}

// sums (N, programs, ...), or where one block would take long to add an image's, fewer of them.
inline Tensor few_sums(const std::string& what, const LaunchContext& context, const Tensor& sums) {
  const int64_t n = sums.size(0), programs = sums.size(1), columns = sums.numel() / (n * programs);
  if (programs == 1 || programs * columns <= kSumsAtOnce) return sums;
  const int64_t kept = std::clamp<int64_t>(kSumsAtOnce / 4 / columns, 1, 512);
  const Tensor few = scratch(sums, {n, kept, columns});
  const int64_t chunks = row_blocks(what, kept * columns, kFoldThreads);
  const FoldArgs<float> args{static_cast<const float*>(sums.data_ptr()),
                             static_cast<float*>(few.data_ptr()),
                             int(programs),
                             int(kept),
                             int(columns),
                             int(chunks)};
  context.launch(what, fold_kernel<float>, n * chunks, kFoldThreads, 0, args);
  return few;
}

// ---- the weights' gradients ------------------------------------------------------------------

template <class T>
struct ProductsArgs {
  const double *left, *right;  // (images, left_columns), (images, columns)
  T* out;                      // (rows, columns)
  int images, left_columns, first, rows, columns;
};

// out[r, c] = the sum over the images of left[first + r] right[c], in their order.
template <class T>
__global__ void __launch_bounds__(kFoldThreads) products_kernel(ProductsArgs<T> a) {
  const int i = blockIdx.x * kFoldThreads + threadIdx.x;
  if (i >= a.rows * a.columns) return;
  const int row = a.first + i / a.columns, column = i % a.columns;
  double sum = 0;
  for (int n = 0; n < a.images; ++n)
    sum += a.left[int64_t(n) * a.left_columns + row] * a.right[int64_t(n) * a.columns + column];
  a.out[i] = rounded<T>(float(sum));
}

// The gradient of a weight from float64 (N, any) and (N, columns); of `left` the columns
// [first, first + rows).
inline Tensor products(const char* op, const LaunchContext& context, const Tensor& left,
                       int64_t first, const Tensor& right, const Tensor& weight) {
  const int64_t rows = weight.size(0), columns = weight.size(1);
  const Tensor out = scratch(weight, {rows, columns}, weight.scalar_type());
  by_dtype(op, weight, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const ProductsArgs<T> args{static_cast<const double*>(left.data_ptr()),
                               static_cast<const double*>(right.data_ptr()),
                               static_cast<T*>(out.data_ptr()),
                               int(left.size(0)),
                               int(left.size(1)),
                               int(first),
                               int(rows),
                               int(columns)};
    const std::string what = error_context(op, weight);
    context.launch(what, products_kernel<T>, row_blocks(what, rows * columns, kFoldThreads),
                   kFoldThreads, 0, args);
  });
  return gradient_of(weight, out);
}

}  // namespace mirnet_fast::cuda
