// Softmax over a handful of values, for every device.
#pragma once

#include <math.h>

#include "host_device.h"

namespace mirnet_fast {

// In place, over values[0], values[stride], ... A NaN or +Inf among them makes all of them NaN, as
// in torch.
template <class T>
MIRNET_HOST_DEVICE void softmax(T* values, int count, int stride) {
  T largest = values[0];
  for (int i = 1; i < count; ++i)
    if (!(values[i * stride] <= largest)) largest = values[i * stride];
  T sum = 0;
  for (int i = 0; i < count; ++i) {
    values[i * stride] = exp(values[i * stride] - largest);
    sum += values[i * stride];
  }
  for (int i = 0; i < count; ++i) values[i * stride] /= sum;
}

}  // namespace mirnet_fast
