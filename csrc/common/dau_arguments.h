// The weights of dau_attention, and the checks of its arguments.
#pragma once

#include "arguments.h"

namespace mirnet_fast {

struct DauWeights {
  const Tensor &spatial, &squeeze;
  const OptionalTensor& squeeze_bias;
  const Tensor& excite;
  const OptionalTensor& excite_bias;
  const Tensor& fuse;
  const OptionalTensor& fuse_bias;
};

inline void check_dau(const char* op, const Tensor& r, const DauWeights& w) {
  check_map(op, "r", r);
  const int64_t channels = r.size(1);
  MIRNET_CHECK(w.spatial.dim() == 4 && w.spatial.size(2) % 2 == 1, op,
               ": spatial_weight must be (1, 2, k, k) with odd k; got ", text(shape_of(w.spatial)));
  check(op, "spatial_weight", w.spatial, {1, 2, w.spatial.size(2), w.spatial.size(2)}, r);
  MIRNET_CHECK(w.squeeze.dim() == 4, op, ": squeeze_weight must be (d, C, 1, 1)");
  const int64_t squeezed = w.squeeze.size(0);
  MIRNET_CHECK(squeezed > 0, op, ": squeeze_weight must have an output; got ",
               text(shape_of(w.squeeze)));
  check_conv(op, "squeeze_weight or squeeze_bias", w.squeeze, w.squeeze_bias, squeezed, channels,
             r);
  check_conv(op, "excite_weight or excite_bias", w.excite, w.excite_bias, channels, squeezed, r);
  check_conv(op, "fuse_weight or fuse_bias", w.fuse, w.fuse_bias, channels, 2 * channels, r);
}

}  // namespace mirnet_fast
