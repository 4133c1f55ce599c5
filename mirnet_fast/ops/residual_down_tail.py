"""residual_down_tail: PReLU, blur-pool of both halves, both 1x1 convolutions and their sum."""

from collections.abc import Sequence
from typing import Any

import torch

from . import _checks
from ._registration import autocast, call, register, register_in_place


def residual_down_tail(
    top: torch.Tensor,
    bottom: torch.Tensor,
    slope: torch.Tensor,
    top_weight: torch.Tensor,
    top_bias: torch.Tensor | None,
    bottom_weight: torch.Tensor,
    bottom_bias: torch.Tensor | None,
) -> torch.Tensor:
    """conv1x1(blur_pool(PReLU(top))) + conv1x1(blur_pool(bottom)), the filter 3 taps, reflected.

    Args:
        top: (N, C, H, W) with H, W >= 2, the output of the top branch's 3x3 convolution, any strides.
        bottom: (N, C, H, W), the input of the module.
        slope: (1,) or (C,), the negative slope of the PReLU on top.
        top_weight, bottom_weight: (D, C, 1, 1); top_bias, bottom_bias: (D,) or None.

    Returns:
        (N, D, ceil(H / 2), ceil(W / 2)), dtype and memory format of top.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.

    Source: MIRNet (arXiv 2003.06792) section 3.3, figure 5a.
    """
    op = "residual_down_tail"
    _checks.feature_map(op, "top", top)
    args = autocast(top, bottom, slope, top_weight, top_bias, bottom_weight, bottom_bias)
    check(*args)
    return call(op, *args)


def check(top: torch.Tensor, bottom: torch.Tensor, *weights: Any) -> None:
    op = "residual_down_tail"
    _checks.feature_map(op, "top", top)
    if top.shape[2] < 2 or top.shape[3] < 2:
        raise ValueError(f"{op}: top must be (N, C, H, W) with H, W >= 2; got {tuple(top.shape)}")
    _checks.like(op, "bottom", bottom, top.shape, "top", top)
    _checks.tail(op, top.shape[1], top.shape[1], "top", top, *weights)


def check_into(
    out: torch.Tensor,
    top: torch.Tensor,
    bottom: torch.Tensor,
    slope: torch.Tensor,
    top_weight: torch.Tensor,
    *rest: Any,
) -> None:
    op, (*weights, sums, first_row) = "residual_down_tail", rest
    check(top, bottom, slope, top_weight, *weights)
    n, channels, height, width = output_shape(top, bottom, slope, top_weight)
    _checks.like(op, "out", out, (n, channels, None, width), "top", top)
    if first_row % 2 or not 0 <= first_row // 2 <= height - out.shape[2]:
        raise ValueError(
            f"{op}: the rows from first_row, an even one, on must lie inside top's {top.shape[2]}; "
            f"got first_row = {first_row} and {out.shape[2]} rows of half of them"
        )
    if sums is not None:
        _checks.sums(op, "sums", sums, (n, channels), "top", top)


def output_shape(
    top: torch.Tensor, bottom: torch.Tensor, slope: torch.Tensor, top_weight: torch.Tensor, *rest: Any
) -> Sequence[int]:
    n, _, height, width = top.shape
    return n, top_weight.shape[0], (height + 1) // 2, (width + 1) // 2


ARGUMENTS = [
    "Tensor top",
    "Tensor bottom",
    "Tensor slope",
    "Tensor top_weight",
    "Tensor? top_bias",
    "Tensor bottom_weight",
    "Tensor? bottom_bias",
]

register(
    "residual_down_tail",
    ARGUMENTS,
    output_shape,
    check,
)

register_in_place(
    "residual_down_tail_into",
    ["Tensor(a!) out", *ARGUMENTS, "Tensor(b!)? sums=None", "int first_row=0"],
    check_into,
)
