// Convolutions in bfloat16 on the processor's matrix unit, where that is in use.
#pragma once

#include "simd/matrix/loops.h"
#include "tensors.h"

namespace mirnet_fast::cpu {

// Whether the processor has one for bfloat16 and the operating system lets this process use it, for
// which it is asked the first time.
bool has_matrix_unit();

// The loops of the instruction set in use; null where it has none.
const MatrixKernels* matrix_kernels();

// The loops for maps like x; null where there are none.
inline const MatrixKernels* matrix_for(const Tensor& x) {
  return x.scalar_type() == ScalarType::BFloat16 ? matrix_kernels() : nullptr;
}

// out = PReLU(conv(x, weight, bias)) + residual, and its statistics, which `args` has the maps and
// taps for; all tensors in bfloat16, checked. sums: (N, C'), or none.
void matrix_convolution(const MatrixKernels& kernels, MatrixConvArgs args, const Tensor& weight,
                        bool outputs_first, const OptionalTensor& bias, const OptionalTensor& slope,
                        const OptionalTensor& sums, bool keep_weights);

// The same for a transposed 3x3 convolution of stride 2, by its four phases; out: the pixels of the
// first one.
inline void matrix_transposed(const MatrixKernels& kernels, const Map& in, const Map& out,
                              const Tensor& weight, const OptionalTensor& bias,
                              const OptionalTensor& slope, bool keep_weights) {
  const MatrixTaps phases[] = {MatrixTaps::even_even, MatrixTaps::even_odd, MatrixTaps::odd_even,
                               MatrixTaps::odd_odd};
  for (int64_t phase = 0; phase < 4; ++phase) {
    MatrixConvArgs maps{};
    maps.in = in;
    maps.out = out;
    maps.out.data =
        static_cast<bf16*>(out.data) + phase / 2 * (out.sh / 2) + phase % 2 * (out.sw / 2);
    maps.taps = phases[phase];
    matrix_convolution(kernels, maps, weight, false, bias, slope, std::nullopt, keep_weights);
  }
}

}  // namespace mirnet_fast::cpu
