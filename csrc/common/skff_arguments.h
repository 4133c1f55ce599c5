// The weights of skff_select, and the checks of its arguments.
#pragma once

#include "arguments.h"

namespace mirnet_fast {

struct SkffWeights {
  const Tensor& reduce;
  const OptionalTensor &reduce_bias, &slope;
  const std::vector<Tensor>&select, &select_biases;
};

inline void check_branches(const char* op, const std::vector<Tensor>& branches) {
  MIRNET_CHECK(!branches.empty(), op, ": branches must hold at least one tensor; got none");
  const Tensor& first = branches[0];
  check_map(op, "branches[0]", first);
  for (const Tensor& branch : branches) check(op, "branches", branch, shape_of(first), first);
}

inline void check_skff(const char* op, const std::vector<Tensor>& branches, const SkffWeights& w) {
  check_branches(op, branches);
  const size_t count = branches.size();
  const Tensor& first = branches[0];
  MIRNET_CHECK(w.reduce.dim() == 4, op, ": reduce_weight must be (d, C, 1, 1)");
  const int64_t channels = first.size(1), squeezed = w.reduce.size(0);
  MIRNET_CHECK(squeezed > 0, op, ": reduce_weight must have an output; got ",
               text(shape_of(w.reduce)));
  check_conv(op, "reduce_weight or reduce_bias", w.reduce, w.reduce_bias, squeezed, channels,
             first);
  if (w.slope) check(op, "slope", *w.slope, {w.slope->numel() == 1 ? 1 : squeezed}, first);
  MIRNET_CHECK(w.select.size() == count, op, ": select_weights must hold one weight a branch, ",
               count, "; got ", w.select.size());
  MIRNET_CHECK(w.select_biases.empty() || w.select_biases.size() == count, op,
               ": select_biases must be empty or hold ", count, ", one a branch; got ",
               w.select_biases.size());
  for (const Tensor& weight : w.select)
    check(op, "select_weights", weight, {channels, squeezed, 1, 1}, first);
  for (const Tensor& bias : w.select_biases) check(op, "select_biases", bias, {channels}, first);
}

}  // namespace mirnet_fast
