#include "taps.h"

#include <algorithm>
#include <stdexcept>

namespace mirnet_fast::cpu {

namespace {

// The pixel that a padded position reads, or -1 for a zero.
int64_t source(int64_t position, int64_t size, const std::string& pad_type) {
  if (position >= 0 && position < size) return position;
  if (pad_type == "zero") return -1;
  if (pad_type == "replicate") return position < 0 ? 0 : size - 1;
  return position < 0 ? -position : 2 * (size - 1) - position;
}

}  // namespace

TapTable blur_taps(int64_t size, int64_t filt_size, const std::string& pad_type, int64_t stride,
                   int64_t pad_off) {
  const int64_t before = (filt_size - 1) / 2 + pad_off, after = filt_size / 2 + pad_off;
  const bool known = pad_type == "reflect" || pad_type == "replicate" || pad_type == "zero";
  if (!known || filt_size < 1 || filt_size > 7 || stride < 1 || before < 0 ||
      size + before + after < filt_size || (pad_type == "reflect" && size <= after))
    throw std::invalid_argument("blur_pool: filter, padding and stride do not fit the input");
  std::vector<double> taps{1};
  for (int64_t i = 1; i < filt_size; ++i) {
    taps.push_back(0);
    for (int64_t j = i; j > 0; --j) taps[j] += taps[j - 1];
  }
  for (double& tap : taps) tap /= double(1 << (filt_size - 1));

  TapTable table;
  table.start.push_back(0);
  const int64_t outputs = (size + before + after - filt_size) / stride + 1;
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t t = 0; t < filt_size; ++t) {
      const int64_t input = source(o * stride + t - before, size, pad_type);
      if (input < 0) continue;
      table.index.push_back(int32_t(input));
      table.weight.push_back(taps[t]);
    }
    table.start.push_back(int32_t(table.index.size()));
  }
  return table;
}

TapTable bilinear_taps(int64_t size) {
  TapTable table;
  table.start.push_back(0);
  for (int64_t o = 0; o < 2 * size; ++o) {
    // The output's centre lies a quarter of a pixel before or after an input's centre.
    const int64_t near = o / 2, far = o % 2 == 0 ? near - 1 : near + 1;
    if (far < 0 || far >= size) {
      table.index.push_back(int32_t(near));
      table.weight.push_back(1);
    } else {
      table.index.insert(table.index.end(), {int32_t(near), int32_t(far)});
      table.weight.insert(table.weight.end(), {0.75, 0.25});
    }
    table.start.push_back(int32_t(table.index.size()));
  }
  return table;
}

TapTable transposed(const TapTable& taps, int64_t inputs) {
  TapTable result;
  result.start.assign(inputs + 1, 0);
  result.index.resize(taps.index.size());
  result.weight.resize(taps.weight.size());
  for (int32_t input : taps.index) ++result.start[input + 1];
  for (int64_t i = 0; i < inputs; ++i) result.start[i + 1] += result.start[i];
  std::vector<int32_t> next(result.start.begin(), result.start.end() - 1);
  for (size_t o = 0; o + 1 < taps.start.size(); ++o)
    for (int32_t e = taps.start[o]; e < taps.start[o + 1]; ++e) {
      const int32_t slot = next[taps.index[e]]++;
      result.index[slot] = int32_t(o);
      result.weight[slot] = taps.weight[e];
    }
  return result;
}

}  // namespace mirnet_fast::cpu
