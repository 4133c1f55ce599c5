// Weights of 1x1 convolutions in the panels that simd/gemm.h reads.
#pragma once

#include "memory.h"
#include "run.h"

namespace mirnet_fast::cpu {

// How many values a packed (n, k) weight has.
template <class A>
int64_t packed_count(int64_t n, int64_t k) {
  return MIRNET_KERNEL(padded, A)(n) * k;
}

// weight[n * stride_n + k * stride_k], times scale[k] if there is one, in the panels of the
// instruction set in use.
template <class A>
void pack_to(A* out, const A* weight, int64_t stride_n, int64_t stride_k, int64_t n, int64_t k,
             const A* scale = nullptr) {
  const int64_t columns = MIRNET_KERNEL(padded, A)(n), panel = MIRNET_KERNEL(panel_columns, A)();
  const PackArgs args{weight, stride_n, stride_k, n, k, scale, out};
  run(MIRNET_KERNEL(pack, A), args, (columns + panel - 1) / panel, panel * k);
}

template <class A>
Block<A> packed(const A* weight, int64_t stride_n, int64_t stride_k, int64_t n, int64_t k) {
  Block<A> result(packed_count<A>(n, k));  // not zeroed: all of it is written
  pack_to(result.get(), weight, stride_n, stride_k, n, k);
  return result;
}

}  // namespace mirnet_fast::cpu
