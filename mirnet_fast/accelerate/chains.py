"""Convolutions in torch.nn.Sequential, which any network has."""

from torch import nn

from ..engine.eligibility import is_activation, is_conv, is_unhooked


def is_chain(module: nn.Module) -> bool:
    """Whether it is a torch.nn.Sequential that Convolutions can take over, and gains by it.

    That is: convolutions that keep height and width, one of 3x3 at least, each with one activation or
    without, all of them PyTorch's own and without hooks, in one floating dtype and on one device.
    """
    if type(module) is not nn.Sequential or "forward" in module.__dict__:
        return False
    layers = [*module]
    convs = [is_conv(layer) for layer in layers]
    fits = all(
        (conv or (after and is_activation(layer))) and is_unhooked(layer)
        for layer, conv, after in zip(layers, convs, [False, *convs], strict=False)
    )
    tensors = [*module.parameters()]
    return (
        fits
        and any(is_conv(layer, 3) for layer in layers)
        and len({(t.dtype, t.device) for t in tensors}) == 1
        and tensors[0].is_floating_point()
    )
