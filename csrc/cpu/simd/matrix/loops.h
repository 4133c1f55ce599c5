// What the matrix unit's loops offer: convolutions of bfloat16 maps as products of tiles.
#pragma once

#include "../loops.h"

namespace mirnet_fast::cpu {

// Which convolution: the whole one of 3x3 or 1x1, or one phase of the transposed 3x3 of stride 2,
// rows first: an even row or column has one tap, an odd one two.
enum class MatrixTaps : int64_t { three, one, even_even, even_odd, odd_even, odd_odd };

struct MatrixPackArgs {
  const bf16* weight;  // taps at k * input_stride + c * output_stride
  int64_t outputs, inputs, output_stride, input_stride;
  MatrixTaps taps;
  bf16* packed;
};

struct MatrixConvArgs {
  Map in, out, residual;  // of bf16, channels last; residual.data null: none
  int64_t first_row;      // of `in`, where the first one of `out` lies
  MatrixTaps taps;
  const bf16* packed;
  const float* bias;   // (C' in whole kMatrixOutputs), or null
  const float* slope;  // (C' in whole kMatrixOutputs), or null
  Map pooled;          // (N, 2, H, W) of float: max, mean of out; its data null: none
  double* sums;        // (N * H, C') of zeros, to which a row's pixels of out are added, or null
};

// Output channels are packed in whole groups of this many, input channels likewise.
constexpr int64_t kMatrixOutputs = 32, kMatrixInputs = 32;

// The loops of one instruction set; what they do stands at their definitions.
struct MatrixKernels {
  int64_t (*packed_values)(const MatrixPackArgs&);
  void (*pack)(const MatrixPackArgs&, int64_t begin, int64_t end);
  void (*rows)(const MatrixConvArgs&, int64_t begin, int64_t end);
  void (*statistics)(const MatrixConvArgs&, int64_t begin, int64_t end);
};

namespace amx {
extern const MatrixKernels matrix_kernels;
}

}  // namespace mirnet_fast::cpu
