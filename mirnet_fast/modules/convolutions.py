"""Convolutions one after the other, of networks that have no other part of MIRNet's."""

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from ..engine.eligibility import is_activation, is_conv
from ..engine.graph import Builder, Value
from ..ops.convolution import convolution
from ._fused import Fused


class Convolutions(Fused, nn.Sequential):  # pyrefly: ignore[inconsistent-inheritance]
    """A torch.nn.Sequential of convolutions that keep height and width, each with an activation or without.

    (N, C, H, W) -> (N, D, H, W). What accelerate() makes of such a torch.nn.Sequential.
    """

    def _layers(self) -> Iterable[nn.Module]:
        return [*self]

    def _published(self) -> Iterable[tuple[nn.Module | str, bool]]:
        after_conv = False
        for layer in self:
            yield layer, is_conv(layer) or (after_conv and is_activation(layer))
            after_conv = is_conv(layer)

    def _pairs(self) -> Iterator[tuple[nn.Conv2d, nn.Module | None]]:
        """(convolution, the activation after it or None)."""
        layers = [*self]
        for layer, after in zip(layers, [*layers[1:], None], strict=True):
            if isinstance(layer, nn.Conv2d):
                yield layer, None if isinstance(after, nn.Conv2d) else after

    def _fused(self, x: torch.Tensor) -> torch.Tensor:
        for conv, activation in self._pairs():
            x = convolution(conv, x)
            x = x if activation is None else activation(x)
        return x

    def lower(self, builder: Builder, x: Value) -> Value:
        """The same as steps of a graph."""
        for conv, activation in self._pairs():
            x = builder.conv(conv, x, activation)
        return x
