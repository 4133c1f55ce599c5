// The tails of both residual resamplers: their weights as the loops read them, and the gradients
// from the sums over pixels.
#pragma once

#include "../common/tail_arguments.h"
#include "matrix_unit.h"
#include "panels.h"
#include "sums.h"
#include "tensors.h"

namespace mirnet_fast::cpu {

// One slope a channel, with room behind it for a whole vector.
template <class T>
Vector<Acc<T>> channel_slopes(const Tensor& slope, int64_t channels) {
  Vector<Acc<T>> result = values<T>(slope);
  if (result.size() == 1) result.assign(channels, result[0]);
  result.resize(MIRNET_KERNEL(padded, Acc<T>)(channels));
  return result;
}

// The sum of both biases, or nothing where there is none.
template <class T>
Vector<Acc<T>> summed_bias(const OptionalTensor& a, const OptionalTensor& b, int64_t count) {
  Vector<Acc<T>> result;
  for (const OptionalTensor* bias : {&a, &b})
    if (*bias) {
      const Vector<Acc<T>> more = values<T>(**bias);
      result.resize(count);
      for (int64_t i = 0; i < count; ++i) result[i] += more[i];
    }
  return result;
}

// A tail's weights as the loops read them: for the forward, by these kernels if there are any, or
// turned for the backward.
template <class T>
struct TailOperands {
  using A = Acc<T>;
  Vector<A> slopes, bias;  // the latter of a forward alone
  Block<A> top, bottom;

  TailOperands(const TailWeights& w, bool backward, const MatrixKernels* kernels = nullptr)
      : slopes(channel_slopes<T>(w.slope, w.top.size(1))),
        top(panels(w.top, backward, kernels)),
        bottom(panels(w.bottom, backward, kernels)) {
    if (!backward) bias = summed_bias<T>(w.top_bias, w.bottom_bias, w.top.size(0));
  }

  template <class Args>
  void give_to(Args& args) const {
    args.slope = slopes.data();
    args.packed_top = top.get();
    args.packed_bottom = bottom.get();
    args.bias = bias.empty() ? nullptr : bias.data();
  }

 private:
  static Block<A> panels(const Tensor& weight, bool backward, const MatrixKernels* kernels) {
    const int64_t D = weight.size(0), C = weight.size(1);
    if constexpr (std::is_same_v<T, bf16>)
      if (kernels != nullptr) {
        const Tensor ordered = torch::stable::contiguous(weight);
        const MatrixWeight own{static_cast<const bf16*>(ordered.data_ptr()), D, C, C};
        Block<A> result(panel_floats(*kernels, own));
        panels_to(result.get(), *kernels, own);
        return result;
      }
    const Ordered<T> values(weight);
    return backward ? packed(values.data(), 1, C, C, D) : packed(values.data(), C, 1, D, C);
  }
};

// The gradients of a tail's maps, and the arguments of the loops that write them.
template <class Args>
struct TailBackward {
  Tensor top_grad, bottom_grad;
  Args args{};

  TailBackward(const Tensor& grad, const Tensor& top, const Tensor& bottom)
      : top_grad(empty_like(top, shape_of(top))),
        bottom_grad(empty_like(bottom, shape_of(bottom))) {
    args.top = map_of(top);
    args.bottom = map_of(bottom);
    args.grad = map_of(grad);
    args.top_grad = map_of(top_grad);
    args.bottom_grad = map_of(bottom_grad);
  }
};

// Columns [first, first + count) of (chunks, stride) sums.
struct ChunkSums {
  const double* data;
  int64_t chunks, stride, first, count;

  Vector<double> total() const {
    Vector<double> result(count);
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      for (int64_t i = 0; i < count; ++i) result[i] += data[chunk * stride + first + i];
    return result;
  }
};

// (rows, columns) total of the chunks' matrices with leading dimension ld.
template <class A>
Vector<double> matrix_total(const Vector<A>& sums, int64_t chunks, int64_t stride, int64_t first,
                            int64_t rows, int64_t columns, int64_t ld) {
  Vector<double> result(rows * columns);
  add_matrices(sums.data() + first, chunks, stride, rows, columns, ld, result.data(), columns,
               [](int64_t, int64_t) { return 1.0; });
  return result;
}

// The gradients of a tail in the order of its arguments.
template <class T>
std::vector<Tensor> tail_gradients(const Tensor& top_grad, const Tensor& bottom_grad,
                                   const TailWeights& w, const ChunkSums& slope,
                                   const ChunkSums& bias, const Vector<double>& top,
                                   const Vector<double>& bottom) {
  Vector<double> slope_grad = slope.total();
  if (w.slope.numel() == 1) {
    double sum = 0;
    for (double value : slope_grad) sum += value;
    slope_grad.assign(1, sum);
  }
  const Vector<double> bias_grad = bias.total();
  std::vector<Tensor> gradients{top_grad, bottom_grad, tensor_of<T>(w.slope, slope_grad)};
  gradients.push_back(tensor_of<T>(w.top, top));
  if (w.top_bias) gradients.push_back(tensor_of<T>(*w.top_bias, bias_grad));
  gradients.push_back(tensor_of<T>(w.bottom, bottom));
  if (w.bottom_bias) gradients.push_back(tensor_of<T>(*w.bottom_bias, bias_grad));
  return gradients;
}

}  // namespace mirnet_fast::cpu
