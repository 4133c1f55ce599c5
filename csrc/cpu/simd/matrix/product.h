// What a unit multiplies: a block of a row's pixels with packed weights.
#pragma once

#include "../tile_io.h"
#include "loops.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

inline int64_t whole(int64_t count, int64_t each) { return (count + each - 1) / each * each; }

// Values of a group of kMatrixOutputs of the packed weights of one tap.
inline int64_t group_values(int64_t inputs) {
  return whole(inputs, kMatrixInputs) * kMatrixOutputs;
}

// The pixels that a block reads: pixel (i, j) at data + i * sh + j * sw, whole kMatrixInputs of
// values each.
struct Pixels {
  const bf16* data;
  int64_t sh, sw;
};

// sums[p][o] = sum over the taps (i, j) and the inputs k of x(i, p + j)[k] * weights[i][j][k][o],
// for one group of outputs. Weights lie as an AMX tile has them: 32 inputs of a tap after the
// other, in these 16 outputs and then the other 16, of which two inputs lie side by side.
struct Product {
  Pixels x;
  int down, across;  // taps
  int64_t inputs;    // whole kMatrixInputs
  const bf16* weights;
};

// Of a row of a tile: pairs of inputs, and outputs.
constexpr int64_t kTileSide = 16;
constexpr int64_t kTileValues = kTileSide * kMatrixInputs;

}  // namespace mirnet_fast::cpu::MIRNET_ISA
