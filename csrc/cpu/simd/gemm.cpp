// Packing of 1x1 convolution weights into the panels that gemm.h reads.
#include "gemm.h"

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

namespace {

// `count` inputs, at most kLanes, for the outputs of a vector: out[k * width] and what follows.
template <class A>
inline void pack_square(const PackArgs& args, int64_t output, int64_t input, int64_t count, A* out,
                        int64_t width) {
  constexpr int64_t kAll = kLanes<A>;
  const int64_t outputs = least(kAll, args.n - output);
  const A* weight = static_cast<const A*>(args.weight) + output * args.stride_n;
  weight += input * args.stride_k;
  Vec<A> v[kAll];
  if (args.stride_k == 1 && outputs == kAll && count == kAll) {
    load_transposed<A>(weight, args.stride_n, v);
  } else if (args.stride_n == 1 && outputs == kAll) {
    for (int64_t k = 0; k < count; ++k) v[k] = load(weight + k * args.stride_k, AllLanes{});
  } else {
    A values[kAll * kAll]{};
    for (int64_t k = 0; k < count; ++k)
      for (int64_t j = 0; j < outputs; ++j)
        values[k * kAll + j] = weight[j * args.stride_n + k * args.stride_k];
    for (int64_t k = 0; k < count; ++k) v[k] = load(values + k * kAll, AllLanes{});
  }
  const A* scale = static_cast<const A*>(args.scale);
  for (int64_t k = 0; k < count; ++k)
    store(out + k * width, scale == nullptr ? v[k] : scale[input + k] * v[k], AllLanes{});
}

}  // namespace

// weight[n * stride_n + k * stride_k] -> panels of up to kMaxVectors vectors of n, each (k, width);
// panels [begin, end).
template <class A>
void pack(const PackArgs& args, int64_t begin, int64_t end) {
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t column = panel * panel_columns<A>();
    const int64_t width = least(panel_columns<A>(), pad<A>(args.n) - column);
    A* out = static_cast<A*>(args.out) + column * args.k;
    for (int64_t k = 0; k < args.k; k += kLanes<A>)
      for (int64_t j = 0; j < width; j += kLanes<A>)
        pack_square(args, column + j, k, least(kLanes<A>, args.k - k), out + k * width + j, width);
  }
}

template int64_t padded<float>(int64_t);
template int64_t padded<double>(int64_t);
template int64_t panel_columns<float>();
template int64_t panel_columns<double>();
template void pack<float>(const PackArgs&, int64_t, int64_t);
template void pack<double>(const PackArgs&, int64_t, int64_t);

}  // namespace mirnet_fast::cpu::MIRNET_ISA
