// From the arguments of blur_pool to what it reads along an axis.
#pragma once

#include <algorithm>
#include <string>

#include "axes.h"
#include "check.h"

namespace mirnet_fast {

constexpr int64_t kLongestAxis = int64_t(1) << 30;

// Binomial filter of `taps` taps every `stride` pixels of an axis of `size` pixels, padded by
// (taps - 1) / 2 + pad_off before and taps / 2 + pad_off after.
inline BlurAxis blur_axis(int64_t size, int64_t taps, const std::string& pad_type, int64_t stride,
                          int64_t pad_off) {
  const int64_t before = (taps - 1) / 2 + pad_off, after = taps / 2 + pad_off;
  const Padding padding = pad_type == "reflect"     ? Padding::reflect
                          : pad_type == "replicate" ? Padding::replicate
                                                    : Padding::zero;
  MIRNET_CHECK(size + before + after < kLongestAxis, "blur_pool: a side of 2**30 pixels or more");
  MIRNET_CHECK(taps >= 1 && taps <= 7 && stride >= 1 && before >= 0 &&
                   size + before + after >= taps && (padding != Padding::reflect || size > after) &&
                   (padding != Padding::zero || pad_type == "zero"),
               "blur_pool: filter, padding and stride do not fit the input");
  return {int(size),
          int((size + before + after - taps) / stride + 1),
          int(std::min(stride, kLongestAxis)),
          int(before),
          int(taps),
          padding};
}

}  // namespace mirnet_fast
