// Winograd's minimal filtering along one axis: each struct says how a tile's inputs become their
// values at a few points, how a filter does, and how the products become outputs. V is one vector
// of channels.
#pragma once

#include "../tile_io.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

namespace {

using V = Vec<float>;

// Four outputs from the sums and differences of the products at +-a and +-b.
inline __attribute__((always_inline)) void outputs_of(const V* m, float a, float b, V* out) {
  const V even_a = m[0] + m[1], odd_a = a * (m[0] - m[1]);
  const V even_b = m[2] + m[3], odd_b = b * (m[2] - m[3]);
  out[0] = even_a + even_b;
  out[1] = odd_a + odd_b;
  out[2] = a * a * even_a + b * b * even_b;
  out[3] = a * a * odd_a + b * b * odd_b;
}

// Three taps, the output in their middle: F(4, 3). A part of the points is what needs no term that
// another part needs; two parts of a tile fit into the registers one by one, but not together.
//
// The points are +-a, 0, +-1/a and infinity with a = sqrt(1/2): against the usual 0, +-1, +-2 they
// halve the error, and as the product of the squares is 1 they cost no multiplication more.
struct ThreeTaps {
  static constexpr int kOut = 4, kIn = 6, kFirst = -1, kPoints = 6, kParts = 2, kPart = 3;
  static constexpr bool kOneWeight = false;
  static constexpr float kA = 0.70710678118654752f, kB = 1.4142135623730950f;
  static constexpr float kA2 = 0.5f, kB2 = 2.0f;
  // The filter at the points, times what the transforms of the tiles leave out.
  static constexpr int kTaps = 3, kTap[] = {0, 1, 2};
  static constexpr float kFilter[][kTaps] = {
      {-1 / 1.5f, -kA / 1.5f, -kA2 / 1.5f}, {-1 / 1.5f, kA / 1.5f, -kA2 / 1.5f}, {1, 0, 0},
      {1 / 6.f, kB / 6, kB2 / 6},           {1 / 6.f, -kB / 6, kB2 / 6},         {0, 0, 1}};

  template <int Part>
  static inline __attribute__((always_inline)) void to_points(const V* x, V* out) {
    constexpr float kOther = Part == 0 ? kB2 : kA2;
    const V even = x[4] - kOther * x[2], odd = (Part == 0 ? kA : kB) * (x[3] - kOther * x[1]);
    out[0] = even + odd;
    out[1] = even - odd;
    if constexpr (Part == 0)
      out[2] = (x[0] + x[4]) - (kA2 + kB2) * x[2];
    else
      out[2] = (x[1] + x[5]) - (kA2 + kB2) * x[3];
  }

  static inline __attribute__((always_inline)) void from_points(const V* m, V* out) {
    const V pairs[4] = {m[0], m[1], m[3], m[4]};
    outputs_of(pairs, kA, kB, out);
    out[0] += m[2];
    out[3] += m[5];
  }
};

// The same for six outputs: F(6, 3) with the points +-1/2, +-1, +-2, 0 and infinity. On both axes
// it would lose too much accuracy in float32; beside F(4, 3) as above it has the error that the
// usual points have for F(4, 3) on both.
struct ThreeTapsWide {
  static constexpr int kOut = 6, kIn = 8, kFirst = -1, kPoints = 8, kParts = 1, kPart = 8;
  static constexpr bool kOneWeight = false;
  static constexpr int kTaps = 3, kTap[] = {0, 1, 2};
  static constexpr float kFilter[][kTaps] = {{1 / 1.40625f, 0.5f / 1.40625f, 0.25f / 1.40625f},
                                             {1 / 1.40625f, -0.5f / 1.40625f, 0.25f / 1.40625f},
                                             {-1 / 4.5f, -1 / 4.5f, -1 / 4.5f},
                                             {-1 / 4.5f, 1 / 4.5f, -1 / 4.5f},
                                             {1 / 90.f, 2 / 90.f, 4 / 90.f},
                                             {1 / 90.f, -2 / 90.f, 4 / 90.f},
                                             {1, 0, 0},
                                             {0, 0, 1}};

  // Values at +-a: what vanishes at the other two pairs, whose squares have this sum and product.
  static inline __attribute__((always_inline)) void pair(const V* x, float a, float sum,
                                                         float product, V* out) {
    const V even = x[6] - sum * x[4] + product * x[2];
    const V odd = a * (x[5] - sum * x[3] + product * x[1]);
    out[0] = even + odd;
    out[1] = even - odd;
  }

