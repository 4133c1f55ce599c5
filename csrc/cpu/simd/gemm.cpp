// Packing of 1x1 convolution weights into the panels that tile.h's gemm reads.
#include "tile.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

// `count` rounded up to whole vectors.
template <class A>
int64_t padded(int64_t count) {
  return pad<A>(count);
}

// weight[n * stride_n + k * stride_k] -> panels of up to kMaxVectors vectors of n, each (k, width).
template <class A>
void pack(const A* weight, int64_t stride_n, int64_t stride_k, int64_t n, int64_t k, A* out) {
  constexpr int64_t kPanel = kMaxVectors * kLanes<A>;
  for (int64_t column = 0; column < pad<A>(n); column += kPanel) {
    const int64_t width = least(kPanel, pad<A>(n) - column);
    for (int64_t row = 0; row < k; ++row)
      for (int64_t j = 0; j < width; ++j)
        *out++ = column + j < n ? weight[(column + j) * stride_n + row * stride_k] : A(0);
  }
}

template int64_t padded<float>(int64_t);
template int64_t padded<double>(int64_t);
template void pack<float>(const float*, int64_t, int64_t, int64_t, int64_t, float*);
template void pack<double>(const double*, int64_t, int64_t, int64_t, int64_t, double*);

}  // namespace mirnet_fast::cpu::MIRNET_ISA
