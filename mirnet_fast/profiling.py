"""Where a forward without gradients loses time: each step's, beside what the device could do at best."""

import copy
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from . import engine, measure
from .engine import cost
from .engine.devices import Device
from .engine.eligibility import Part
from .engine.graph import MAP

OURS, REFERENCE, COMPILED = "mirnet_fast", "reference", "torch.compile"
OUTSIDE, GATHERING = "outside of these", "weights in order, sums cleared"

_SUMMED = ("calls", "seconds", "flops", "nbytes", "floor", "predicted")  # of a Row
# Events of torch.compile around what it calls; and what is not shown of names: it numbers its kernels.
_WRAPPERS = ("Torch-Compiled Region", "## Call CompiledFxGraph")
_UNSHOWN = re.compile(r"^aten::|^graph_\d+_|_\d+$")


@dataclass(frozen=True)
class Row:
    """Steps of one kind in one forward; None is what is not known.

    Attributes:
        name: what they do; of a step of the network, channels in and out and the width of the result.
        calls: how many kernels or operators they are.
        seconds: measured.
        flops: of convolutions and matrix products, as published.
        nbytes: that have to be read and written.
        floor: seconds for these by the roof of the device.
        predicted: seconds by the cost model.
    """

    name: str
    calls: int
    seconds: float | None = None
    flops: int | None = None
    nbytes: int | None = None
    floor: float | None = None
    predicted: float | None = None

    @property
    def lost(self) -> float | None:
        """Seconds more than the floor."""
        return None if self.seconds is None or self.floor is None else self.seconds - self.floor


@dataclass(frozen=True)
class Profile:
    """One way to run a forward, step by step.

    Attributes:
        way: OURS, REFERENCE or COMPILED.
        steps: what the rows are of.
        rows: those that lose most time first; the last is what lies outside of all steps.
        total: of the whole forward, not timed step by step.
    """

    way: str
    steps: str
    rows: list[Row]
    total: Row


@dataclass(frozen=True)
class Prediction:
    """A forward of mirnet_fast on a GPU that need not be here, by the cost model.

    Attributes:
        rows: what takes longest first.
        total: its `calls` are the launches.
        peak_bytes: memory beyond weights, image and result.
    """

    rows: list[Row]
    total: Row
    peak_bytes: int


def predict(
    network: Part,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: Device,
    by_layer: bool = False,
) -> Prediction:
    """What a forward should take on a device; nothing runs, and the network may be on "meta".

    Args:
        network: a mirnet_fast.MIRNet.
        shape: (N, C, H, W) of the image, channels_last.
        by_layer: a row for each layer, not for all of one kind and size.

    Raises:
        ValueError: the shape is none for this network.
    """
    tasks, peak_bytes = cost.tasks_of_gpu(network, shape, dtype.itemsize)
    names = _names(network, tasks, by_layer)
    rows = _summed(
        _row(name, task.kind, cost.of(task, dtype.itemsize), device)
        for name, task in zip(names, tasks, strict=True)
    )
    rows.append(_row(GATHERING, "gather", cost.of_gathering(tasks, dtype.itemsize), device))
    rows.sort(key=lambda row: row.predicted or 0.0, reverse=True)
    return Prediction(rows, _sum("total", rows), peak_bytes)


