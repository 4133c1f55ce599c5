"""SKFF and DAU on the fused ops."""

from collections.abc import Iterable

from torch import nn

from .. import ops, reference
from ..engine.eligibility import is_activation, is_conv, is_prelu, is_sequence
from ..engine.graph import Builder, Value
from ..ops.convolution import convolution, slope_of
from ._fused import Fused


class SKFF(Fused, reference.SKFF):
    """Selective kernel feature fusion: one fused op (section 3.1, equations 1 and 2).

    [(N, C, H, W)] * height -> (N, C, H, W).
    """

    def _layers(self) -> Iterable[nn.Module]:
        return self.conv_du, *self.conv_du, *self.fcs

    def _published(self) -> Iterable[tuple[nn.Module | str, bool]]:
        yield self.conv_du, is_sequence(self.conv_du, 2)
        reduce, activation = self.conv_du
        yield reduce, is_conv(reduce, 1)
        yield activation, is_prelu(activation) or type(activation) in (nn.LeakyReLU, nn.ReLU)
        for fc in self.fcs:
            yield fc, is_conv(fc, 1)
        yield "the biases of fcs", len({fc.bias is None for fc in self.fcs}) == 1

    def _fused(self, branches):
        reduce, activation = self.conv_du
        biases = [fc.bias for fc in self.fcs]
        return ops.skff_select(
            list(branches),
            reduce.weight,
            reduce.bias,
            slope_of(activation, reduce.weight),
            [fc.weight for fc in self.fcs],
            [] if biases[0] is None else biases,
        )

    def lower(self, builder: Builder, branches: tuple[Value, ...]) -> Value:
        """The same as steps of a graph."""
        reduce, activation = self.conv_du
        return builder.skff_select(branches, reduce=reduce, activation=activation, fcs=tuple(self.fcs))


class DAU(Fused, reference.DAU):
    """Dual attention unit: two convolutions and one fused op (section 3.2, equation 3).

    (N, C, H, W) -> (N, C, H, W).
    """

    def _layers(self) -> Iterable[nn.Module]:
        return self.body, *self.body, *self.SA.modules(), *self.CA.modules(), self.conv1x1

    def _published(self) -> Iterable[tuple[nn.Module | str, bool]]:
        yield self.body, is_sequence(self.body, 3)
        first, activation, second = self.body
        yield first, is_conv(first)
        yield activation, is_activation(activation)
        yield second, is_conv(second)
        gate, channel = self.SA.spatial.conv, self.CA.conv_du
        yield gate, is_conv(gate) and gate.bias is None
        yield channel, is_sequence(channel, 4)
        squeeze, relu, excite, sigmoid = channel
        yield squeeze, is_conv(squeeze, 1)
        yield relu, type(relu) is nn.ReLU
        yield excite, is_conv(excite, 1)
        yield sigmoid, type(sigmoid) is nn.Sigmoid
        yield self.conv1x1, is_conv(self.conv1x1, 1)

    def _fused(self, x):
        first, activation, second = self.body
        squeeze, _, excite, _ = self.CA.conv_du
        return ops.dau_attention(
            convolution(second, activation(convolution(first, x))),
            x if self.SKIP else None,
            self.SA.spatial.conv.weight,
            squeeze.weight,
            squeeze.bias,
            excite.weight,
            excite.bias,
            self.conv1x1.weight,
            self.conv1x1.bias,
        )

    def lower(self, builder: Builder, x: Value) -> Value:
        """The same as steps of a graph."""
        first, activation, second = self.body
        squeeze, _, excite, _ = self.CA.conv_du
        r = builder.conv(second, builder.conv(first, x, activation))
        return builder.dau_attention(
            r,
            x if self.SKIP else None,
            spatial=self.SA.spatial.conv,
            squeeze=squeeze,
            excite=excite,
            fuse=self.conv1x1,
        )