  template <int>
  static inline __attribute__((always_inline)) void to_points(const V* x, V* out) {
    pair(x, 0.5f, 5, 4, out);
    pair(x, 1, 4.25f, 1, out + 2);
    pair(x, 2, 1.25f, 0.25f, out + 4);
    out[6] = (x[0] - x[6]) + 5.25f * (x[4] - x[2]);
    out[7] = (x[7] - x[1]) + 5.25f * (x[3] - x[5]);
  }

  static inline __attribute__((always_inline)) void from_points(const V* m, V* out) {
    const V even_a = m[0] + m[1], odd_a = m[0] - m[1];
    const V even_b = m[2] + m[3], odd_b = m[2] - m[3];
    const V even_c = m[4] + m[5], odd_c = m[4] - m[5];
    out[0] = even_a + even_b + even_c + m[6];
    out[1] = 0.5f * odd_a + odd_b + 2 * odd_c;
    out[2] = 0.25f * even_a + even_b + 4 * even_c;
    out[3] = 0.125f * odd_a + odd_b + 8 * odd_c;
    out[4] = 0.0625f * even_a + even_b + 16 * even_c;
    out[5] = 0.03125f * odd_a + odd_b + 32 * odd_c + m[7];
  }
};

// Two taps, the output at the first of them: F(4, 2) with the points +-a, infinity, +-b.
struct TwoTaps {
  static constexpr int kOut = 4, kIn = 5, kFirst = 0, kPoints = 5, kParts = 2, kPart = 3;
  static constexpr bool kOneWeight = false;
  static constexpr float kA = 0.5f, kB = 1.25f;
  // An odd output reads this input by the filter's last tap and the next by its first.
  static constexpr int kTaps = 2, kTap[] = {2, 0};
  static constexpr float kAtA = 2 * kA * (kA * kA - kB * kB), kAtB = 2 * kB * (kB * kB - kA * kA);
  static constexpr float kFilter[][kTaps] = {{1 / kAtA, kA / kAtA},
                                             {-1 / kAtA, kA / kAtA},
                                             {0, 1},
                                             {1 / kAtB, kB / kAtB},
                                             {-1 / kAtB, kB / kAtB}};

  template <int Part>
  static inline __attribute__((always_inline)) void to_points(const V* x, V* out) {
    constexpr float kOther = Part == 0 ? kB * kB : kA * kA;
    const V even = x[3] - kOther * x[1], odd = (Part == 0 ? kA : kB) * (x[2] - kOther * x[0]);
    out[0] = even + odd;
    out[1] = even - odd;
    if constexpr (Part == 0)
      out[2] = x[4] - (kA * kA + kB * kB) * x[2] + (kA * kA * kB * kB) * x[0];
  }

  static inline __attribute__((always_inline)) void from_points(const V* m, V* out) {
    const V pairs[4] = {m[0], m[1], m[3], m[4]};
    outputs_of(pairs, kA, kB, out);
    out[3] += m[2];
  }
};

// One tap, at the output: the values themselves, all with the same weight.
struct OneTap {
  static constexpr int kOut = 4, kIn = 4, kFirst = 0, kPoints = 4, kParts = 1, kPart = 4;
  static constexpr bool kOneWeight = true;
  static constexpr int kTaps = 1, kTap[] = {1};
  static constexpr float kFilter[][kTaps] = {{1}};

  template <int>
  static inline __attribute__((always_inline)) void to_points(const V* x, V* out) {
    for (int i = 0; i < kIn; ++i) out[i] = x[i];
  }
  static inline __attribute__((always_inline)) void from_points(const V* m, V* out) {
    for (int i = 0; i < kOut; ++i) out[i] = m[i];
  }
};

template <class Axis>
inline __attribute__((always_inline)) void to_all_points(const V* x, V* out) {
  Axis::template to_points<0>(x, out);
  if constexpr (Axis::kParts > 1) Axis::template to_points<1>(x, out + Axis::kPart);
}

// How many weights there are for the points of both axes.
template <class Rows, class Cols>
constexpr int kWeights =
    (Rows::kOneWeight ? 1 : Rows::kPoints) * (Cols::kOneWeight ? 1 : Cols::kPoints);

}  // namespace

}  // namespace mirnet_fast::cpu::MIRNET_ISA
