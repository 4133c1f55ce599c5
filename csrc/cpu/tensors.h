// From tensors to the loops' arguments and back.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>

#include <exception>
#include <type_traits>

#include "../common/arguments.h"
#include "memory.h"
#include "simd/loops.h"

namespace mirnet_fast {

inline void check_device(const char* op, const char* name, const Tensor& tensor, const Tensor&) {
  MIRNET_CHECK(tensor.is_cpu(), op, ": ", name, " must be on the CPU");
}

}  // namespace mirnet_fast

namespace mirnet_fast::cpu {

// f(Tag<T>) for the storage type of the tensor.
template <class F>
void by_dtype(const char* op, const Tensor& tensor, F f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return f(Tag<float>{});
    case ScalarType::Double:
      return f(Tag<double>{});
    case ScalarType::BFloat16:
      return f(Tag<bf16>{});
    default:
      MIRNET_CHECK(false, op, ": dtype must be float32, bfloat16 or float64");
  }
}

inline Shape strides_of(const Tensor& tensor) {
  return Shape(tensor.strides().begin(), tensor.strides().end());
}

// (N, C) sums of a map over its pixels.
inline void check_sums(const char* op, const char* name, const Tensor& sums, int64_t images,
                       int64_t channels) {
  const Shape shape = {images, channels};
  MIRNET_CHECK(sums.scalar_type() == ScalarType::Double && sums.is_cpu() && sums.is_contiguous() &&
                   shape_of(sums) == shape,
               op, ": ", name, " must be contiguous float64 of shape ", text(shape));
}

// A producer's statistics of x: each pixel's maximum and mean over the channels, in float32 for x
// in bfloat16, and the sum of each image's channels.
inline void check_statistics(const char* op, const Tensor& x, int64_t channels,
                             const OptionalTensor& pooled, const OptionalTensor& sums,
                             bool rows_around = false, int64_t first_row = 0) {
  MIRNET_CHECK(pooled.has_value() == sums.has_value(), op,
               ": pooled and sums go together; only one was given");
  MIRNET_CHECK(first_row == 0 || pooled, op, ": first_row is one of pooled, which is missing; got ",
               first_row);
  if (!pooled) return;
  const int64_t rows = rows_around && pooled->dim() == 4 ? pooled->size(2) : x.size(2);
  MIRNET_CHECK(first_row >= 0 && first_row + x.size(2) <= rows, op,
               ": the rows from first_row on must lie inside pooled's ", rows,
               "; got first_row = ", first_row, " and ", x.size(2), " rows");
  const Shape shape = {x.size(0), 2, rows, x.size(3)};
  if (x.scalar_type() == ScalarType::BFloat16)
    MIRNET_CHECK(shape_of(*pooled) == shape && pooled->scalar_type() == ScalarType::Float &&
                     pooled->is_cpu(),
                 op, ": pooled must be float32 of shape ", text(shape), " for bfloat16 maps; got ",
                 text(shape_of(*pooled)));
  else
    check(op, "pooled", *pooled, shape, x);
  MIRNET_CHECK(x.size(3) == 1 || pooled->stride(3) == 1, op, ": pooled's rows must be contiguous");
  check_sums(op, "sums", *sums, x.size(0), channels);
}

inline Map map_of(const Tensor& t) {
  return {t.data_ptr(), t.size(0),   t.size(1),   t.size(2),  t.size(3),
          t.stride(0),  t.stride(1), t.stride(2), t.stride(3)};
}

// Uninitialised, of the dtype of `like`.
inline Tensor empty(const Tensor& like, const Shape& shape, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  int64_t bytes = like.element_size();
  for (const int64_t size : shape) bytes *= size;
  try {
    Tensor result =
        torch::stable::empty(shape, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                             channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
    advise_large_pages(result.data_ptr(), bytes);
    return result;
  } catch (const std::exception&) {  // torch's reason is lost on the way
    throw OutOfMemory(bytes);
  }
}

// In the memory format of `like`: the rule of mirnet_fast/ops/_registration.py.
inline Tensor empty_like(const Tensor& like, const Shape& shape) {
  return empty(like, shape, like.dim() == 4 && like.stride(1) == 1 && like.stride(3) != 1);
}

// f(offset, i) for the elements of a small tensor in order. Sizes and strides are
// read once: a call of torch takes longer than an element.
template <class F>
void each_element(const Tensor& t, F f) {
  const int64_t count = t.numel();
  if (t.is_contiguous()) {
    for (int64_t i = 0; i < count; ++i) f(i, i);
    return;
  }
  const Shape sizes = shape_of(t), strides = strides_of(t);
  for (int64_t i = 0; i < count; ++i) {
    int64_t offset = 0, rest = i;
    for (size_t d = sizes.size(); d-- > 0; rest /= sizes[d]) offset += rest % sizes[d] * strides[d];
    f(offset, i);
  }
}

template <class T>
struct Scalar {
  using type = T;
};
template <>
struct Scalar<bf16> {
  using type = torch::headeronly::BFloat16;
};

// The values of a small tensor (weights, biases), in order.
template <class T, class A = Acc<T>>
Vector<A> values(const Tensor& t) {
  Vector<A> result(t.numel());
  const auto* data = static_cast<const typename Scalar<T>::type*>(t.data_ptr());
  each_element(t, [&](int64_t offset, int64_t i) { result[i] = A(data[offset]); });
  return result;
}

// A tensor like `like` with these values.
template <class T, class V>
Tensor tensor_of(const Tensor& like, const Vector<V>& contents) {
  Tensor result = empty_like(like, shape_of(like));
  auto* data = static_cast<typename Scalar<T>::type*>(result.data_ptr());
  each_element(result, [&](int64_t offset, int64_t i) {
    data[offset] = typename Scalar<T>::type(Acc<T>(contents[i]));
  });
  return result;
}

// The values of a weight in order: where they lie if they lie so.
template <class T>
class Ordered {
 public:
  using A = Acc<T>;
  explicit Ordered(const Tensor& t) {
    if constexpr (std::is_same_v<T, A>) {
      tensor_ = torch::stable::contiguous(t);
      data_ = static_cast<const A*>(tensor_.data_ptr());
    } else {
      copied_ = values<T>(t);
      data_ = copied_.data();
    }
  }
  Ordered(const Ordered&) = delete;
  const A* data() const { return data_; }

 private:
  Tensor tensor_;
  Vector<A> copied_;
  const A* data_ = nullptr;
};

}  // namespace mirnet_fast::cpu