def profiles(
    networks: Mapping[str, Any],
    image: torch.Tensor,
    device: Device,
    ways: Sequence[str] = (OURS,),
    rounds: int = 5,
    by_layer: bool = False,
) -> tuple[list[Profile], dict[str, str]]:
    """([Profile] of the ways that run, {way: why it does not}).

    Args:
        networks: {OURS: mirnet_fast.MIRNet, REFERENCE: the same in plain PyTorch}, in eval mode.
        image: (N, C, H, W), of the networks' dtype and on their device.
        device: as `engine.devices.measured` there.
        rounds: of which each number is the median.
        by_layer: as for `predict`; of ours alone, and where it is a plan.
    """
    with torch.inference_mode():
        calls, missing = _calls(networks, image, ways)
        totals = measure.interleave(calls, rounds, synchronize=_synchronize(image))
        found = []
        for way, call in calls.items():
            plan = engine.plan_of(networks[OURS], image) if way == OURS else ""
            if isinstance(plan, engine.Plan):
                steps = "kernels of a plan"
                rows = _rows_of_plan(networks[OURS], plan, image, device, rounds, by_layer)
                whole = _sum("", rows)
            else:
                steps = f"operators, as there is no plan: {plan}" if plan else "operators"
                counted = _counted(_forward(networks[REFERENCE], image) if way == COMPILED else call, device)
                whole = _sum("", counted.values())
                if way == COMPILED:  # its convolutions are the reference's; what else it does is its own
                    counted = {}
                    whole = Row("", 0, flops=whole.flops, floor=device.floor(whole.flops or 0, 0))
                rows = _rows_of_ops(call, counted, image, rounds)
            found.append(_profile(way, steps, rows, whole, statistics.median(totals[way])))
    return found, missing


def _calls(networks, image, ways):
    """({way: function without arguments}, each called once, {way: why it cannot be called})."""
    calls, missing = {}, {}
    for way in ways:
        call = _forward(networks[OURS if way == OURS else REFERENCE], image)
        try:
            if way == COMPILED:
                call = _compiled(networks[REFERENCE], image)
            call()
        except Exception as error:
            if way != COMPILED:
                raise
            # The compiler of another project: it raises what it likes.
            missing[way] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            calls[way] = call
    return calls, missing


def _forward(network, image):
    return lambda: network(image)


def _compiled(network, image):
    network = copy.deepcopy(network).to(memory_format=torch.channels_last)
    # The kernels that it writes in C++ are events of the profiler only then.
    network = torch.compile(network, dynamic=False, options={"cpp.enable_kernel_profile": True})
    return _forward(network, image.contiguous(memory_format=torch.channels_last))


def _synchronize(image):
    return torch.cuda.synchronize if image.is_cuda else None


def _profile(way, steps, rows, whole, seconds):
    """The Profile of rows; `whole`: what all of them cost, without their time."""
    rows = sorted(rows, key=lambda row: -(row.seconds if row.lost is None else row.lost))
    outside = seconds - sum(row.seconds for row in rows)
    rows.append(Row(OUTSIDE, 0, outside, floor=0.0))
    calls = sum(row.calls for row in rows)
    return Profile(way, steps, rows, replace(whole, name="total", calls=calls, seconds=seconds))


def _rows_of_plan(network, plan, image, device, rounds, by_layer):
    runs = [plan.timed([image]) for _ in range(rounds)]
    names, winograd = _names(network, plan.tasks, by_layer), image.device.type == "cpu"
    rows = []
    for name, task, seconds in zip(names, plan.tasks, zip(*runs, strict=True), strict=True):
        row = _row(name, task.kind, cost.of(task, image.dtype.itemsize, winograd), device)
        rows.append(replace(row, seconds=statistics.median(seconds)))
    return _summed(rows)


def _rows_of_ops(call, counted, image, rounds):
    """The rows of the operators that a call comes to, by torch.profiler.

    counted: {name: Row without its time} of those whose cost is known.
    """
    runs = [_seconds_of_ops(call, image) for _ in range(rounds)]
    rows = []
    for name, (_, calls) in runs[0].items():
        seconds = statistics.median(run[name][0] for run in runs if name in run)
        rows.append(replace(counted.get(name) or Row(name, 0), calls=calls, seconds=seconds))
    return rows


def _seconds_of_ops(call, image):
    """{name: (seconds, calls)} of the operators that a call comes to, of one run.

    An operator has the time of all that it calls; on a GPU, that of its kernels.
    """
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * image.is_cuda
    with torch.profiler.profile(activities=activities) as profiler:
        call()
        if image.is_cuda:
            torch.cuda.synchronize()
    found = {}
    for event in profiler.events() or ():
        if event.device_type != DeviceType.CPU or not _is_outermost(event):
            continue
        microseconds = event.device_time_total if image.is_cuda else event.cpu_time_total
        name = _UNSHOWN.sub("", event.name)
        seconds, calls = found.get(name, (0.0, 0))
        found[name] = seconds + microseconds / 1e6, calls + 1
    return found


