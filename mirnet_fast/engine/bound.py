"""Tasks as calls without arguments, for one block of memory: what is the same on every device.

What lies outside the block, as an image and its result do, is looked up when a call is made. A device's own
steps are added by `binder`; here are those that PyTorch runs.
"""

import itertools
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..ops.convolution import slope_of
from .graph import MAP, POOLED, SUMS, Value
from .schedule import Task, Window, whole

if TYPE_CHECKING:
    from .memory import Block
    from .plan import Plan

Binder = Callable[["Bound", Task], None]


class UnexpectedResult(Exception):
    """A module that is called results in something else than the plan has a place for."""


def is_kernel_call(task: Task) -> bool:
    """Whether a Task is a call of a kernel, and not of a module or of an operator of PyTorch."""
    return task.kind not in by_torch and task.layers.get("by_kernels", True)


class Bound:
    """A plan's tasks in one block.

    Args:
        binders: {kind of Task: function of a Bound and a Task that adds its calls}, the device's own.

    Attributes:
        values: {Value: tensor} of what lies outside the block while a run needs it.
        calls: functions without arguments, in order.
        dtype, device: of the maps.
    """

    values: dict[Value, torch.Tensor]
    calls: list[Callable[[], object]]
    dtype: torch.dtype
    device: torch.device

    def __init__(self, plan: "Plan", block: "Block", binders: Mapping[str, Binder]) -> None:
        self.values, self.calls, self._views = {}, [], {}
        self._ends = [0]  # the number of calls before the first task, and up to the end of each
        self.dtype, self.device = plan.dtype, block.device
        self._layout, self._block, self._kept = plan.layout, block, plan.result
        tasks, kept = plan.tasks, plan.result
        last = {window.value: i for i, task in enumerate(tasks) for window in task.windows()}
        made = set()
        for i, task in enumerate(tasks):
            out = task.writes["out"].value if "out" in task.writes else None
            if out is not None and out.outside and out not in made and task.kind != "call":
                self.calls.append(partial(self._allocate, out))
            made.add(out)
            (binders.get(task.kind) or by_torch[task.kind])(self, task)
            gone = {window.value for window in task.windows() if window.value.outside} - {kept}
            self.calls += [partial(self.values.pop, value) for value in gone if last[value] == i]
            self._ends.append(len(self.calls))

    def run(self) -> None:
        """Makes the calls; `values` must hold the inputs."""
        for call in self.calls:
            call()

    def timed(self) -> list[float]:
        """As `run`: [seconds] that the calls of each task take."""
        seconds = []
        for begin, end in itertools.pairwise(self._ends):
            start = time.perf_counter()
            for call in self.calls[begin:end]:
                call()
            seconds.append(time.perf_counter() - start)
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
            pooled = torch.promote_types(self.dtype, torch.float32)
            dtype = {SUMS: torch.float64, POOLED: pooled}.get(value.kind, self.dtype)
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
            or result.dtype != self.dtype
            or result.device != self.device
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
        self.values[value] = torch.empty(
            value.shape, dtype=self.dtype, device=self.device, memory_format=torch.channels_last
        )


def _part(tensor, window):
    value, begin, end = window.value, window.begin, window.end
    if value.kind == SUMS:
        return tensor[begin] if end - begin == 1 else tensor[begin:end]
    return tensor if (begin, end) == (0, value.height) else tensor[:, :, begin:end]


def tail_weights(
    task: Task,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
    """The last arguments of a residual resampler's tail."""
    slope, top, bottom = (task.layers[name] for name in ("activation", "top_conv", "bottom_conv"))
    return slope.weight, top.weight, top.bias, bottom.weight, bottom.bias


def skff_weights(task: Task) -> tuple[torch.Tensor | list[torch.Tensor] | None, ...]:
    """The arguments of skff_select behind the branches."""
    reduce, activation, fcs = (task.layers[name] for name in ("reduce", "activation", "fcs"))
    slope, weights = slope_of(activation, reduce.weight), [fc.weight for fc in fcs]
    return reduce.weight, reduce.bias, slope, weights, [] if fcs[0].bias is None else [fc.bias for fc in fcs]


def dau_arguments(bound: Bound, task: Task, spatial_weight: torch.Tensor) -> list[object]:
    """The arguments of dau_attention_into: maps, weights and statistics."""
    squeeze, excite, fuse = (task.layers[name] for name in ("squeeze", "excite", "fuse"))
    weights = spatial_weight, squeeze.weight, squeeze.bias, excite.weight, excite.bias, fuse.weight, fuse.bias
    maps = task.writes["out"], task.reads["r"], task.reads["x"]
    statistics = task.reads["pooled"], task.reads["sums"], task.writes.get("sums")
    return [*map(bound.of, maps), *weights, *map(bound.of, statistics)]


def put(out: torch.Tensor, result: torch.Tensor, residual: torch.Tensor | None) -> None:
    """Writes a result, with the residual added where there is one."""
    if residual is None:
        out.copy_(result)
    else:
        torch.add(result, residual, out=out)


def _module_call(bound, task):
    module, out = task.layers["module"], task.writes["out"].value
    bound.calls.append(partial(bound.call_module, module, bound.of(task.reads["x"]), out))


def _copy(bound, task):
    bound.emit(torch.Tensor.copy_, bound.of(task.writes["out"]), bound.of(task.reads["x"]))


def _add(bound, task):
    operands = [bound.of(task.reads[name]) for name in ("x", "residual")]
    bound.emit(put, bound.of(task.writes["out"]), *operands)


def _total(bound, task):
    bound.emit(_sum_into, bound.of(task.writes["out"]), bound.of(task.reads["x"]))


def _sum_into(out, parts):
    torch.sum(parts, 0, out=out)


def _dau_pool(bound, task):
    outputs = (bound.of(task.writes[name]) for name in ("pooled", "sums"))
    bound.emit(_pool_channels, bound.of(task.reads["x"]), *outputs)


def _pool_channels(x, pooled, sums):
    """Maximum and mean over the channels, and the sums over the pixels."""
    wide = x.to(pooled.dtype)
    pooled[:, :1] = wide.amax(1, keepdim=True)
    pooled[:, 1:] = wide.mean(1, keepdim=True)
    sums.copy_(x.sum((2, 3), dtype=torch.float64))


def _record_means(bound, task):
    begin, pixels = (task.layers[name] for name in ("begin", "pixels"))
    bound.emit(_put_means, bound.of(task.writes["means"]), bound.of(task.reads["sums"]), begin, pixels)


def _put_means(means, parts, begin, pixels):
    channels = parts[0].shape[1]
    means[:, begin : begin + channels, 0, 0] = sum(parts) / pixels


def _give_means(bound, task):
    begin, pixels = (task.layers[name] for name in ("begin", "pixels"))
    bound.emit(_put_sums, bound.of(task.writes["out"]), bound.of(task.reads["means"]), begin, pixels)


def _put_sums(out, means, begin, pixels):
    torch.mul(means[:, begin : begin + out.shape[1], 0, 0], pixels, out=out)


by_torch: dict[str, Binder] = {
    "call": _module_call,
    "channels_last": _copy,
    "add": _add,
    "total": _total,
    "dau_pool": _dau_pool,
    "record means": _record_means,
    "give means": _give_means,
}
