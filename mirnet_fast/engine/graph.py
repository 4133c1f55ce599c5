"""A network as a graph: values (maps and statistics of maps) and the steps that make them.

The modules' `lower(builder, x)` writes it down as the paper's figure has it. A step that stands in the
graph already is not added again: what a figure shows twice is computed once. Nothing here knows a device.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

MAP, POOLED, SUMS, MEANS = "map", "pooled", "sums", "means"

# Steps whose kernels can leave the sums of what they write, which an SKFF would read it again for.
SUMMED = ("residual_down_tail", "residual_up_tail", "dau_attention")
# The input that a step may overwrite with its output: a pixel is read before it is written.
OVERWRITTEN = {"dau_attention": "r", "skff_select": "branches", "conv3x3": "residual"}

_KINDS: dict[tuple[int, ...], str] = {(1, 1): "conv1x1", (3, 3): "conv3x3"}  # of convolutions


class Value:
    """What a step makes.

    Attributes:
        shape: of a map (N, C, H, W), which is channels_last; of its pooled channels (N, 2, H, W), their
            maximum and mean, contiguous; of its sums over the pixels (parts, N, C), in float64; of many
            maps' means over the pixels (N, all C, 1, 1), in float64.
        kind: MAP, POOLED, SUMS or MEANS.
        producer: the Step; None for an input of the graph.
        outside: whether others than the steps of the plan come to it, so that its memory is not the plan's.
    """

    shape: tuple[int, ...]
    kind: str
    producer: "Step | None"
    outside: bool

    def __init__(
        self, shape: Sequence[int], kind: str = MAP, producer: "Step | None" = None, outside: bool = False
    ) -> None:
        self.shape, self.kind, self.producer, self.outside = tuple(shape), kind, producer, outside

    @property
    def height(self) -> int:
        return self.shape[2]

    def __repr__(self) -> str:
        return f"{self.kind}{self.shape}"


@dataclass(eq=False)
class Step:
    """One op of the network on whole values.

    Attributes:
        kind: the op's name, "call" for a module that is called, "channels_last" for a copy.
        inputs: {argument: Value, tuple of Values or None}.
        layers: {argument: what it is computed with: a module or a tensor}.
        outputs: {"out": Value, and where asked for "pooled", "sums"}.
    """

    kind: str
    inputs: dict[str, Any]
    layers: dict[str, Any]
    outputs: dict[str, Value] = field(default_factory=dict)

    @property
    def out(self) -> Value:
        return self.outputs["out"]

    def reads(self) -> Iterator[Value]:
        """Every Value among the inputs, as often as it stands there."""
        for value in self.inputs.values():
            yield from value if isinstance(value, tuple) else (value,) if value is not None else ()


class Builder:
    """Collects the steps of one graph for inputs of one shape each."""

    def __init__(self, lowers: Callable[[nn.Module], bool]) -> None:
        """lowers: function of a module that says whether its `lower` stands for calling it."""
        self.steps, self._known, self._lowers = [], {}, lowers

    def input(self, shape: Sequence[int], channels_last: bool) -> tuple[Value, Value]:
        """(a map of the caller's, the same brought to channels_last if it is not)."""
        given = Value(shape, outside=True)
        return given, given if channels_last else self._add("channels_last", {"x": given}, {}, shape)

    def apply(
        self, module: nn.Module, x: Value | tuple[Value, ...], shape: Sequence[int] | None = None
    ) -> Value:
        """module(x): its own steps where these stand for it, else a call of it.

        shape: what a call has to result in; x's if not given.
        """
        if self._lowers(module):
            return module.lower(self, x)  # pyrefly: ignore[not-callable]
        values = x if isinstance(x, tuple) else (x,)
        for value in values:
            # It is the module's to keep and to change: what asks for the same later gets its own.
            value.outside = True
            self._known = {key: known for key, known in self._known.items() if known is not value}
        out = self._new("call", {"x": x}, {"module": module}, shape or values[0].shape)
        out.outside = True
        return out

    def conv(
        self, layer: nn.Conv2d, x: Value, activation: nn.Module | None = None, residual: Value | None = None
    ) -> Value:
        """activation(layer(x)) + residual, of a convolution that keeps height and width."""
        kind = _KINDS.get(layer.kernel_size, "convolution")
        channels, *rest = layer.weight.shape
        _expect("the weight of a convolution", rest, [x.shape[1], *layer.kernel_size])
        shape = (x.shape[0], channels, *x.shape[2:])
        layers = {"conv": layer, "activation": activation}
        if residual is None or residual.shape == shape:
            return self._add(kind, {"x": x, "residual": residual}, layers, shape)
        y = self._add(kind, {"x": x, "residual": None}, layers, shape)
        shape = torch.broadcast_shapes(shape, residual.shape)
        return self._add("add", {"x": y, "residual": residual}, {}, shape)

    def conv_transpose3x3(self, layer: nn.ConvTranspose2d, x: Value) -> Value:
        """layer(x) of a transposed convolution that doubles the resolution."""
        n, channels, height, width = x.shape
        _expect("the weight of a convolution", layer.weight.shape[::2], [channels, 3])
        shape = (n, layer.weight.shape[1], 2 * height, 2 * width)
        return self._add("conv_transpose3x3", {"x": x}, {"conv": layer}, shape)

    def residual_down_tail(self, top: Value, bottom: Value, **layers: Any) -> Value:
        """`ops.residual_down_tail`."""
        n, _, height, width = bottom.shape
        _expect("the size of the large map", top.shape[2:], [height, width])
        shape = (n, layers["top_conv"].weight.shape[0], (height + 1) // 2, (width + 1) // 2)
        return self._add("residual_down_tail", {"top": top, "bottom": bottom}, layers, shape)

    def residual_up_tail(self, top: Value, bottom: Value, **layers: Any) -> Value:
        """`ops.residual_up_tail`."""
        _expect("the size of the large map", top.shape[2:], [2 * size for size in bottom.shape[2:]])
        shape = (top.shape[0], layers["top_conv"].weight.shape[0], *top.shape[2:])
        return self._add("residual_up_tail", {"top": top, "bottom": bottom}, layers, shape)

    def skff_select(self, branches: tuple[Value, ...], **layers: Any) -> Value:
        """`ops.skff_select`."""
        for branch in branches:
            _expect("the shape of a branch", branch.shape, branches[0].shape)
        return self._add("skff_select", {"branches": branches, "sums": ()}, layers, branches[0].shape)

    def dau_attention(self, r: Value, x: Value | None, **layers: Any) -> Value:
        """`ops.dau_attention`."""
        return self._add("dau_attention", {"r": r, "x": x, "pooled": None, "sums": None}, layers, r.shape)

    def _add(self, kind, inputs, layers, shape):
        key = kind, _identities(inputs.values()), _identities(layers.values())
        if key not in self._known:
            self._known[key] = self._new(kind, inputs, layers, shape)
        return self._known[key]

    def _new(self, kind, inputs, layers, shape):
        step = Step(kind, inputs, layers)
        step.outputs["out"] = Value(shape, producer=step)
        self.steps.append(step)
        return step.out


def _expect(what, value, wanted):
    if [*value] != [*wanted]:
        raise ValueError(f"{what} is {tuple(value)}, not {tuple(wanted)}")


def _identities(values):
    return tuple(_identities(v) if isinstance(v, (tuple, list)) else id(v) for v in values)