def _is_outermost(event):
    """Whether an event is that of an operator, or kernel of torch.compile, that no other one called."""
    if event.name.startswith(_WRAPPERS):
        return False
    while event.cpu_parent is not None:
        event = event.cpu_parent
        if not event.name.startswith(_WRAPPERS):
            return False
    return True


class _Counter(TorchDispatchMode):
    """Adds up what each operator costs that a forward comes to.

    Attributes:
        rows: [Row without its time], one a call.
    """

    def __init__(self, device):
        super().__init__()
        self.rows, self._device = [], device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with FlopCounterMode(display=False) as counter:
            result = func(*args, **(kwargs or {}))
        name, flops, nbytes = func._schema.name, counter.get_total_flops(), 0
        out = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        if func.namespace.startswith("mirnet_fast_"):
            flops = _flops_of_ours(func, args, out[0])
        if not func.is_view:
            read = {id(v): v for v in tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)}
            nbytes = sum(value.nbytes for value in (*read.values(), *out))
        n, channels, height, width = (*out[0].shape, 1, 1, 1, 1)[:4] if out else (1, 1, 1, 1)
        one = cost.Cost(flops, flops, nbytes, n * height * width, channels)
        self.rows.append(_row(_UNSHOWN.sub("", name), func._opname, one, self._device))
        return result


def _flops_of_ours(func, args, out):
    """Of one of our ops, by its arguments."""
    weights = []
    for argument, value in zip(func._schema.arguments, args, strict=False):
        name = argument.name.replace("weights", "weight")
        weights += [(name, tuple(v.shape)) for v in tree_leaves(value) if name.endswith("weight")]
    n, _, height, width = out.shape
    return sum(cost.products(func._opname, n, n * height * width, weights).values())


def _counted(call, device):
    """{name: Row without its time} of the operators that a call comes to."""
    with _Counter(device) as counter:
        call()
    return {row.name: row for row in _summed(counter.rows)}


def _names(network, tasks, by_layer):
    layers = {module: name for name, module in network.named_modules()}
    return [_name_of_layer(task, layers) if by_layer else _name_of_size(task) for task in tasks]


def _name_of_layer(task, layers):
    """The kind of a Task and the layer that is most of it."""
    for argument in ("conv", "fuse", "reduce", "top_conv", "module"):
        if argument in task.layers:
            return f"{task.kind} {layers[task.layers[argument]]}"
    return task.kind


def _name_of_size(task):
    """The kind of a Task, channels in and out, and the result's width, which is the same in all bands."""
    out = task.writes["out"].value
    if out.kind != MAP:
        return task.kind
    first = next(task.reads[name] for name in ("branches", "x", "r", "top") if name in task.reads)
    inputs = first if isinstance(first, tuple) else (first,)
    times = f"{len(inputs)} x " if len(inputs) > 1 else ""
    return f"{task.kind} {times}{inputs[0].value.shape[1]} -> {out.shape[1]}, {out.shape[3]} wide"


def _row(name, kind, one, device):
    """A Row without its time, for one call."""
    floor, predicted = one.floor(device), cost.predicted(kind, one, device)
    return Row(name, 1, None, one.flops, one.nbytes, floor, predicted)


def _summed(rows):
    """Rows of the same name as one."""
    groups = {}
    for row in rows:
        groups.setdefault(row.name, []).append(row)
    return [_sum(name, group) for name, group in groups.items()]


def _sum(name, rows):
    sums = {}
    for field in _SUMMED:
        values = [getattr(row, field) for row in rows]
        sums[field] = None if None in values else sum(values)
    return Row(name, **sums)
