// What csrc/common/ and the tables of csrc/cpu/tap_tables.cpp say, as dense matrices for
// test_common.py.
#include <cmath>

#include "../../csrc/common/axes.h"
#include "../../csrc/common/softmax.h"
#include "../../csrc/cpu/tap_tables.h"

using namespace mirnet_fast;

namespace {

// reads, read_by: (outputs, inputs), zero before.
template <class Axis>
void fill(const Axis& axis, int inputs, int outputs, double* reads, double* read_by) {
  for (int o = 0; o < outputs; ++o)
    axis.reads(o, [&](int i, float weight) { reads[o * inputs + i] += weight; });
  for (int i = 0; i < inputs; ++i)
    axis.read_by(i, [&](int o, float weight) { read_by[o * inputs + i] += weight; });
}

void fill(const cpu::TapTable& table, int inputs, double* reads, double* read_by) {
  const int outputs = int(table.start.size()) - 1;
  for (int o = 0; o < outputs; ++o)
    for (int e = table.start[o]; e < table.start[o + 1]; ++e)
      reads[o * inputs + table.index[e]] += table.weight[e];
  const cpu::TapTable back = cpu::transposed(table, inputs);
  for (int i = 0; i < inputs; ++i)
    for (int e = back.start[i]; e < back.start[i + 1]; ++e)
      read_by[back.index[e] * inputs + i] += back.weight[e];
}

}  // namespace

extern "C" {

int source(int position, int size, int padding) {
  return padded_source(position, size, Padding(padding));
}

float tap(int taps, int i) { return binomial_tap(taps, i); }

void blur(int inputs, int outputs, int stride, int before, int taps, int padding, double* reads,
          double* read_by) {
  const BlurAxis axis{inputs, outputs, stride, before, taps, Padding(padding)};
  fill(axis, inputs, outputs, reads, read_by);
}

void bilinear(int inputs, double* reads, double* read_by) {
  fill(BilinearAxis{inputs}, inputs, 2 * inputs, reads, read_by);
}

// The same by the tables of the CPU; returns the number of outputs, or -1 where it refuses.
int cpu_blur(int inputs, int taps, const char* padding, int stride, int pad_off, double* reads,
             double* read_by) {
  try {
    const cpu::TapTable table = cpu::blur_taps(inputs, taps, padding, stride, pad_off);
    fill(table, inputs, reads, read_by);
    return int(table.start.size()) - 1;
  } catch (const std::exception&) {
    return -1;
  }
}

void cpu_bilinear(int inputs, double* reads, double* read_by) {
  fill(cpu::bilinear_taps(inputs), inputs, reads, read_by);
}

void softmax_float(float* values, int count, int stride) { softmax(values, count, stride); }
void softmax_double(double* values, int count, int stride) { softmax(values, count, stride); }
}
