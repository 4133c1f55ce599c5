// Filters at the points of both axes, packed in the order in which the products read them.
#pragma once

#include "transforms.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

namespace {

// A unit of packing: the filters of one panel of outputs for a few inputs.
struct PackUnit {
  int64_t column, width, first, count;
};

inline PackUnit pack_unit(const ConvPackArgs& args, int64_t unit) {
  const int64_t columns = (args.outputs + kConvGroup - 1) / kConvGroup * kConvGroup;
  const int64_t chunks = (args.inputs + kPackInputs - 1) / kPackInputs;
  constexpr int64_t panel = kMaxVectors * kLanes<float>;
  const int64_t column = unit / chunks * panel, first = unit % chunks * kPackInputs;
  return {column, least(panel, columns - column), first, least(kPackInputs, args.inputs - first)};
}

// The taps of a unit's filters: [input][tap][output of the panel].
template <class T>
struct PackedTaps {
  static constexpr int64_t kPanel = kMaxVectors * kLanes<float>;
  float values[kPackInputs * 9 * kPanel];

  PackedTaps(const ConvPackArgs& args, const PackUnit& unit) {
    for (int64_t v = 0; v < unit.width; v += kLanes<float>) {
      const int64_t output = unit.column + v;
      const T* from = static_cast<const T*>(args.weight) + output * args.output_stride +
                      unit.first * args.input_stride;
      if (args.input_stride == 9 && output + kLanes<float> <= args.outputs &&
          9 * unit.count >= kLanes<float>) {
        transpose_taps(from, args.output_stride, 9 * unit.count, values + v);
        continue;
      }
      for (int64_t c = 0; c < unit.count; ++c, from += args.input_stride) {
        float* to = values + 9 * c * kPanel + v;
        // Whole vectors of a filter's nine taps end within the weight, but for its last ones.
        const int64_t last = unit.first + c + 1 < args.inputs ? 0 : 1;
        if (args.output_stride == 9 && output + kLanes<float> + last <= args.outputs)
          transpose_taps(from, 9, 9, to);
        else
          one_by_one(args, output, from, to);
      }
    }
  }

 private:
  // to[i * kPanel + j] = from[j * stride + i] for the outputs j of a vector and `count` taps i.
  // Fewer taps than lanes: what lies behind them is read too.
  static void transpose_taps(const T* from, int64_t stride, int64_t count, float* to) {
    constexpr int64_t kAll = kLanes<float>;
    for (int64_t i = 0; i < count; i += kAll) {
      const int64_t first = count < kAll ? 0 : least(i, count - kAll);
      V v[kAll];
      load_transposed<float>(from + first, stride, v);
      for (int64_t r = 0; r < least(kAll, count - first); ++r)
        store(to + (first + r) * kPanel, v[r], AllLanes{});
    }
  }

  static void one_by_one(const ConvPackArgs& args, int64_t output, const T* from, float* to) {
    for (int64_t j = 0; j < kLanes<float>; ++j)
      for (int i = 0; i < 9; ++i)
        to[i * kPanel + j] =
            output + j < args.outputs ? to_acc(from[j * args.output_stride + i]) : 0.0f;
  }
};

// The filters at row point P and all points of the columns: (C, panel) for each. All inputs of one
// row point are written before the next one's: those lie a power of two apart, and would compete
// for places in the cache.
template <class Rows, class Cols, int P, class T>
inline void pack_row(const ConvPackArgs& args, const PackUnit& unit, const PackedTaps<T>& taps,
                     float* at) {
  constexpr int kColPoints = Cols::kOneWeight ? 1 : Cols::kPoints;
  const int64_t step = args.inputs * unit.width;
  for (int64_t c = 0; c < unit.count; ++c)
    for (int64_t v = 0; v < unit.width; v += kLanes<float>) {
      const float* tap = taps.values + 9 * c * PackedTaps<T>::kPanel + v;
      V half[Cols::kTaps];
#pragma GCC unroll 3
      for (int j = 0; j < Cols::kTaps; ++j) {
        half[j] = V{};
#pragma GCC unroll 3
        for (int i = 0; i < Rows::kTaps; ++i)
          if (Rows::kFilter[P][i] != 0)
            half[j] +=
                Rows::kFilter[P][i] *
                load(tap + (Rows::kTap[i] * 3 + Cols::kTap[j]) * PackedTaps<T>::kPanel, AllLanes{});
      }
#pragma GCC unroll 8
      for (int q = 0; q < kColPoints; ++q) {
        V value{};
#pragma GCC unroll 3
        for (int j = 0; j < Cols::kTaps; ++j)
          if (Cols::kFilter[q][j] != 0) value += Cols::kFilter[q][j] * half[j];
        store(at + q * step + c * unit.width + v, value, AllLanes{});
      }
    }
  if constexpr (P + 1 < (Rows::kOneWeight ? 1 : Rows::kPoints))
    pack_row<Rows, Cols, P + 1>(args, unit, taps, at + kColPoints * step);
}

// A unit's filters at the points of both axes, the panels one by one.
template <class Rows, class Cols, class T>
inline void pack_weights(const ConvPackArgs& args, const PackUnit& unit, const PackedTaps<T>& taps,
                         float* packed) {
  pack_row<Rows, Cols, 0>(
      args, unit, taps,
      packed + unit.column * args.inputs * kWeights<Rows, Cols> + unit.first * unit.width);
}

}  // namespace

}  // namespace mirnet_fast::cpu::MIRNET_ISA
