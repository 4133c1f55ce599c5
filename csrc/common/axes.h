// The sparse maps along one axis, for every device: blur-pool and bilinear enlargement. Positions
// fit 31 bits, so that a GPU divides them quickly; offsets in memory are another matter.
#pragma once

#include "host_device.h"

namespace mirnet_fast {

enum class Padding : int { reflect, replicate, zero };

// The pixel that a padded position reads, or -1 for a zero.
MIRNET_HOST_DEVICE int padded_source(int position, int size, Padding padding) {
  if (position >= 0 && position < size) return position;
  if (padding == Padding::zero) return -1;
  if (padding == Padding::replicate) return position < 0 ? 0 : size - 1;
  return position < 0 ? -position : 2 * (size - 1) - position;
}

// Tap i of the binomial filter of `taps` taps, whose sum is 1: exact in every float format.
MIRNET_HOST_DEVICE float binomial_tap(int taps, int i) {
  int value = 1;
  for (int j = 0; j < i; ++j) value = value * (taps - 1 - j) / (j + 1);
  return float(value) / float(1 << (taps - 1));
}

// Blur-pool along one axis: output o reads taps at positions o * stride - before + t.
struct BlurAxis {
  int inputs, outputs, stride, before;
  int taps;
  Padding padding;

  // f(input, weight) for what output o reads.
  template <class F>
  MIRNET_HOST_DEVICE void reads(int o, F f) const {
    for (int t = 0; t < taps; ++t) {
      const int input = padded_source(o * stride - before + t, inputs, padding);
      if (input >= 0) f(input, binomial_tap(taps, t));
    }
  }

  // f(output, weight) for the outputs that read input i, some perhaps twice.
  template <class F>
  MIRNET_HOST_DEVICE void read_by(int i, F f) const {
    at_position(i, f);
    const int last = (outputs - 1) * stride - before + taps - 1;
    if (padding == Padding::reflect) {
      const int low = -i, high = 2 * (inputs - 1) - i;
      if (low < 0 && low >= -before) at_position(low, f);
      if (high >= inputs && high <= last) at_position(high, f);
    }
    if (padding == Padding::replicate) {
      for (int p = -before; i == 0 && p < 0; ++p) at_position(p, f);
      for (int p = inputs; i == inputs - 1 && p <= last; ++p) at_position(p, f);
    }
  }

 private:
  template <class F>
  MIRNET_HOST_DEVICE void at_position(int p, F f) const {
    for (int t = 0; t < taps; ++t) {
      const int first = p + before - t;
      if (first >= 0 && first % stride == 0 && first / stride < outputs)
        f(first / stride, binomial_tap(taps, t));
    }
  }
};

// Bilinear enlargement by 2, align_corners=False: output o reads `near` with three quarters and
// `far` with one; at the ends both are the same pixel.
struct BilinearAxis {
  static constexpr float kNear = 0.75f, kFar = 0.25f;

  int inputs;

  MIRNET_HOST_DEVICE int near(int o) const { return o / 2; }
  MIRNET_HOST_DEVICE int far(int o) const {
    const int i = o % 2 == 0 ? o / 2 - 1 : o / 2 + 1;
    return i < 0 ? 0 : i >= inputs ? inputs - 1 : i;
  }

  // f(input, weight) for what output o reads.
  template <class F>
  MIRNET_HOST_DEVICE void reads(int o, F f) const {
    f(near(o), kNear);
    f(far(o), kFar);
  }

  // f(output, weight) for the outputs that read input i.
  template <class F>
  MIRNET_HOST_DEVICE void read_by(int i, F f) const {
    for (int o = 2 * i - 1; o <= 2 * i + 2; ++o) {
      if (o < 0 || o >= 2 * inputs) continue;
      const float weight = (near(o) == i ? kNear : 0.f) + (far(o) == i ? kFar : 0.f);
      if (weight != 0) f(o, weight);
    }
  }
};

}  // namespace mirnet_fast
