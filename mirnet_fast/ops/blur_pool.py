"""blur_pool: anti-aliased down-sampling by a binomial filter."""

from collections.abc import Sequence

import torch

from ..reference.filters import PADDING_MODES, pad_amounts
from . import _checks
from ._registration import autocast, call, register


def blur_pool(
    x: torch.Tensor, filt_size: int = 3, pad_type: str = "reflect", stride: int = 2, pad_off: int = 0
) -> torch.Tensor:
    """Pad, filter every channel with a binomial filter, keep every stride-th value.

    Args:
        x: (N, C, H, W), float32, bfloat16, float16 or float64, any strides.
        filt_size: taps of the filter, 1 to 7.
        pad_type: "reflect", "replicate" or "zero".
        stride: at least 1.
        pad_off: added to the padding of all four sides, (filt_size - 1) // 2 before and
            filt_size // 2 after; may be negative as long as no side's padding is.

    Returns:
        (N, C, (H + padding - filt_size) // stride + 1, same for W), dtype and memory format of x.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.

    Source: Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019, section 3.
    """
    check(x, filt_size, pad_type, stride, pad_off)
    (x,) = autocast(x)
    return call("blur_pool", x, filt_size, pad_type, stride, pad_off)


def check(x: torch.Tensor, filt_size: int, pad_type: str, stride: int, pad_off: int) -> None:
    op = "blur_pool"
    _checks.feature_map(op, "x", x)
    _checks.integer(op, "filt_size", filt_size, 1, 7)
    _checks.integer(op, "stride", stride, 1)
    if pad_type not in PADDING_MODES:
        raise ValueError(f"{op}: pad_type must be one of {', '.join(PADDING_MODES)}; got {pad_type!r}")
    before, after = pad_amounts(filt_size, pad_off)
    _checks.integer(op, "pad_off", pad_off, -((filt_size - 1) // 2))
    for side, size in (("H", x.shape[2]), ("W", x.shape[3])):
        if pad_type == "reflect" and size <= after:
            raise ValueError(f"{op}: reflect padding of {after} needs {side} > {after}; got {side} = {size}")
        if size + before + after < filt_size:
            raise ValueError(f"{op}: {side} = {size} is smaller than the filter of {filt_size} taps")


def output_shape(x: torch.Tensor, filt_size: int, pad_type: str, stride: int, pad_off: int) -> Sequence[int]:
    before, after = pad_amounts(filt_size, pad_off)
    height, width = ((size + before + after - filt_size) // stride + 1 for size in x.shape[2:])
    return x.shape[0], x.shape[1], height, width


register(
    "blur_pool",
    [
        "Tensor x",
        "int filt_size",
        "str pad_type",
        "int stride",
        "int pad_off",
    ],
    output_shape,
    check,
)
