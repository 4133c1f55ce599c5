// The sparse maps along one axis: blur-pool, bilinear enlargement, their transposes.
#pragma once

#include <cstdint>
#include <string>

#include "memory.h"
#include "simd/loops.h"

namespace mirnet_fast::cpu {

struct TapTable {
  Vector<int32_t> start, index;
  Vector<double> weight;

  Taps view() const { return {start.data(), index.data(), weight.data()}; }
};

// blur_axis of common/blur_axis.h.
TapTable blur_taps(int64_t size, int64_t filt_size, const std::string& pad_type, int64_t stride,
                   int64_t pad_off);

// Bilinear enlargement by 2, align_corners=False.
TapTable bilinear_taps(int64_t size);

// The transposed map; `inputs` is the number of inputs of `taps`.
TapTable transposed(const TapTable& taps, int64_t inputs);

}  // namespace mirnet_fast::cpu
