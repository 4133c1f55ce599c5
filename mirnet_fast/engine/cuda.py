"""Tasks as launches of the Triton kernels on a GPU, recorded as one CUDA graph.

The first run of a plan in a block launches kernel after kernel, which compiles what was not yet; the second
is recorded; from then on a run is one launch of the graph, without Python between the kernels. Weights are
read where they lie. Those that the kernels read in another order are brought to it at the beginning of each
run, by one launch that also clears the sums, so that values changed in place are seen; a plan does not
outlive tensors that moved.
"""

import importlib
import itertools
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from .. import backends
from ..ops.convolution import slope_of
from . import memory
from .bound import Binder, Bound, dau_arguments, put, skff_weights, tail_weights
from .graph import SUMS, Step, Value
from .schedule import Window

if TYPE_CHECKING:
    from .plan import Plan

IN_BANDS = False  # a GPU has no cache that a band would stay in
PINNED = True  # a graph reads weights where they lay
JOINS = True


def unplannable(x: torch.Tensor) -> str | None:
    """None, or why no plan is made for a plain tensor x on a GPU now."""
    backend = backends.pick("dau_attention", "cuda", x.dtype)
    if backend != "triton":
        reason = dict(backends.explain("dau_attention", "cuda", x.dtype))["triton"]
        return f"the backend is {backend!r}, and plans are of 'triton': {reason}"
    if torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is being recorded"
    return None


def settings() -> tuple[object, ...]:
    """What besides the input and the module decides which launches a plan is made of."""
    return backends.current_backend(), _kernel("_common").product_precision()


class Block(memory.Block):
    """Memory of a GPU for plans.

    It is used on one stream after the other: a run waits for the one before it.

    Attributes:
        device, touched, bound: as those of memory.Block.

    Raises:
        MemoryError: the GPU has not so much.
    """

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.device, self.touched, self.bound = device, nbytes, weakref.WeakKeyDictionary()
        try:
            with torch.inference_mode(False):
                self._whole = torch.empty(nbytes, dtype=torch.uint8, device=device)
        except torch.OutOfMemoryError as error:
            raise MemoryError(f"mirnet_fast: no {nbytes} bytes on {device}: {error}") from error
        self._free = None  # the event that tells that the run before is over

    def __len__(self) -> int:
        return self.touched

    def begin(self) -> None:
        """Lets the current stream wait for the run before, which may be on another."""
        if self._free is not None:
            torch.cuda.current_stream(self.device).wait_event(self._free)

    def end(self, plan: "Plan") -> None:
        """Marks the end of a run on the current stream."""
        self._free = torch.cuda.current_stream(self.device).record_event()

    def trim(self, nbytes: int) -> bool:
        """Whether it may stay: no part of it can be given back."""
        return self.touched <= nbytes


def make_block(plan: "Plan") -> Block:
    """A new block of memory for a plan.

    Raises:
        MemoryError: the GPU has not so much.
    """
    return Block(plan.peak_bytes, plan.device)


def bind(plan: "Plan", block: Block) -> "Graph":
    """A plan's tasks as launches, and as a graph of them."""
    return Graph(plan, block)


def is_for_kernels(step: Step, dtype: torch.dtype) -> bool:
    """Whether the Triton kernels run a convolution Step; which is faster, they or cuDNN, is measured."""
    activation, layer, x = step.layers.get("activation"), step.layers["conv"], step.inputs["x"]
    n, inputs, height, width = x.shape
    return (
        type(activation) in (type(None), nn.PReLU, nn.LeakyReLU)
        and step.kind != "convolution"
        and layer.weight.dtype == dtype
        and backends.convolution(step.kind, dtype, inputs, layer.out_channels, n * height * width) == "triton"
    )


