"""Tasks as calls of the C++ kernels.

`Bound` makes a list of calls without arguments of a plan's tasks, for one block of memory. What lies
outside the block, as an image and its result do, is looked up when a call is made.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from ..ops import convolution
from ..ops.convolution import slope_of
from . import in_place
from .graph import MAP, SUMS, Step, Value
from .schedule import Task, Window, whole

if TYPE_CHECKING:
    from .memory import Block, Layout


class UnexpectedResult(Exception):
    """A module that is called results in something else than the plan has a place for."""


def is_for_kernels(step: Step, dtype: torch.dtype) -> bool:
    """Whether the kernels run a convolution Step, and are faster than PyTorch."""
    activation = step.layers.get("activation")
    return type(activation) in (type(None), nn.PReLU, nn.LeakyReLU) and convolution.is_for_kernels(
        step.layers["conv"], step.inputs["x"].shape, dtype, again=True
    )


def is_kernel_call(task: Task) -> bool:
    """Whether a Task is a call of a kernel, and not of a module or of an operator of PyTorch."""
    return task.kind not in ("call", "channels_last", "add", "total") and task.layers.get("by_kernels", True)


class Bound:
    """A plan's tasks in one block.

    Attributes:
        values: {Value: tensor} of what lies outside the block while a run needs it.
        calls: functions without arguments, in order.
    """

    values: dict[Value, torch.Tensor]
    calls: list[Callable[[], object]]

    def __init__(
        self, tasks: Sequence[Task], layout: "Layout", block: "Block", dtype: torch.dtype, kept: Value
    ) -> None:
        self.values, self.calls, self._views = {}, [], {}
        self._ends = []  # for each task the number of calls up to its end
        self._layout, self._block, self._dtype, self._kept = layout, block, dtype, kept
        last = {window.value: i for i, task in enumerate(tasks) for window in task.windows()}
        made = set()
        for i, task in enumerate(tasks):
            out = task.writes["out"].value
            if out.outside and out not in made and task.kind != "call":
                self.calls.append(partial(self._allocate, out))
            made.add(out)
            _BINDERS[task.kind](self, task)
            gone = {window.value for window in task.windows() if window.value.outside} - {kept}
            self.calls += [partial(self.values.pop, value) for value in gone if last[value] == i]
            self._ends.append(len(self.calls))

    def run(self) -> None:
        """Makes the calls; `values` must hold the inputs."""
        for call in self.calls:
            call()

    def timed(self) -> list[float]:
        """As `run`: [seconds] that the calls of each task take."""
        seconds, begin = [], 0
        for end in self._ends:
            start = time.perf_counter()
            for call in self.calls[begin:end]:
                call()
            seconds.append(time.perf_counter() - start)
            begin = end
        return seconds

    def of_result(self) -> torch.Tensor:
        """The tensor of the value that is kept."""
        return self.values[self._kept] if self._kept.outside else self.of(whole(self._kept))

    def of(self, window: Window | tuple[Window, ...] | None) -> Any:
        """The tensor of a Window, or what `emit` looks up for it; lists of them for tuples."""
        if isinstance(window, tuple):
            return [self.of(each) for each in window]
        if window is None:
            return None
        value = window.value
        if value.outside:
            return window
        if value not in self._views:
            dtype = torch.float64 if value.kind == SUMS else self._dtype
            offset = self._layout.offsets[value]
            self._views[value] = self._block.view(offset, value.shape, dtype, channels_last=value.kind == MAP)
        return _part(self._views[value], window)

    def emit(self, function: Callable[..., object], *args: object) -> None:
        """Calls function(*args) in each run."""
        late = any(isinstance(b, Window) for a in args for b in (a if isinstance(a, list) else [a]))
        self.calls.append(partial(self._call, function, args) if late else partial(function, *args))

    def call_module(self, module: nn.Module, x: Window | list[Window], out: Value) -> None:
        """values[out] = module(x)."""
        result = module(self._found(x))
        if (
            type(result) is not torch.Tensor
            or result.shape != out.shape
            or result.dtype != self._dtype
            or result.device.type != "cpu"
        ):
            found = tuple(getattr(result, "shape", ()))
            raise UnexpectedResult(f"a {type(module).__name__} gave a {type(result).__name__} {found}")
        self.values[out] = result.contiguous(memory_format=torch.channels_last)

    def _call(self, function, args):
        function(*map(self._found, args))

    def _found(self, arg):
        if isinstance(arg, list):
            return [self._found(each) for each in arg]
        return _part(self.values[arg.value], arg) if isinstance(arg, Window) else arg

    def _allocate(self, value):
        self.values[value] = torch.empty(value.shape, dtype=self._dtype, memory_format=torch.channels_last)


def _part(tensor, window):
    value, begin, end = window.value, window.begin, window.end
    if value.kind == SUMS:
        return tensor[begin] if end - begin == 1 else tensor[begin:end]
    return tensor if (begin, end) == (0, value.height) else tensor[:, :, begin:end]


def _conv(bound, task):
    layer, activation = task.layers["conv"], task.layers["activation"]
    x, residual, out = task.reads["x"], bound.of(task.reads["residual"]), bound.of(task.writes["out"])
    if not task.layers["by_kernels"]:
        bound.emit(_conv_of_torch, layer, activation, out, bound.of(x), residual, task.row)
        return
    weights = layer.weight, layer.bias, slope_of(activation, layer.weight)
    if task.kind == "conv1x1":
        x = bound.of(x.rows(task.row, task.writes["out"].end - task.writes["out"].begin))
        bound.emit(in_place.conv1x1_into, out, x, *weights)
        if residual is not None:
            bound.emit(torch.Tensor.add_, out, residual)
        return
    statistics = [bound.of(task.writes.get(name)) for name in ("pooled", "sums")]
    bound.emit(in_place.conv3x3_into, out, bound.of(x), *weights, residual, *statistics, task.row)


def _conv_of_torch(layer, activation, out, x, residual, row):
    """Rows of a convolution that the kernels do not run, its activation and the residual."""
    result = convolution.called_on_rows(layer, x, row, row + out.shape[2])
    if isinstance(activation, nn.PReLU) and activation.weight.numel() == 1 and result.numel():
        result = F.leaky_relu_(result, activation.weight.item())
    elif activation is not None:
        result = activation(result)
    if residual is None:
        out.copy_(result)
    else:
        torch.add(result, residual, out=out)


def _residual_down_tail(bound, task):
    operands = [bound.of(task.reads[name]) for name in ("top", "bottom")]
    sums = bound.of(task.writes.get("sums"))
    out = bound.of(task.writes["out"])
    bound.emit(in_place.residual_down_tail_into, out, *operands, *_tail(task), sums)


def _residual_up_tail(bound, task):
    out, x, bottom = bound.of(task.writes["out"]), bound.of(task.reads["x"]), bound.of(task.reads["bottom"])
    layer, tail = task.layers["conv"], _tail(task)
    if not task.layers["by_kernels"]:
        bound.emit(_residual_up_tail_of_torch, layer, out, x, bottom, tail, task.row)
        return
    arguments = out, x, layer.weight, layer.bias, bottom, *tail, task.row, bound.of(task.writes["sums"])
    bound.emit(in_place.residual_up_tail_of_conv, *arguments)


def _residual_up_tail_of_torch(layer, out, x, bottom, tail, row):
    """The same where PyTorch runs the transposed convolution."""
    top = convolution.called(layer, x)[:, :, : out.shape[2]]
    in_place.residual_up_tail_rows(out, top, bottom, *tail, row)


def _tail(task):
    slope, top, bottom = (task.layers[name] for name in ("activation", "top_conv", "bottom_conv"))
    return slope.weight, top.weight, top.bias, bottom.weight, bottom.bias


def _skff_select(bound, task):
    reduce, activation, fcs = (task.layers[name] for name in ("reduce", "activation", "fcs"))
    biases = [] if fcs[0].bias is None else [fc.bias for fc in fcs]
    weights = (
        reduce.weight,
        reduce.bias,
        slope_of(activation, reduce.weight),
        [fc.weight for fc in fcs],
        biases,
    )
    branches, sums = bound.of(task.reads["branches"]), bound.of(task.reads["sums"])
    out = bound.of(task.writes["out"])
    bound.emit(in_place.skff_select_into, out, branches, *weights, sums, task.layers["pixels"])


def _skff_pool(bound, task):
    bound.emit(in_place.skff_pool_into, bound.of(task.writes["out"]), bound.of(task.reads["branches"]))


def _dau_attention(bound, task):
    layers = task.layers
    squeeze, excite, fuse = layers["squeeze"], layers["excite"], layers["fuse"]
    weights = layers["spatial"].weight, squeeze.weight, squeeze.bias, excite.weight, excite.bias
    arguments = [bound.of(task.reads[name]) for name in ("r", "x")]
    statistics = [bound.of(task.reads[name]) for name in ("pooled", "sums")]
    statistics.append(bound.of(task.writes.get("sums")))
    out = bound.of(task.writes["out"])
    bound.emit(in_place.dau_attention_into, out, *arguments, *weights, fuse.weight, fuse.bias, *statistics)


def _module_call(bound, task):
    module, out = task.layers["module"], task.writes["out"].value
    bound.calls.append(partial(bound.call_module, module, bound.of(task.reads["x"]), out))


def _copy(bound, task):
    bound.emit(torch.Tensor.copy_, bound.of(task.writes["out"]), bound.of(task.reads["x"]))


def _add(bound, task):
    operands = [bound.of(task.reads[name]) for name in ("x", "residual")]
    bound.emit(_add_into, bound.of(task.writes["out"]), *operands)


def _add_into(out, x, residual):
    torch.add(x, residual, out=out)


def _total(bound, task):
    bound.emit(_sum_into, bound.of(task.writes["out"]), bound.of(task.reads["x"]))


def _sum_into(out, parts):
    torch.sum(parts, 0, out=out)


_BINDERS = {
    "conv1x1": _conv,
    "conv3x3": _conv,
    "convolution": _conv,
    "residual_down_tail": _residual_down_tail,
    "residual_up_tail": _residual_up_tail,
    "skff_select": _skff_select,
    "skff_pool": _skff_pool,
    "dau_attention": _dau_attention,
    "call": _module_call,
    "channels_last": _copy,
    "add": _add,
    "total": _total,
}
