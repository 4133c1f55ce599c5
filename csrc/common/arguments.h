// The arguments of ops: tensors, and checks of their shapes, dtypes and devices.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <vector>

#include "check.h"

namespace mirnet_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Shape = std::vector<int64_t>;

// A type as an argument, for generic lambdas.
template <class T>
struct Tag {
  using type = T;
};

inline std::string text(const Shape& shape) {
  std::string result = "(";
  for (size_t i = 0; i < shape.size(); ++i) result += (i ? ", " : "") + std::to_string(shape[i]);
  return result + ")";
}

inline Shape shape_of(const Tensor& tensor) {
  return Shape(tensor.sizes().begin(), tensor.sizes().end());
}

// Each backend defines this one: the tensor must be on a device of it, the one of `first`.
inline void check_device(const char* op, const char* name, const Tensor& tensor,
                         const Tensor& first);

// A tensor of this shape, of the dtype and on the device of `first`.
inline void check(const char* op, const char* name, const Tensor& tensor, const Shape& shape,
                  const Tensor& first) {
  MIRNET_CHECK(shape_of(tensor) == shape, op, ": ", name, " must have shape ", text(shape),
               "; got ", text(shape_of(tensor)));
  MIRNET_CHECK(tensor.scalar_type() == first.scalar_type(), op, ": ", name,
               " must have the dtype of the first argument");
  check_device(op, name, tensor, first);
}

inline void check_map(const char* op, const char* name, const Tensor& tensor) {
  MIRNET_CHECK(tensor.dim() == 4 && tensor.size(1) > 0 && tensor.size(2) > 0 && tensor.size(3) > 0,
               op, ": ", name, " must be (N, C, H, W) with C, H, W >= 1; got ",
               text(shape_of(tensor)));
  check_device(op, name, tensor, tensor);
}

// 1x1 convolution weight (rows, columns, 1, 1) and its optional bias (rows).
inline void check_conv(const char* op, const char* name, const Tensor& weight,
                       const OptionalTensor& bias, int64_t rows, int64_t columns,
                       const Tensor& first) {
  check(op, name, weight, {rows, columns, 1, 1}, first);
  if (bias) check(op, name, *bias, {rows}, first);
}

}  // namespace mirnet_fast