class Graph(Bound):
    """A plan's launches in one block, recorded at the second run."""

    def __init__(self, plan: "Plan", block: Block) -> None:
        # Weights, and where they lie as the kernels read them.
        self._sources: list[torch.Tensor] = []
        self._packed: list[torch.Tensor] = []
        self._once: dict[object, Any] = {}
        self._sums = torch.zeros(_numbers_of_sums(plan.tasks), dtype=torch.float64, device=block.device)
        self._used = 0
        super().__init__(plan, block, _BINDERS)
        before: list[Callable[[], object]] = []
        if self._sources or self._sums.numel():  # which the kernels add to
            # Of sums and weights the first alone may be of another dtype.
            cleared = [self._sums.view(self.dtype)] if self._sums.numel() else []
            targets, sources = [*cleared, *self._packed], [*([None] * len(cleared)), *self._sources]
            before.append(_kernel("_gather").Gathering(targets, sources).run)
        self.calls[:0] = before
        self._ends = [end + len(before) for end in self._ends]
        self._given: dict[Value, torch.Tensor] = {}  # what the recorded launches read in place of the inputs
        self._result: torch.Tensor | None = None
        self._replay: Callable[[], None] | None = None
        # A graph would write means where it did when it was recorded, and not where the caller wants them.
        self._can_be_recorded = not any(task.kind in ("call", "record means") for task in plan.tasks)
        self._ran = False

    def run(self) -> None:
        """As Bound's."""
        with _kernel("_common").on_device(self._sums):
            if not (self._ran and self._can_be_recorded):
                super().run()
                self._ran = True
                return
            inputs = dict(self.values)
            replay = self._replay
            if replay is None:
                self._given = {value: torch.empty_like(x) for value, x in inputs.items()}
                self.values |= self._given
                replay = self._replay = recorded(super().run)
                self._result = self.values.get(self._kept)
            for value, x in inputs.items():
                self._given[value].copy_(x)
            replay()
            if self._result is not None:
                # The next replay writes there again.
                self.values[self._kept] = self._result.clone()

    def timed(self) -> list[float]:
        """As Bound's, by the GPU's clock: not as a graph, and without the time in which Python launches."""
        inputs = dict(self.values)
        with _kernel("_common").on_device(self._sums):
            for _ in range(2):  # the first may compile
                torch.cuda.synchronize()
                start = time.perf_counter()
                super().run()
                launching = time.perf_counter() - start
                self.values.clear()
                self.values |= inputs
            torch.cuda._sleep(int(2e9 * (1e-4 + 2 * launching)))  # of at most 2 GHz: until all is launched
            events = []
            for begin, end in itertools.pairwise((0, *self._ends)):
                for call in self.calls[begin:end]:
                    call()
                events.append(torch.cuda.Event(enable_timing=True))
                events[-1].record()
            torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(events)]

    def of(self, window: Window | tuple[Window, ...] | None) -> Any:
        """As Bound's; sums lie together, so that one launch clears them."""
        if isinstance(window, Window) and window.value.kind == SUMS and window.value not in self._views:
            shape = window.value.shape
            count = shape[0] * shape[1] * shape[2]
            self._views[window.value] = self._sums[self._used : self._used + count].view(shape)
            self._used += count
        return super().of(window)

    def once(self, make: Callable[..., Any], *layers: object) -> Any:
        """make(self, *layers), the same for all bands of a map, and for all that share layers."""
        key = make, *layers
        if key not in self._once:
            self._once[key] = make(self, *layers)
        return self._once[key]

    def packed(self, *weights: torch.Tensor) -> torch.Tensor:
        """Convolutions' weights (C', C, k, k) as one, as a kernel reads it: (all C', k * k, C)."""
        rows = [weight.permute(0, 2, 3, 1) for weight in weights]
        return self.gathered(rows).flatten(1, 2)

    def channels_last(self, weight: torch.Tensor) -> torch.Tensor:
        """A convolution's weight as cuDNN reads it beside channels_last maps."""
        return self.gathered([weight.permute(0, 2, 3, 1)]).permute(0, 3, 1, 2)

    def gathered(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The concatenation of tensors over their first axis, contiguous and up to date in every run."""
        if len(parts) == 1 and parts[0].is_contiguous():
            return parts[0]
        counts = [len(part) for part in parts]
        result = torch.empty((sum(counts), *parts[0].shape[1:]), dtype=parts[0].dtype, device=parts[0].device)
        self._packed += result.split(counts)
        self._sources += parts
        return result


def recorded(run: Callable[[], None]) -> Callable[[], None]:
    """A function that launches all that `run` launches, at once."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # others may go on meanwhile
        run()
    return graph.replay


def _numbers_of_sums(tasks):
    values = {window.value for task in tasks for window in task.windows() if window.value.kind == SUMS}
    return sum(value.shape[0] * value.shape[1] * value.shape[2] for value in values)


def _kernel(name):
    """A module of the Triton kernels: importing this one needs no Triton."""
    return importlib.import_module(f"mirnet_fast.kernels.{name}")


def _conv(bound, task):
    layer, activation = task.layers["conv"], task.layers["activation"]
    x, residual, out = task.reads["x"], bound.of(task.reads["residual"]), bound.of(task.writes["out"])
    if task.kind == "conv1x1":
        x = x.rows(task.row, task.writes["out"].end - task.writes["out"].begin)
    x = bound.of(x)
    if not task.layers["by_kernels"]:
        bound.emit(_conv_of_cudnn, layer, bound.channels_last(layer.weight), activation, out, x, residual)
        return
    weights = bound.once(_weights_of_conv, layer, activation, task.layers.get("also"))
    statistics = [bound.of(task.writes.get(name)) for name in ("pooled", "sums")]
    bound.emit(getattr(_kernel(task.kind), task.kind), out, x, *weights, residual, *statistics)


def _conv_of_cudnn(layer, weight, activation, out, x, residual):
    result = F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    if activation is not None:
        result = activation(result)
    put(out, result, residual)


def _weights_of_conv(bound, layer, activation, other):
    """(weight, bias, slope) of a convolution; of two of one map as one, no activation behind the other."""
    slope = slope_of(activation, layer.weight)
    if other is None:
        return bound.packed(layer.weight), layer.bias, slope
    weight, biases = bound.packed(layer.weight, other.weight), [layer.bias, other.bias]
    counts = [len(layer.weight), len(other.weight)]
    bias = None
    if any(bias is not None for bias in biases):
        none = layer.weight.new_zeros
        bias = bound.gathered([none(n) if b is None else b for b, n in zip(biases, counts, strict=True)])
    if slope is not None:
        slope = bound.gathered([slope.expand(counts[0]), slope.new_ones(counts[1])])
    return weight, bias, slope


def _residual_up_tail(bound, task):
    out, x, bottom = (bound.of(w) for w in (task.writes["out"], task.reads["x"], task.reads["bottom"]))
    layer, slope, top = (task.layers[name] for name in ("conv", "activation", "top_conv"))
    if not task.layers["by_kernels"]:
        weight, tail = bound.channels_last(layer.weight), tail_weights(task)
        bound.emit(_residual_up_tail_of_cudnn, layer, weight, out, x, bottom, tail)
        return
    inputs = len(layer.weight)
    if bottom is None:
        x, small = x[:, :inputs], x[:, inputs:]
    else:
        n, _, height, width = task.reads["bottom"].value.shape
        other = task.layers["bottom_conv"]
        small = torch.empty(
            (n, len(other.weight), height, width),
            dtype=bound.dtype,
            device=bound.device,
            memory_format=torch.channels_last,
        )
        bound.emit(_kernel("conv1x1").conv1x1, small, bottom, bound.packed(other.weight), other.bias)
    into, sums = _kernel("conv_transpose3x3").residual_up_tail_of_conv, bound.of(task.writes["sums"])
    tail = slope.weight, top.weight, top.bias, task.row // 2, sums
    bound.emit(into, out, x, bound.once(_weight_of_transposed, layer), layer.bias, small, *tail)


def _weight_of_transposed(bound, layer):
    return bound.packed(layer.weight.transpose(0, 1))


def _residual_up_tail_of_cudnn(layer, weight, out, x, bottom, tail):
    places = layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
    large = F.conv_transpose2d(x, weight, layer.bias, *places)
    out.copy_(_kernel("residual_up_tail").residual_up_tail(large, bottom, *tail))


def _residual_down_tail(bound, task):
    operands = [bound.of(task.reads[name]) for name in ("top", "bottom")]
    out, sums, kernels = task.writes["out"], task.writes.get("sums"), _kernel("residual_down_tail")
    tables = kernels.blur_tables(task.reads["top"].value.shape[2:], bound.device)
    arguments = *operands, *tail_weights(task), bound.of(sums), tables
    bound.emit(kernels.residual_down_tail_into, bound.of(out), *arguments)


def _skff_select(bound, task):
    into, out = _kernel("skff_select").skff_select_into, bound.of(task.writes["out"])
    branches, sums = bound.of(task.reads["branches"]), bound.of(task.reads["sums"])
    bound.emit(into, out, branches, *skff_weights(task), sums, task.layers["pixels"])


def _skff_pool(bound, task):
    bound.emit(_pool_into, bound.of(task.writes["out"]), bound.of(task.reads["branches"]))


def _pool_into(out, branches):
    torch.sum(_kernel("skff_select").pool(branches), (1, 2), dtype=out.dtype, out=out)


def _dau_attention(bound, task):
    arguments = dau_arguments(bound, task, bound.gathered([task.layers["spatial"].weight]))
    bound.emit(_kernel("dau_attention").dau_attention_into, *arguments)


_BINDERS: dict[str, Binder] = {
    "conv1x1": _conv,
    "conv3x3": _conv,
    "convolution": _conv,
    "residual_down_tail": _residual_down_tail,
    "residual_up_tail": _residual_up_tail,
    "skff_select": _skff_select,
    "skff_pool": _skff_pool,
    "dau_attention": _dau_attention,
}
