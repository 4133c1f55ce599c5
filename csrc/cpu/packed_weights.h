// The packed weights of the Winograd convolutions, kept from one call to the next where that pays.
//
// Packing a filter takes as long as about 20 tiles of the convolution; for a small map that is a
// quarter of it. So there the packed weights stay, found by the weight's address, and are used
// only if the weight's values are those that they were made from: every call reads all of them.
// Whatever changed a weight, and through whatever alias, it is noticed; and what came to lie at
// the address of one that is gone with the same values has the same packed weights.
#pragma once

#include <functional>
#include <memory>

#include "tensors.h"

namespace mirnet_fast::cpu {

using PackedWeights = std::shared_ptr<const float>;
using Packing = void (*)(const ConvPackArgs&, int64_t begin, int64_t end);

inline int64_t grouped(int64_t channels) {
  return (channels + kConvGroup - 1) / kConvGroup * kConvGroup;
}

// `count` values in a form of a weight of T that pack_to writes: kept from call to call where that
// is wanted and possible, found by `packing` and `form`, which stand for what it writes; else valid
// until the calling thread's next one.
template <class T>
PackedWeights kept_or_packed(const Tensor& weight, const void* packing, int64_t form, int64_t count,
                             bool keep, const std::function<void(float*)>& pack_to);

// The packed form, in float32, of a weight (outputs, inputs, 3, 3) of T, or with these two in the
// other order, for so many tiles of so many columns. Without `keep` it is valid until the calling
// thread's next one.
template <class T>
PackedWeights pack_for(Packing packing, const Tensor& weight, bool outputs_first,
                       int64_t tile_columns, int64_t tiles, bool keep);

}  // namespace mirnet_fast::cpu
