"""dau_attention: everything in the dual attention unit after its second 3x3 convolution."""

from collections.abc import Sequence
from typing import Any

import torch

from . import _checks
from ._registration import autocast, autocasts, call, register, register_in_place


def dau_attention(
    r: torch.Tensor,
    x: torch.Tensor | None,
    spatial_weight: torch.Tensor,
    squeeze_weight: torch.Tensor,
    squeeze_bias: torch.Tensor | None,
    excite_weight: torch.Tensor,
    excite_bias: torch.Tensor | None,
    fuse_weight: torch.Tensor,
    fuse_bias: torch.Tensor | None,
) -> torch.Tensor:
    """Spatial gate and channel gate on r, both fused by a 1x1 convolution, plus x.

    Args:
        r: (N, C, H, W), the output of the second 3x3 convolution, any strides.
        x: (N, C, H, W), the input of the unit; None to add nothing.
        spatial_weight: (1, 2, k, k) with odd k, on [max, mean] over the channels; no bias.
        squeeze_weight: (d, C, 1, 1); squeeze_bias: (d,) or None.
        excite_weight: (C, d, 1, 1); excite_bias: (C,) or None.
        fuse_weight: (C, 2C, 1, 1) on [spatial branch, channel branch]; fuse_bias: (C,) or None.

    Returns:
        (N, C, H, W), dtype and memory format of r; under autocast, an x of higher precision
        gives its dtype to the sum. Where several channels share the maximum, the
        first of them receives its gradient.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.

    Source: MIRNet (arXiv 2003.06792) section 3.2, equation 3.
    """
    op = "dau_attention"
    _checks.feature_map(op, "r", r)
    if x is not None:
        _checks.like(op, "x", x, r.shape, "r", r, any_dtype=autocasts(r.device.type))
    r, *weights = autocast(
        r, spatial_weight, squeeze_weight, squeeze_bias, excite_weight, excite_bias, fuse_weight, fuse_bias
    )
    if x is not None and x.dtype != r.dtype:
        # Under autocast a residual stays in its own dtype: only the convolutions run in the lower.
        return dau_attention(r, None, *weights) + x
    check(r, x, *weights)
    return call(op, r, x, *weights)


def check(r: torch.Tensor, x: torch.Tensor | None, *weights: Any) -> None:
    op = "dau_attention"
    spatial_weight, squeeze_weight, squeeze_bias, excite_weight, excite_bias, fuse_weight, fuse_bias = weights
    _checks.feature_map(op, "r", r)
    _checks.optional_like(op, "x", x, r.shape, "r", r)
    channels = r.shape[1]
    _checks.like(op, "spatial_weight", spatial_weight, (1, 2, None, None), "r", r)
    taps = spatial_weight.shape[2:]
    if taps[0] != taps[1] or taps[0] % 2 == 0:
        raise ValueError(
            f"{op}: spatial_weight must be (1, 2, k, k) with odd k; got {tuple(spatial_weight.shape)}"
        )
    _checks.like(op, "squeeze_weight", squeeze_weight, (None, channels, 1, 1), "r", r)
    squeezed = squeeze_weight.shape[0]
    if squeezed == 0:
        raise ValueError(f"{op}: squeeze_weight must have an output; got {tuple(squeeze_weight.shape)}")
    _checks.optional_like(op, "squeeze_bias", squeeze_bias, (squeezed,), "r", r)
    _checks.like(op, "excite_weight", excite_weight, (channels, squeezed, 1, 1), "r", r)
    _checks.optional_like(op, "excite_bias", excite_bias, (channels,), "r", r)
    _checks.like(op, "fuse_weight", fuse_weight, (channels, 2 * channels, 1, 1), "r", r)
    _checks.optional_like(op, "fuse_bias", fuse_bias, (channels,), "r", r)


def check_into(out: torch.Tensor, r: torch.Tensor, x: torch.Tensor | None, *rest: Any) -> None:
    op, (*weights, pooled, sums, out_sums, first_row, pixels) = "dau_attention", rest
    check(r, x, *weights)
    _checks.like(op, "out", out, r.shape, "r", r)
    n, channels, height, width = r.shape
    if pooled is None:
        _checks.statistics(op, pooled, sums, r.shape, "r", r)
        if first_row or pixels:
            raise ValueError(f"{op}: first_row and pixels are of pooled and sums, which are missing")
    else:
        _checks.statistics(op, pooled, sums, (n, channels, None, width), "r", r)
        _checks.rows(op, first_row, height, pooled.shape[2])
    if pixels < 0:
        raise ValueError(f"{op}: pixels must be those of the sums; got {pixels}")
    if out_sums is not None:
        _checks.sums(op, "out_sums", out_sums, r.shape[:2], "r", r)


def output_shape(r: torch.Tensor, *rest: Any) -> Sequence[int]:
    return r.shape


ARGUMENTS = [
    "Tensor r",
    "Tensor? x",
    "Tensor spatial_weight",
    "Tensor squeeze_weight",
    "Tensor? squeeze_bias",
    "Tensor excite_weight",
    "Tensor? excite_bias",
    "Tensor fuse_weight",
    "Tensor? fuse_bias",
]

register(
    "dau_attention",
    ARGUMENTS,
    output_shape,
    check,
    residual=1,
)

STATISTICS = ["Tensor? pooled=None", "Tensor? sums=None", "Tensor(b!)? out_sums=None"]
STATISTICS += ["int first_row=0", "int pixels=0"]
register_in_place("dau_attention_into", ["Tensor(a!) out", *ARGUMENTS, *STATISTICS], check_into)
