"""What the fused modules do otherwise where no gradient is wanted: less memory, the same numbers."""

import torch
from torch import nn
from torch.nn import functional as F

from .. import backends


def slope_of(activation, like):
    """The slope argument of the ops for a PReLU, LeakyReLU or ReLU module."""
    if isinstance(activation, nn.PReLU):
        return activation.weight
    if isinstance(activation, nn.LeakyReLU):
        return like.new_full((1,), activation.negative_slope)
    return None


def may_overwrite(x, *producers):
    """Whether tensors that these modules make from x on the CPU are nobody else's."""
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        # A hook may have kept what its module returned.
        and not any(module._forward_hooks or module._forward_pre_hooks for module in producers)
    )


def may_write_into(op, x, *producers):
    """Whether, beyond that, the C++ kernels' in-place form of `op` fits: it takes x as it is."""
    return (
        may_overwrite(x, *producers)
        and not torch.is_autocast_enabled("cpu")
        and x.is_contiguous(memory_format=torch.channels_last)
        and backends.pick(op, "cpu", x.dtype) == "cpu"
    )


def activated(conv, activation, x):
    """activation(conv(x)), in place where that is safe."""
    in_place = (
        isinstance(activation, nn.PReLU)
        and activation.weight.numel() == 1
        and may_overwrite(x, conv, activation)
    )
    return F.leaky_relu_(conv(x), activation.weight.item()) if in_place else activation(conv(x))
