// What the tails of both residual resamplers share: their arguments, PReLU on the way into a
// product, biases on the way out.
#pragma once

#include "../shared/taps.h"
#include "common.cuh"
#include "tile.cuh"

namespace mirnet_fast::cuda {

struct TailWeights {
  const Tensor &slope, &top;
  const OptionalTensor& top_bias;
  const Tensor& bottom;
  const OptionalTensor& bottom_bias;
};

inline void check_tail(const char* op, const TailWeights& w, int64_t top_channels,
                       int64_t bottom_channels, const Tensor& first) {
  MIRNET_CHECK(w.top.dim() == 4, op, ": top_weight must be (D, C, 1, 1)");
  const int64_t outputs = w.top.size(0);
  check(op, "slope", w.slope, {w.slope.numel() == 1 ? 1 : top_channels}, first);
  check_conv(op, "top_weight or top_bias", w.top, w.top_bias, outputs, top_channels, first);
  check_conv(op, "bottom_weight or bottom_bias", w.bottom, w.bottom_bias, outputs, bottom_channels,
             first);
}

// The weights as the kernels read them: dense.
class TailTensors {
 public:
  explicit TailTensors(const TailWeights& w)
      : slope_(dense(w.slope)), top_(dense(w.top)), bottom_(dense(w.bottom)) {
    if (w.top_bias) top_bias_ = dense(*w.top_bias);
    if (w.bottom_bias) bottom_bias_ = dense(*w.bottom_bias);
  }

  bool aligned() const { return aligned_data(top_) && aligned_data(bottom_); }

  const Tensor& slope_tensor() const { return slope_; }
  const Tensor& top_tensor() const { return top_; }
  const Tensor& bottom_tensor() const { return bottom_; }

  template <class T>
  const T* slope() const {
    return static_cast<const T*>(slope_.data_ptr());
  }
  template <class T>
  const T* top() const {
    return static_cast<const T*>(top_.data_ptr());
  }
  template <class T>
  const T* bottom() const {
    return static_cast<const T*>(bottom_.data_ptr());
  }
  template <class T>
  const T* top_bias() const {
    return top_bias_ ? static_cast<const T*>(top_bias_->data_ptr()) : nullptr;
  }
  template <class T>
  const T* bottom_bias() const {
    return bottom_bias_ ? static_cast<const T*>(bottom_bias_->data_ptr()) : nullptr;
  }

 private:
  Tensor slope_, top_, bottom_;
  OptionalTensor top_bias_, bottom_bias_;
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
