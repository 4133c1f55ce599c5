// Sums over pixels: cut into chunks that depend on the shape alone, and added in order.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../common/arguments.h"
#include "memory.h"
#include "simd/loops.h"

namespace mirnet_fast::cpu {

// result[i * stride + j] += scale(chunk, j) * the sums' [chunk * step + i * ld + j], for a (rows,
// columns) matrix and every chunk in order.
template <class A, class F>
void add_matrices(const A* sums, int64_t chunks, int64_t step, int64_t rows, int64_t columns,
                  int64_t ld, double* result, int64_t stride, F scale) {
  torch::stable::parallel_for(0, rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      for (int64_t i = begin; i < end; ++i)
        for (int64_t j = 0; j < columns; ++j)
          result[i * stride + j] += scale(chunk, j) * double(sums[chunk * step + i * ld + j]);
  });
}

// (N, columns) totals of the sums (N * groups, columns), in order.
inline Vector<double> totals(const Vector<double>& sums, int64_t groups, int64_t images,
                             int64_t columns) {
  Vector<double> result(images * columns);
  for (int64_t group = 0; group < images * groups; ++group)
    for (int64_t i = 0; i < columns; ++i)
      result[group / groups * columns + i] += sums[group * columns + i];
  return result;
}

// What a kernel that runs in groups of pixels adds to a map's sums: (N * groups, C) zeros for it,
// whose totals go to `sums`.
class GroupedSums {
 public:
  GroupedSums(const OptionalTensor& sums, int64_t images, int64_t groups, int64_t channels)
      : sums_(sums ? static_cast<double*>(sums->data_ptr()) : nullptr),
        images_(images),
        groups_(groups),
        channels_(channels),
        parts_(sums ? images * groups * channels : 0) {}

  double* parts() { return sums_ == nullptr ? nullptr : parts_.data(); }

  void finish() const {
    if (sums_ == nullptr) return;
    const Vector<double> all = totals(parts_, groups_, images_, channels_);
    std::copy(all.begin(), all.end(), sums_);
  }

 private:
  double* sums_;
  int64_t images_, groups_, channels_;
  Vector<double> parts_;
};

// Chunks of about `pixels` pixels, at most `limit` in all images together if that is above 0.
inline Chunks chunks_of(const Map& map, int64_t pixels, int64_t limit = 0) {
  int64_t rows = std::max<int64_t>(1, pixels / map.w);
  if (limit > 0) {
    const int64_t per_image = std::max<int64_t>(1, limit / std::max<int64_t>(map.n, 1));
    rows = std::max(rows, (map.h + per_image - 1) / per_image);
  }
  rows = std::min(rows, map.h);
  return {(map.h + rows - 1) / rows, rows};
}

// For sums of pixels.
constexpr int64_t kChunkPixels = 512;

// For sums of outer products, which keep a matrix a chunk: as few as keep some threads busy.
inline Chunks matrix_chunks_of(const Map& map) {
  constexpr int64_t kSome = 8, kMost = 32, kFewPixels = 256, kManyPixels = 2048;
  return chunks_of(map, std::clamp(map.h * map.w / kSome, kFewPixels, kManyPixels), kMost);
}

}  // namespace mirnet_fast::cpu
