// Products of bfloat16 on the processor's unit for them, vdpbf16ps or AMX, where that is in use.
#pragma once

#include "memory.h"
#include "simd/matrix/loops.h"
#include "tensors.h"

namespace mirnet_fast::cpu {

// Whether the processor has tiles of bfloat16 and the operating system lets this process use them,
// for which it is asked the first time.
bool has_tiles();

// The loops of the instruction set in use; null where it has none.
const MatrixKernels* matrix_kernels();

// The loops for these maps; null where there are none.
template <class... Maps>
const MatrixKernels* matrix_for(const Tensor& map, const Maps&... more) {
  const auto fits = [](const Tensor& t) {
    return t.scalar_type() == ScalarType::BFloat16 && (t.size(1) == 1 || t.stride(1) == 1);
  };
  return fits(map) && (fits(more) && ...) ? matrix_kernels() : nullptr;
}

// One value a channel, in whole kMatrixOutputs; empty without a tensor.
Vector<float> per_output(const OptionalTensor& tensor, int64_t channels);

// A 1x1 weight (outputs, inputs) for these loops, each input scaled if there is a scale. Of float,
// as all memory of packed weights is.
struct MatrixWeight {
  const bf16* weight;
  int64_t outputs, inputs, output_stride;
};
int64_t panel_floats(const MatrixKernels& kernels, const MatrixWeight& weight);
void panels_to(float* out, const MatrixKernels& kernels, const MatrixWeight& weight,
               const float* scale = nullptr);

// out = PReLU(conv(x, weight, bias)) + residual, and its statistics, which `args` has the maps and
// taps for; all tensors in bfloat16, checked. sums: (N, C'), or none.
void matrix_convolution(const MatrixKernels& kernels, MatrixConvArgs args, const Tensor& weight,
                        bool outputs_first, const OptionalTensor& bias, const OptionalTensor& slope,
                        const OptionalTensor& sums, bool keep_weights);

// The same for a transposed 3x3 convolution of stride 2, by its four phases; out: the pixels of the
// first one.
void matrix_transposed(const MatrixKernels& kernels, const Map& in, const Map& out,
                       const Tensor& weight, const OptionalTensor& bias);

// residual_up_tail of such a convolution of args.x: the rest of `args` but its tail from these.
void matrix_up_tail(const MatrixKernels& kernels, MatrixUpArgs args, const Tensor& weight,
                    const OptionalTensor& bias, const Tensor& slope);

}  // namespace mirnet_fast::cpu
