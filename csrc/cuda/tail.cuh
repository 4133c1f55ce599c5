// What the tails of both residual resamplers share: their arguments, PReLU on the way into a
// product, biases on the way out.
#pragma once

#include "../common/axes.h"
#include "../common/tail_arguments.h"
#include "launch.cuh"
#include "tile.cuh"

namespace mirnet_fast::cuda {

// The weights as the kernels read them.
struct DenseTail {
  Dense slope, top, top_bias, bottom, bottom_bias;

  explicit DenseTail(const TailWeights& w)
      : slope(w.slope),
        top(w.top),
        top_bias(w.top_bias),
        bottom(w.bottom),
        bottom_bias(w.bottom_bias) {}

  bool aligned() const { return aligned_data(top.tensor()) && aligned_data(bottom.tensor()); }
};

// (rows, columns, 1, 1) as (columns, rows), dense.
inline Tensor transposed(const Tensor& weight) {
  return dense(torch::stable::transpose(torch::stable::flatten(weight, 1), 0, 1));
}

// Of a slope from sums (any, channels).
inline Tensor slope_gradient(const Tensor& slope, const Tensor& sums) {
  return gradient_of(slope, slope.numel() == 1 ? summed(sums, {0, 1}) : summed(sums, {0}));
}

// The gradients of a tail in the order of its arguments.
inline std::vector<Tensor> tail_gradients(const Tensor& top_grad, const Tensor& bottom_grad,
                                          const TailWeights& w, const Tensor& slope_sums,
                                          const Tensor& grad, const Tensor& top_weight_grad,
                                          const Tensor& bottom_weight_grad) {
  std::vector<Tensor> gradients{top_grad, bottom_grad, slope_gradient(w.slope, slope_sums),
                                gradient_of(w.top, top_weight_grad)};
  const auto add_bias = [&](const OptionalTensor& bias) {
    if (bias) gradients.push_back(gradient_of(*bias, summed(grad, {0, 2, 3}, ScalarType::Float)));
  };
  add_bias(w.top_bias);
  gradients.push_back(gradient_of(w.bottom, bottom_weight_grad));
  add_bias(w.bottom_bias);
  return gradients;
}

// PReLU on the rows that copy_rows has brought, by the thread that brought them: one thread, one
// piece.
template <class T, int K>
MIRNET_DEVICE void prelu_rows(T* rows, int count, int threads, int first, int channels,
                              const T* slope, int slopes) {
  constexpr int V = kWide<T>;
  each_piece<K / V>(count, threads, [&](int row, int piece) {
    const int c = first + piece * V;
    T* place = rows + row * kRow<T, K> + piece * V;
    float value[V];
    load<V>(value, place);
#pragma unroll
    for (int j = 0; j < V; ++j)
      value[j] = prelu(value[j], c + j < channels ? to_float(slope[slopes > 1 ? c + j : 0]) : 0.f);
    store<V>(place, value);
  });
}

// The sum of both biases, each perhaps absent, of output d.
template <class T>
MIRNET_DEVICE float both_biases(const T* a, const T* b, int d, int outputs) {
  if (d >= outputs) return 0;
  return (a ? to_float(a[d]) : 0.f) + (b ? to_float(b[d]) : 0.f);
}

}  // namespace mirnet_fast::cuda
