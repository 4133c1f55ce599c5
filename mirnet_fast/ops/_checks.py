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


def slope(op, name, value, channels, first_name, first):
    """A PReLU weight: one value, or one a channel."""
    if isinstance(value, torch.Tensor) and value.dim() == 1 and value.shape[0] in (1, channels):
        like(op, name, value, value.shape, first_name, first)
    else:
        came = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(f"{op}: {name} must have shape (1,) or ({channels},); got {came}")


def integer(op, name, value, low, high=None):
    """An integer of at least `low`, at most `high`."""
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be an integer; got {type(value).__name__}")
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{op}: {name} must be {bounds}; got {value}")
