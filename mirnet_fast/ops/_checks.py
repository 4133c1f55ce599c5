"""Argument checks of the fused ops: an error names op, argument, what came and what was expected."""

import torch


def feature_map(op, name, value):
    """A (N, C, H, W) floating-point tensor with C, H, W >= 1."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a tensor (N, C, H, W); got {type(value).__name__}")
    if value.dim() != 4 or any(size < 1 for size in value.shape[1:]):
        raise ValueError(f"{op}: {name} must be (N, C, H, W) with C, H, W >= 1; got {tuple(value.shape)}")
    if not value.is_floating_point():
        raise TypeError(f"{op}: {name} must be floating point; got {value.dtype}")


def like(op, name, value, shape, first_name, first, any_dtype=False):
    """A tensor of this shape with dtype and device of the first one; None entries are free."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a tensor; got {type(value).__name__}")
    if value.dim() != len(shape) or any(
        want is not None and size != want for size, want in zip(value.shape, shape, strict=True)
    ):
        wanted = ", ".join("*" if want is None else str(want) for want in shape)
        raise ValueError(f"{op}: {name} must have shape ({wanted}); got {tuple(value.shape)}")
    if value.dtype != first.dtype and not any_dtype:
        raise TypeError(f"{op}: {name} must be {first.dtype} like {first_name}; got {value.dtype}")
    if value.device != first.device:
        raise ValueError(f"{op}: {name} must be on {first.device} like {first_name}; got {value.device}")


def optional_like(op, name, value, shape, first_name, first):
    """As `like`, or None."""
    if value is not None:
        like(op, name, value, shape, first_name, first)


def sums(op, name, value, shape, first_name, first):
    """A contiguous float64 tensor for or of sums over pixels."""
    like(op, name, value, shape, first_name, first, any_dtype=True)
    if value.dtype != torch.float64 or not value.is_contiguous():
        raise ValueError(f"{op}: {name} must be contiguous float64; got {value.dtype}")


def statistics(op, pooled, sums_, shape, first_name, first):
    """Of a map of this shape: maximum and mean over the channels, sums over the pixels; or neither.

    The former are in the map's dtype, or in float32 for bfloat16.
    """
    if (pooled is None) != (sums_ is None):
        raise ValueError(f"{op}: pooled and sums go together; only one was given")
    if pooled is not None:
        in_float32 = first.dtype == torch.bfloat16
        like(op, "pooled", pooled, (shape[0], 2, *shape[2:]), first_name, first, any_dtype=in_float32)
        if in_float32 and pooled.dtype != torch.float32:
            raise TypeError(f"{op}: pooled must be float32 for maps in bfloat16; got {pooled.dtype}")
        sums(op, "sums", sums_, shape[:2], first_name, first)


def slope(op, name, value, channels, first_name, first):
    """A PReLU weight: one value, or one a channel."""
    if isinstance(value, torch.Tensor) and value.dim() == 1 and value.shape[0] in (1, channels):
        like(op, name, value, value.shape, first_name, first)
    else:
        came = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(f"{op}: {name} must have shape (1,) or ({channels},); got {came}")


def tail(op, channels, inputs, first_name, first, slope_, top_weight, top_bias, bottom_weight, bottom_bias):
    """The weights of a residual resampler's tail, beside maps of so many channels."""
    slope(op, "slope", slope_, channels, first_name, first)
    like(op, "top_weight", top_weight, (None, channels, 1, 1), first_name, first)
    outputs = top_weight.shape[0]
    if outputs == 0:
        raise ValueError(f"{op}: top_weight must have an output; got {tuple(top_weight.shape)}")
    optional_like(op, "top_bias", top_bias, (outputs,), first_name, first)
    like(op, "bottom_weight", bottom_weight, (outputs, inputs, 1, 1), first_name, first)
    optional_like(op, "bottom_bias", bottom_bias, (outputs,), first_name, first)


def convolution(op, x, weight, bias, slope_, inputs, taps=3, prefix=""):
    """The arguments of an engine's convolution, its inputs in this dimension of the weight; its outputs."""
    feature_map(op, "x", x)
    if x.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"{op}: x must be float32 or bfloat16; got {x.dtype}")
    channels_last(op, "x", x)
    shape = [None, None, taps, taps]
    shape[inputs] = x.shape[1]
    like(op, f"{prefix}weight", weight, tuple(shape), "x", x)
    outputs = weight.shape[1 - inputs]
    if outputs == 0:
        raise ValueError(f"{op}: {prefix}weight must have an output; got {tuple(weight.shape)}")
    optional_like(op, f"{prefix}bias", bias, (outputs,), "x", x)
    if slope_ is not None:
        slope(op, "slope", slope_, outputs, "x", x)
    return outputs


def channels_last(op, name, value):
    """A map whose channels lie side by side."""
    if value.shape[1] > 1 and value.stride(1) != 1:
        raise ValueError(f"{op}: {name} must be channels_last; got strides {value.stride()}")


def rows(op, first_row, count, every):
    """Rows [first_row, first_row + count) of `every`."""
    integer(op, "first_row", first_row, 0)
    if first_row + count > every:
        raise ValueError(
            f"{op}: the rows from first_row on must lie inside the {every} there are; "
            f"got first_row = {first_row} and {count} rows"
        )


def integer(op, name, value, low, high=None):
    """An integer of at least `low`, at most `high`."""
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be an integer; got {type(value).__name__}")
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{op}: {name} must be {bounds}; got {value}")
