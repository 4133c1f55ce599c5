"""The activations between a network's convolutions, as the fused modules run them."""

import torch
from torch import nn
from torch.nn import functional as F


def slope_of(activation, like):
    """The slope argument of the ops for a PReLU, LeakyReLU or ReLU module."""
    if isinstance(activation, nn.PReLU):
        return activation.weight
    if isinstance(activation, nn.LeakyReLU):
        return like.new_full((1,), activation.negative_slope)
    return None


def activate(activation, x):
    """The activation of a tensor that nobody else holds, in place where no gradient wants it."""
    # Reading the slope would wait for a GPU, and break the graph of a compiled network.
    in_place = (
        isinstance(activation, nn.PReLU)
        and activation.weight.numel() == 1
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
    )
    return F.leaky_relu_(x, activation.weight.item()) if in_place else activation(x)
