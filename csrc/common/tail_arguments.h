// The weights of both residual resamplers' tails, and the checks of their arguments.
#pragma once

#include "arguments.h"

namespace mirnet_fast {

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

inline void check_down_tail(const char* op, const Tensor& top, const Tensor& bottom,
                            const TailWeights& w) {
  check_map(op, "top", top);
  MIRNET_CHECK(top.size(2) > 1 && top.size(3) > 1, op,
               ": reflect padding needs H and W above 1; got ", text(shape_of(top)));
  check(op, "bottom", bottom, shape_of(top), top);
  check_tail(op, w, top.size(1), top.size(1), top);
}

// Of a map with so many channels at half the size of `top`.
inline Shape down_tail_shape(const Tensor& top, int64_t channels) {
  return {top.size(0), channels, (top.size(2) + 1) / 2, (top.size(3) + 1) / 2};
}

inline void check_up_tail(const char* op, const Tensor& top, const Tensor& bottom,
                          const TailWeights& w) {
  check_map(op, "top", top);
  MIRNET_CHECK(top.size(2) % 2 == 0 && top.size(3) % 2 == 0, op,
               ": top must have even H and W; got ", text(shape_of(top)));
  check_map(op, "bottom", bottom);
  check(op, "bottom", bottom, {top.size(0), bottom.size(1), top.size(2) / 2, top.size(3) / 2}, top);
  check_tail(op, w, top.size(1), bottom.size(1), top);
}

}  // namespace mirnet_fast
