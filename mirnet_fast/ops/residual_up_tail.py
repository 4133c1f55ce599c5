"""residual_up_tail: PReLU and 1x1 convolution of the large map, plus the bilinear branch."""

from collections.abc import Sequence
from typing import Any

import torch

from . import _checks
from ._registration import autocast, call, define_for_cpu, register, register_in_place


def residual_up_tail(
    top: torch.Tensor,
    bottom: torch.Tensor,
    slope: torch.Tensor,
    top_weight: torch.Tensor,
    top_bias: torch.Tensor | None,
    bottom_weight: torch.Tensor,
    bottom_bias: torch.Tensor | None,
) -> torch.Tensor:
    """conv1x1(PReLU(top)) + conv1x1(bilinear x2 of bottom).

    The kernels project `bottom` before they enlarge it: both steps are linear and the bilinear
    weights sum to 1, so only rounding differs.

    Args:
        top: (N, C, 2H, 2W), the output of the top branch's transposed convolution, any strides.
        bottom: (N, E, H, W), the input of the module.
        slope: (1,) or (C,), the negative slope of the PReLU on top.
        top_weight: (D, C, 1, 1); bottom_weight: (D, E, 1, 1); their biases: (D,) or None.

    Returns:
        (N, D, 2H, 2W), dtype and memory format of top.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.

    Source: MIRNet (arXiv 2003.06792) section 3.3, figure 5b.
    """
    op = "residual_up_tail"
    _checks.feature_map(op, "top", top)
    args = autocast(top, bottom, slope, top_weight, top_bias, bottom_weight, bottom_bias)
    check(*args)
    return call(op, *args)


def check(top: torch.Tensor, bottom: torch.Tensor, *weights: Any) -> None:
    op = "residual_up_tail"
    _checks.feature_map(op, "top", top)
    _checks.feature_map(op, "bottom", bottom)
    n, _, height, width = bottom.shape
    _checks.like(op, "top", top, (n, None, 2 * height, 2 * width), "bottom", bottom)
    _checks.tail(op, top.shape[1], bottom.shape[1], "top", top, *weights)


def check_rows(
    out: torch.Tensor,
    top: torch.Tensor,
    bottom: torch.Tensor,
    slope: torch.Tensor,
    top_weight: torch.Tensor,
    *rest: Any,
) -> None:
    op, (*weights, first_row) = "residual_up_tail", rest
    _check_out(op, out, top, bottom, slope, top_weight, *weights, first_row)
    _checks.like(op, "top", top, (bottom.shape[0], None, *out.shape[2:]), "bottom", bottom)
    _checks.tail(op, top.shape[1], bottom.shape[1], "top", top, slope, top_weight, *weights)


def check_of_conv(
    out: torch.Tensor,
    x: torch.Tensor,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor | None,
    bottom: torch.Tensor,
    slope: torch.Tensor,
    top_weight: torch.Tensor,
    *rest: Any,
) -> None:
    op, (*weights, first_row, sums) = "residual_up_tail", rest
    channels = _checks.convolution(op, x, conv_weight, conv_bias, None, inputs=0, prefix="conv_")
    _check_out(op, out, x, bottom, slope, top_weight, *weights, first_row)
    n, height = out.shape[0], out.shape[2]
    _checks.like(op, "x", x, (n, None, None, bottom.shape[3]), "bottom", bottom)
    if height % 2 or first_row % 2 or height > 2 * x.shape[2]:
        raise ValueError(
            f"{op}: out must be rows that x's {x.shape[2]} rows become; "
            f"got first_row = {first_row} and {height} rows"
        )
    _checks.tail(op, channels, bottom.shape[1], "x", x, slope, top_weight, *weights)
    if sums is not None:
        _checks.sums(op, "sums", sums, out.shape[:2], "x", x)


def _check_out(op, out, first, bottom, slope, top_weight, *rest):
    _checks.feature_map(op, "bottom", bottom)
    _checks.feature_map(op, "out", out)
    n, _, height, width = bottom.shape
    _checks.like(op, "top_weight", top_weight, (None, None, 1, 1), "bottom", bottom)
    _checks.like(op, "out", out, (n, top_weight.shape[0], None, 2 * width), "bottom", bottom)
    _checks.rows(op, rest[-1], out.shape[2], 2 * height)


def output_shape(
    top: torch.Tensor, bottom: torch.Tensor, slope: torch.Tensor, top_weight: torch.Tensor, *rest: Any
) -> Sequence[int]:
    return top.shape[0], top_weight.shape[0], top.shape[2], top.shape[3]


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
    "residual_up_tail",
    ARGUMENTS,
    output_shape,
    check,
)

# Of the CPU engine, which mirnet_fast/engine/in_place.py describes.
define_for_cpu(
    "residual_up_tail_of_conv(Tensor(a!) out, Tensor x, Tensor conv_weight, Tensor? conv_bias, "
    "Tensor bottom, Tensor slope, Tensor top_weight, Tensor? top_bias, Tensor bottom_weight, "
    "Tensor? bottom_bias, int first_row, Tensor(b!)? sums=None) -> ()",
    check_of_conv,
)
register_in_place("residual_up_tail_rows", ["Tensor(a!) out", *ARGUMENTS, "int first_row"], check_rows)
