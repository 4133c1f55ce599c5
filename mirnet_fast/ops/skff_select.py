"""skff_select: selective kernel feature fusion of B branches."""

import functools
from collections.abc import Sequence
from typing import Any

import torch

from . import _checks
from ._registration import autocasts, call, cast, define_for_cpu, register, register_in_place


def skff_select(
    branches: Sequence[torch.Tensor],
    reduce_weight: torch.Tensor,
    reduce_bias: torch.Tensor | None,
    slope: torch.Tensor | None,
    select_weights: Sequence[torch.Tensor],
    select_biases: Sequence[torch.Tensor] = (),
) -> torch.Tensor:
    """Pooled statistics of the summed branches -> logits -> softmax over branches -> weighted sum.

    Args:
        branches: B >= 1 tensors (N, C, H, W) of one shape, dtype and device, any strides.
        reduce_weight: (d, C, 1, 1); reduce_bias: (d,) or None.
        slope: (1,) or (d,), the negative slope of the PReLU or LeakyReLU; None for a ReLU.
        select_weights: B tensors (C, d, 1, 1); select_biases: B tensors (C,), or empty for none.

    Returns:
        (N, C, H, W), dtype and memory format of branches[0]; under autocast the branches may differ
        in dtype and the widest of them is that of the result.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.

    Source: MIRNet (arXiv 2003.06792) section 3.1, equations 1 and 2.
    """
    op = "skff_select"
    branches = list(branches)
    if not branches:
        raise ValueError(f"{op}: branches must hold at least one tensor; got none")
    first = branches[0]
    _checks.feature_map(op, "branches[0]", first)
    promote = autocasts(first.device.type)
    for i, branch in enumerate(branches[1:], start=1):
        _checks.like(op, f"branches[{i}]", branch, first.shape, "branches[0]", first, any_dtype=promote)
    select_weights, select_biases = list(select_weights), list(select_biases)
    if promote:
        # As the published operators do under autocast: nothing here is a large product, so the
        # streams keep the precision they came with.
        dtype = functools.reduce(torch.promote_types, (branch.dtype for branch in branches))
        branches, reduce_weight, reduce_bias, slope, select_weights, select_biases = cast(
            dtype, branches, reduce_weight, reduce_bias, slope, select_weights, select_biases
        )
        first = branches[0]
    check(branches, reduce_weight, reduce_bias, slope, select_weights, select_biases)
    return call(op, branches, reduce_weight, reduce_bias, slope, select_weights, select_biases)


def check_branches(branches: Sequence[torch.Tensor]) -> None:
    op = "skff_select"
    if not branches:
        raise ValueError(f"{op}: branches must hold at least one tensor; got none")
    first = branches[0]
    _checks.feature_map(op, "branches[0]", first)
    for i, branch in enumerate(branches[1:], start=1):
        _checks.like(op, f"branches[{i}]", branch, first.shape, "branches[0]", first)


def check(branches: Sequence[torch.Tensor], *weights: Any) -> None:
    op = "skff_select"
    reduce_weight, reduce_bias, slope, select_weights, select_biases = weights
    check_branches(branches)
    first = branches[0]
    channels = first.shape[1]
    _checks.like(op, "reduce_weight", reduce_weight, (None, channels, 1, 1), "branches[0]", first)
    squeezed = reduce_weight.shape[0]
    if squeezed == 0:
        raise ValueError(f"{op}: reduce_weight must have an output; got {tuple(reduce_weight.shape)}")
    _checks.optional_like(op, "reduce_bias", reduce_bias, (squeezed,), "branches[0]", first)
    if slope is not None:
        _checks.slope(op, "slope", slope, squeezed, "branches[0]", first)
    if len(select_weights) != len(branches):
        raise ValueError(
            f"{op}: select_weights must hold one weight a branch, {len(branches)}; got {len(select_weights)}"
        )
    if len(select_biases) not in (0, len(branches)):
        raise ValueError(
            f"{op}: select_biases must be empty or hold {len(branches)}, one a branch; "
            f"got {len(select_biases)}"
        )
    for i, weight in enumerate(select_weights):
        _checks.like(op, f"select_weights[{i}]", weight, (channels, squeezed, 1, 1), "branches[0]", first)
    for i, bias in enumerate(select_biases):
        _checks.like(op, f"select_biases[{i}]", bias, (channels,), "branches[0]", first)


def check_into(out: torch.Tensor, branches: Sequence[torch.Tensor], *rest: Any) -> None:
    op, (*weights, sums, pixels) = "skff_select", rest
    check(branches, *weights)
    first = branches[0]
    _checks.like(op, "out", out, first.shape, "branches[0]", first)
    for i, each in enumerate(sums or ()):
        _checks.sums(op, f"sums[{i}]", each, first.shape[:2], "branches[0]", first)
    if sums:
        _checks.integer(op, "pixels", pixels, 1)


def output_shape(branches: Sequence[torch.Tensor], *weights: Any) -> Sequence[int]:
    return branches[0].shape


ARGUMENTS = [
    "Tensor[] branches",
    "Tensor reduce_weight",
    "Tensor? reduce_bias",
    "Tensor? slope",
    "Tensor[] select_weights",
    "Tensor[] select_biases",
]

register(
    "skff_select",
    ARGUMENTS,
    output_shape,
    check,
)

register_in_place(
    "skff_select_into", ["Tensor(a!) out", *ARGUMENTS, "Tensor[]? sums=None", "int pixels=0"], check_into
)


def _sums(branches):
    return branches[0].new_empty(branches[0].shape[:2], dtype=torch.float64)


define_for_cpu("skff_pool(Tensor[] branches) -> Tensor", check_branches, _sums)
