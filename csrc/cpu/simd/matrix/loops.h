// What the loops on a unit for products of bfloat16 offer: convolutions, and the ops that hold
// products. Accumulators, biases, PReLUs and statistics are float32 at least.
#pragma once

#include "../loops.h"

namespace mirnet_fast::cpu {

// Which convolution: the whole one of 3x3 or 1x1, or one phase of the transposed 3x3 of stride 2,
// rows first: an even row or column has one tap, an odd one two.
enum class MatrixTaps : int64_t { three, one, even_even, even_odd, odd_even, odd_odd };
constexpr MatrixTaps kPhases[] = {MatrixTaps::even_even, MatrixTaps::even_odd, MatrixTaps::odd_even,
                                  MatrixTaps::odd_odd};

struct MatrixPackArgs {
  const bf16* weight;  // taps at k * input_stride + c * output_stride
  int64_t outputs, inputs, output_stride, input_stride;
  MatrixTaps taps;
  const float* scale;  // of each input, or null
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

// residual_up_tail of what a transposed convolution of x makes.
struct MatrixUpArgs {
  UpArgs tail;           // no top and no slope: the convolution applies it
  Map x;                 // from the row on in which the first one of `tail.out` lies
  int64_t channels;      // of what the convolution makes
  const bf16* packed;    // of kPhases, one after the other
  int64_t phase_end[4];  // where in `packed` each one's ends
  const float* bias;     // (channels in whole kMatrixOutputs), or null
  const float* slope;    // (channels in whole kMatrixOutputs)
};

// Output channels are packed in whole groups of this many, input channels likewise.
constexpr int64_t kMatrixOutputs = 32, kMatrixInputs = 32;

// The loops of one instruction set, whose packed weights are all of one form; what they do stands
// at their definitions. Of the ops' arguments maps are bf16 and channels last, packed weights of
// 1x1 in that form, and the rest is as their loops of bf16 have it.
struct MatrixKernels {
  bool
      tiles;  // so many products at once that a 3x3 convolution is faster than by Winograd's method
  int64_t (*packed_values)(const MatrixPackArgs&);
  void (*pack)(const MatrixPackArgs&, int64_t begin, int64_t end);
  void (*convolution)(const MatrixConvArgs&, int64_t begin, int64_t end);
  void (*up_project)(const UpArgs&, int64_t begin, int64_t end);
  void (*up_tail)(const UpArgs&, int64_t begin, int64_t end);
  void (*up_tail_of_conv)(const MatrixUpArgs&, int64_t begin, int64_t end);
  void (*down_tail)(const DownArgs&, int64_t begin, int64_t end);
  void (*dau_apply)(const DauArgs&, int64_t begin, int64_t end);
};

namespace amx {
extern const MatrixKernels matrix_kernels;
}
namespace avx512_bf16 {
extern const MatrixKernels matrix_kernels;
}

}  // namespace mirnet_fast::cpu
