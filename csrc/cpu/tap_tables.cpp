#include "tap_tables.h"

#include "../common/blur_axis.h"

namespace mirnet_fast::cpu {

namespace {

// What an axis reads for each of its outputs; neighbours that are the same pixel become one.
template <class Axis>
TapTable tabulated(const Axis& axis, int outputs) {
  TapTable table;
  table.start.push_back(0);
  for (int o = 0; o < outputs; ++o) {
    axis.reads(o, [&](int input, double weight) {
      if (int64_t(table.index.size()) > table.start.back() && table.index.back() == input) {
        table.weight.back() += weight;
      } else {
        table.index.push_back(input);
        table.weight.push_back(weight);
      }
    });
    table.start.push_back(int32_t(table.index.size()));
  }
  return table;
}

}  // namespace

TapTable blur_taps(int64_t size, int64_t filt_size, const std::string& pad_type, int64_t stride,
                   int64_t pad_off) {
  const BlurAxis axis = blur_axis(size, filt_size, pad_type, stride, pad_off);
  return tabulated(axis, axis.outputs);
}

TapTable bilinear_taps(int64_t size) {
  MIRNET_CHECK(size < kLongestAxis, "a side of 2**30 pixels or more");
  return tabulated(BilinearAxis{int(size)}, 2 * int(size));
}

TapTable transposed(const TapTable& taps, int64_t inputs) {
  TapTable result;
  result.start.assign(inputs + 1, 0);
  result.index.resize(taps.index.size());
  result.weight.resize(taps.weight.size());
  for (int32_t input : taps.index) ++result.start[input + 1];
  for (int64_t i = 0; i < inputs; ++i) result.start[i + 1] += result.start[i];
  Vector<int32_t> next(result.start.begin(), result.start.end() - 1);
  for (size_t o = 0; o + 1 < taps.start.size(); ++o)
    for (int32_t e = taps.start[o]; e < taps.start[o + 1]; ++e) {
      const int32_t slot = next[taps.index[e]]++;
      result.index[slot] = int32_t(o);
      result.weight[slot] = taps.weight[e];
    }
  return result;
}

}  // namespace mirnet_fast::cpu
