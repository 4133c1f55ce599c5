// What the loop files offer to the op files: argument structs, and one set of functions for each
// instruction set. No torch and no std headers: everything here is compiled several times with
// different flags, and a shared inline function could be linked in its AVX-512 copy.
#pragma once

#include <stdint.h>

namespace mirnet_fast::cpu {

[[noreturn]] void out_of_memory(int64_t bytes);

struct bf16 {
  uint16_t bits;
};

// Accumulation type of a storage type.
template <class T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class T>
using Acc = typename AccOf<T>::type;

// A feature map (N, C, H, W) with its strides in elements; any strides, zero included.
struct Map {
  void* data;
  int64_t n, c, h, w;
  int64_t sn, sc, sh, sw;
};

// A sparse linear map along one axis: output o is the sum of weight[e] * input[index[e]] over
// e in [start[o], start[o + 1]). Blur-pool, bilinear enlargement and the transposes of both.
struct Taps {
  const int32_t* start;
  const int32_t* index;
  const double* weight;
};

// An image is cut into chunks of whole rows whose number depends on the shape alone, so that sums
// over pixels do not depend on the number of threads.
struct Chunks {
  int64_t per_image, rows;
};

// Pointers named `double*` are statistics summed over pixels, one slice a chunk. Pointers to
// packed weights and to small maps hold the accumulation type of the storage type T.

struct PackArgs {
  const void* weight;
  int64_t stride_n, stride_k, n, k;
  const void* scale;  // (k), of the packed type; null: 1
  void* out;
};

struct BlurPoolArgs {
  Map in, out;
  Taps rows, cols;
};

struct SkffArgs {
  int64_t branches;
  const Map* inputs;
  const Map* input_grads;
  Map out;
  Map grad;
  const void* attention;  // (N, B, C)
  const void* shift;      // (N, C), added to every branch's gradient
  Chunks chunks;
  double* sums;  // forward (chunks, C); backward (chunks, 1 + B, C)
};

struct DauArgs {
  Map r, x, out;  // x.data null: no residual
  Map grad, r_grad;
  int64_t taps;                // of the spatial gate, one axis
  const void* spatial_weight;  // (2, taps, taps)
  void* pooled;                // (N, 2, H, W): max, mean
  Map given;                   // what the gate reads: pooled, or rows of the map around r's
  int64_t first_row;           // of `given`, that row 0 of r is
  int32_t* argmax;             // (N, H, W), or null
  void* spatial_gate;          // (N, H, W)
  void* spatial_grad;          // (N, H, W), of the gate, then of its logits
  void* pooled_grad;           // (N, 2, H, W)
  const void* channel_gate;    // (N, C)
  const void* shift;           // (N, C), added to the gradient of r
  const void* packed_spatial;  // packed fuse weight of the spatial branch
  const void* packed_channel;  // of the channel branch; forward: one an image, gate included
  int64_t packed_channel_stride;
  const void* bias;  // (C), or null
  Chunks chunks;
  double* sums;       // stats (chunks, C); backward (chunks, 2, C): gate gradient, bias gradient
  double* out_sums;   // (N * H, C) of zeros, to which a row's pixels are added, or null
  void* weight_sums;  // (chunks, 2, C, padded C): spatial branch, ungated channel branch
  double* tap_sums;   // (chunks, 2, taps, taps)
};

struct DownArgs {
  Map top, bottom, out;
  Map grad, top_grad, bottom_grad;
  Taps rows, cols;            // forward
  Taps rows_back, cols_back;  // transposed
  const void* slope;          // (C)
  const void* packed_top;
  const void* packed_bottom;
  const void* bias;  // (D), or null
  double* out_sums;  // (N * H', D) of zeros, to which a row's pixels are added, or null
  void* small_top;   // (N, H', W', C): gradients of the blurred maps
  void* small_bottom;
  Chunks chunks;
  double* sums;       // (chunks, D): bias
  void* weight_sums;  // (chunks, 2, D, padded C)
  Chunks big_chunks;
  double* slope_sums;  // (chunks, C)
};

struct UpArgs {
  Map top, bottom, out;
  Map grad, top_grad, bottom_grad;
  Taps rows, cols;
  Taps rows_back, cols_back;
  const void* slope;  // (C), or null: top is activated
  const void* packed_top;
  const void* packed_bottom;
  const void* bias;   // (D), or null
  int64_t first_row;  // of the whole result, where the first one of top and out lies
  void* projected;    // (N, projected_rows, W, D), from row projected_first of the small map
  int64_t projected_first, projected_rows;
  Chunks chunks;   // of the large map
  double* sums;    // (chunks, D + C): bias, slope
  void* top_sums;  // (chunks, D, padded C)
  Chunks small_chunks;
  void* bottom_sums;  // (small chunks, D, padded E)
};

// A 3x3 convolution's weights are packed with the output channels in whole groups of this many.
constexpr int64_t kConvGroup = 16;
// They are packed for so many input channels at a time.
constexpr int64_t kPackInputs = 16;

struct FingerprintArgs {
  const void* values;
  int64_t count;
  uint64_t* prints;  // one for each kFingerprintValues values
};
constexpr int64_t kFingerprintValues = 16384;

struct ConvPackArgs {
  const void* weight;  // filters of 9
  int64_t outputs, inputs, output_stride, input_stride;
  int64_t tile_columns;  // as in ConvArgs
  float* packed;
};

// Of a tile's outputs.
constexpr int64_t kTileRows = 4;

// Of a tile of conv3x3.
constexpr int64_t tile_points(int64_t columns) { return (kTileRows + 2) * (columns + 2); }

struct ConvArgs {
  Map in, out, residual;  // channels last; residual.data null: none
  int64_t first_row;      // of `in`, where the first one of `out` lies
  const float* packed;
  const void* weight;  // unpacked: 9 taps at k * input_stride + c * output_stride
  int64_t input_stride, output_stride;
  const float* bias;         // (C' in whole groups), or null
  const float* slope;        // (C' in whole groups), or null
  Map pooled;                // (N, 2, H, W): max, mean; its data null: none
  double* sums;              // (N * sum_groups(tiles), C') of zeros, where there is pooled
  int64_t tile_columns = 4;  // of a tile's outputs; for conv3x3 also 6
  int64_t blocks;            // an image; tiles are counted along its rows
  int64_t block_tiles;       // whole groups
};

// Of an image.
constexpr int64_t tiles_of(const ConvArgs& args) {
  const int64_t columns = args.tile_columns;
  return ((args.out.h + kTileRows - 1) / kTileRows) * ((args.out.w + columns - 1) / columns);
}

// Tiles whose statistics are summed in one place: few, so that blocks can have any number of
// groups and the sums still do not depend on it.
constexpr int64_t kSumTiles = 4;
constexpr int64_t sum_groups(int64_t tiles) { return (tiles + kSumTiles - 1) / kSumTiles; }

// residual_up_tail of what a transposed convolution makes.
struct ConvTailArgs {
  ConvArgs conv;  // out: the pixels of the tail's output in the first phase, C' channels each
  UpArgs tail;    // no top and no slope: the convolution applies it
  double* sums;   // (N * sum_groups(tiles), D) of zeros, to which the pixels are added, or null
};

// The loop of this name for every storage type, behind its definition.
#define MIRNET_INSTANTIATE(loop, Args)                       \
  template void loop<float>(const Args&, int64_t, int64_t);  \
  template void loop<double>(const Args&, int64_t, int64_t); \
  template void loop<bf16>(const Args&, int64_t, int64_t);

// The same for those types that maps of convolutions are stored in.
#define MIRNET_INSTANTIATE_STORED(loop, Args)               \
  template void loop<float>(const Args&, int64_t, int64_t); \
  template void loop<bf16>(const Args&, int64_t, int64_t);

#define MIRNET_DECLARE_KERNELS(isa)                                             \
  namespace isa {                                                               \
  template <class A>                                                            \
  int64_t padded(int64_t count);                                                \
  template <class A>                                                            \
  int64_t panel_columns();                                                      \
  template <class A>                                                            \
  void pack(const PackArgs&, int64_t begin, int64_t end);                       \
  template <class A>                                                            \
  void conv3x3_pack(const ConvPackArgs&, int64_t begin, int64_t end);           \
  template <class A>                                                            \
  void conv_transpose3x3_pack(const ConvPackArgs&, int64_t begin, int64_t end); \
  template <class A>                                                            \
  void fingerprint(const FingerprintArgs&, int64_t begin, int64_t end);         \
  template <class A>                                                            \
  void conv1x1_rows(const ConvArgs&, int64_t begin, int64_t end);               \
  template <class A>                                                            \
  void conv3x3_blocks(const ConvArgs&, int64_t begin, int64_t end);             \
  template <class A>                                                            \
  void conv_transpose3x3_blocks(const ConvArgs&, int64_t begin, int64_t end);   \
  template <class A>                                                            \
  void conv_transpose3x3_tail(const ConvTailArgs&, int64_t begin, int64_t end); \
  template <class T>                                                            \
  void blur_pool_rows(const BlurPoolArgs&, int64_t begin, int64_t end);         \
  template <class T>                                                            \
  void skff_pool(const SkffArgs&, int64_t begin, int64_t end);                  \
  template <class T>                                                            \
  void skff_combine(const SkffArgs&, int64_t begin, int64_t end);               \
  template <class T>                                                            \
  void skff_pool_backward(const SkffArgs&, int64_t begin, int64_t end);         \
  template <class T>                                                            \
  void skff_combine_backward(const SkffArgs&, int64_t begin, int64_t end);      \
  template <class T>                                                            \
  void dau_stats(const DauArgs&, int64_t begin, int64_t end);                   \
  template <class T>                                                            \
  void dau_gate(const DauArgs&, int64_t begin, int64_t end);                    \
  template <class T>                                                            \
  void dau_apply(const DauArgs&, int64_t begin, int64_t end);                   \
  template <class T>                                                            \
  void dau_apply_backward(const DauArgs&, int64_t begin, int64_t end);          \
  template <class T>                                                            \
  void dau_gate_backward(const DauArgs&, int64_t begin, int64_t end);           \
  template <class T>                                                            \
  void dau_stats_backward(const DauArgs&, int64_t begin, int64_t end);          \
  template <class T>                                                            \
  void down_tail(const DownArgs&, int64_t begin, int64_t end);                  \
  template <class T>                                                            \
  void down_tail_backward_small(const DownArgs&, int64_t begin, int64_t end);   \
  template <class T>                                                            \
  void down_tail_backward_large(const DownArgs&, int64_t begin, int64_t end);   \
  template <class T>                                                            \
  void up_project(const UpArgs&, int64_t begin, int64_t end);                   \
  template <class T>                                                            \
  void up_tail(const UpArgs&, int64_t begin, int64_t end);                      \
  template <class T>                                                            \
  void up_tail_backward_large(const UpArgs&, int64_t begin, int64_t end);       \
  template <class T>                                                            \
  void up_tail_backward_small(const UpArgs&, int64_t begin, int64_t end);       \
  }

MIRNET_DECLARE_KERNELS(base)
#if defined(__x86_64__)
MIRNET_DECLARE_KERNELS(avx2)
MIRNET_DECLARE_KERNELS(avx512)
#endif
#undef MIRNET_DECLARE_KERNELS

}  // namespace mirnet_fast::cpu
