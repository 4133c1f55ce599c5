// Packing of 1x1 convolution weights into the panels that tile.h's gemm reads.
#include "tile.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

template <class A>
int64_t panel_columns() {
  return kMaxVectors * kLanes<A>;
}

// `count` rounded up to whole vectors.
template <class A>
int64_t padded(int64_t count) {
  return pad<A>(count);
}

// weight[n * stride_n + k * stride_k] -> panels of up to kMaxVectors vectors of n, each (k, width);
// panels [begin, end).
template <class A>
void pack(const PackArgs& args, int64_t begin, int64_t end) {
  const A* weight = static_cast<const A*>(args.weight);
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t column = panel * panel_columns<A>();
    const int64_t width = least(panel_columns<A>(), pad<A>(args.n) - column);
    A* out = static_cast<A*>(args.out) + column * args.k;
    for (int64_t j = 0; j < width; ++j)
      for (int64_t k = 0; k < args.k; ++k)
        out[k * width + j] =
            column + j < args.n ? weight[(column + j) * args.stride_n + k * args.stride_k] : A(0);
  }
}

template int64_t padded<float>(int64_t);
template int64_t padded<double>(int64_t);
template int64_t panel_columns<float>();
template int64_t panel_columns<double>();
template void pack<float>(const PackArgs&, int64_t, int64_t);
template void pack<double>(const PackArgs&, int64_t, int64_t);

}  // namespace mirnet_fast::cpu::MIRNET_ISA
