"""The plan of a network over strips: what is kept where, how many rows a strip has, what that takes.

`Strips` decides, so that memory stays within a budget: of the maps that later segments read, those that are
moved most for the time that they are kept stay in memory, the others go to a file; and where writing them
would take longer than making them again, they are made again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from . import cost, cpu, eligibility, memory
from .devices import Device
from .flow import Flow
from .graph import POOLED, SUMS, Builder, Step, Value
from .schedule import Task, whole
from .segments import PUT, TAKEN, Segments

STRIP_BYTES = 2**24  # of a strip of a large map: it stays in the last-level cache
# Assumed, to weigh one against the other: what a core and memory do, and a disk with steady writing.
CORE = Device("a core", 1.5e11, 1.5e10, 0)
WRITTEN, COPIED = 4e8, 5e9  # bytes/s
PIXELS = "pixels"  # the step that makes the network's input of an image


@dataclass(frozen=True)
class Place:
    """Where a value lies: bytes from which on it does, in memory and in the file.

    Attributes:
        buffers: in memory, of some rows each; two if it is written or read meanwhile; () if `whole` is not.
        whole: in memory, of all rows; None if it is not there as a whole.
    """

    buffers: tuple[int, ...]
    whole: int | None


class Strips:
    """A network on one image over strips, in at most `budget` bytes of memory.

    Args:
        network: one of `mirnet_fast.modules`, which lowers itself.
        shape, dtype: (1, C, H, W) of the network's input.
        image: (shape, dtype) of the image that it is made of by `enter`, a function of rows (1, C', h, W);
            None, None where the image is the input.
        with_image: whether the image's rows are needed where the result is put out.
        in_file: whether there may be a file.
        spare: bytes of the budget that others take for each row of a strip.

    Attributes:
        result: the Value that is put out.
        rows: of the largest maps that a strip has.
        count: of strips.
        flows: a Flow for each Segment.
        places: for each Segment {Value: Place}.
        offsets: {Value: byte of the file}.
        memory: bytes, those of the block and what is spared for others.
        file: bytes.
        moved: bytes that are written to the file, and bytes that are read.
        work: FLOPs of each Segment.
        seconds: that CORE would take on all threads.

    Raises:
        ValueError: the network is not one that strips can be made of; says why.
        MemoryError: the budget is too small; `least` is what would do.
    """

    def __init__(
        self,
        network: eligibility.Part,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        budget: int,
        image: tuple[tuple[int, ...], torch.dtype] | None = None,
        enter: Callable[[torch.Tensor], torch.Tensor] | None = None,
        with_image: bool = False,
        in_file: bool = True,
        spare: int = 0,
    ) -> None:
        self.dtype, self._spare = dtype, spare
        builder = Builder(eligibility.lowers)
        _, x = builder.input(shape, channels_last=True)
        result = network.lower(builder, x)
        if result.producer is None:
            raise ValueError("it has nothing to compute")
        x.outside = False
        self.image, steps = x, builder.steps
        if image is not None:
            self.image = Value(image[0])
            x.producer = Step(PIXELS, {"x": self.image}, {"function": enter}, {"out": x})
            steps = [x.producer, *steps]
        self._dtypes = {self.image: dtype if image is None else image[1]}
        kernels = lambda step: cpu.is_for_kernels(step, dtype)  # noqa: E731
        self.result = result
        self._segments = Segments(self.image, steps, result, kernels, with_image)
        self._heights = sorted({v.height for s in self._segments.steps for v in _with_rows(s)})
        self._costs: dict[Step, float] = {}
        self._work: dict[Step, int] = {}
        for step in self._segments.steps:
            self._costs[step], self._work[step] = self._cost(step)
        self._decide(budget, in_file)

    # What values are

    def row_bytes(self, value: Value) -> int:
        """Bytes of a row of a Value."""
        _, channels, _, width = value.shape
        return channels * width * self.dtype_of(value).itemsize

    def nbytes(self, value: Value) -> int:
        """Bytes of a Value."""
        return value.height * self.row_bytes(value)

    def dtype_of(self, value: Value) -> torch.dtype:
        """The dtype of a Value."""
        if value.kind == SUMS or self.dtype == torch.float64:
            return torch.float64
        return torch.float32 if value.kind == POOLED else self._dtypes.get(value, self.dtype)

    # Decisions

    def _decide(self, budget, in_file):
        height = self._heights[-1]
        unit = height // math.gcd(*self._heights)  # rows that are whole ones of the smallest maps
        widest = max(map(self.row_bytes, self._stored(self._segments.cut_up())), default=1)
        most = max(STRIP_BYTES // widest, 1)
        choices = sorted({unit * 2**k for k in range(12) if unit * 2**k <= max(most, unit)}, reverse=True)
        cuts = self._segments.cut_up()
        always = set() if in_file else {*self._stored(cuts)}
        for rows in choices:
            chosen = self._arranged(cuts, rows, always)
            # Half of it for maps that stay, if there is a choice.
            if chosen.memory <= (budget // 2 if in_file and rows != choices[-1] else budget):
                break
        if chosen.memory > budget:
            raise NotEnough(chosen.memory)
        if in_file:
            chosen = self._best(budget, chosen, choices)
        self.rows, self.flows, self.places = chosen.rows, chosen.flows, chosen.places
        self.offsets, self.memory, self.file = chosen.offsets, chosen.memory, chosen.file
        self.count = self.flows[0].count
        written = sum(self.nbytes(v) for v in self.offsets)
        read = sum(self.nbytes(v) for f in self.flows for v in f.segment.loads if v in self.offsets)
        self.moved = written, read
        self.work = [sum(self._work[s] for s in flow.segment.steps) for flow in self.flows]
        compute = sum(self._costs[s] for flow in self.flows for s in flow.segment.steps)
        self.seconds = max(compute + (written + read) / COPIED, written / WRITTEN)

    def _best(self, budget, first, choices):
        """The arrangement that should take least time; `first` is that where all is kept in the file."""
        dropped, cuts, room = set(), self._segments.cut_up(), budget - first.memory
        best, classes = self._seconds(cuts, room), self._classes()
        while classes:
            tries = {key: self._segments.cut_up(dropped | steps) for key, steps in classes.items()}
            times = {key: self._seconds(others, room) for key, others in tries.items()}
            key = min(times, key=lambda each: times[each])
            if times[key] >= best:
                break
            best, cuts = times[key], tries[key]
            dropped |= classes.pop(key)
        arranged = first
        for rows in (rows for rows in choices if rows <= first.rows):
            arranged = self._arranged(cuts, rows, set())  # what is made again needs buffers
            if arranged.memory <= budget:
                break
        if arranged.memory > budget:
            cuts, arranged = self._segments.cut_up(), first
        stays = self._staying(cuts, budget - arranged.memory)
        while stays:
            more = self._arranged(cuts, arranged.rows, {*stays})
            if more.memory <= budget:
                return more
            stays = stays[: int(0.9 * len(stays))]
        return arranged

    def _classes(self):
        """{kind and shape: Steps whose maps may be made again}: what needs no sums itself."""
        classes = {}
        for step in self._segments.crossing():
            if step.kind in ("conv3x3", "residual_up_tail", "residual_down_tail", "conv1x1"):
                shape = next(_with_rows(step)).shape
                classes.setdefault((step.kind, shape, "pooled" in step.outputs), set()).add(step)
        return classes

    def _seconds(self, cuts, room):
        compute = sum(self._costs[step] for segment in cuts for step in segment.steps)
        stays = {*self._staying(cuts, room)}
        written = sum(self.nbytes(v) for v in self._stored(cuts) if v not in stays)
        read = sum(self.nbytes(v) for segment in cuts for v in segment.loads if v not in stays)
        return max(compute + (written + read) / COPIED, written / WRITTEN)

    def _stored(self, cuts):
        return [value for segment in cuts for value in segment.stores]

    def _spans(self, cuts):
        """{Value that is kept: (segment that makes it, last one that reads it, how many do)}."""
        spans = {}
        for number, segment in enumerate(cuts):
            spans |= {value: (number, number, 0) for value in segment.stores}
            for value in segment.loads:
                first, _, count = spans[value]
                spans[value] = first, number, count + 1
        return spans

    def _staying(self, cuts, room):
        """The Values that stay in memory within so many bytes: the most moved for the time they are kept."""
        spans = self._spans(cuts)
        rank = {v: (2 + loads) / (last - first + 1) for v, (first, last, loads) in spans.items()}
        used, chosen = [0] * len(cuts), []
        for value in sorted(spans, key=lambda v: -rank[v]):
            first, last, _ = spans[value]
            size = self.nbytes(value)
            if max(used[first : last + 1]) + size <= room:
                chosen.append(value)
                for number in range(first, last + 1):
                    used[number] += size
        return chosen

    def _arranged(self, cuts, rows, stays):
        """Where everything lies if the Values in `stays` are whole in memory."""
        spans = self._spans(cuts)
        flows = [Flow(segment, self._heights[-1], rows) for segment in cuts]
        sizes, lives, keys = [], [], []
        for number, flow in enumerate(flows):
            stores = {*flow.segment.stores}
            for value, most in flow.most_rows().items():
                if value in stays:
                    continue
                for i in range(
                    2 if value in spans and (value in stores or value in flow.segment.loads) else 1
                ):
                    sizes.append(_lines(most * self.row_bytes(value)))
                    lives.append((number, number))
                    keys.append((number, value, i))
        for value in stays:
            sizes.append(_lines(self.nbytes(value)))
            lives.append(spans[value][:2])
            keys.append((None, value, 0))
        offsets, total = memory.packed(sizes, lives)
        buffers: list[dict[Value, list[int]]] = [{} for _ in cuts]
        wholes = {}
        for (number, value, _), offset in zip(keys, offsets, strict=True):
            if number is None:
                wholes[value] = offset
            else:
                buffers[number].setdefault(value, []).append(offset)
        places = [
            {v: Place(tuple(own.get(v, ())), wholes.get(v)) for v in flow.values}
            for own, flow in zip(buffers, flows, strict=True)
        ]
        outside = [value for value in spans if value not in stays]
        at, file = memory.packed(
            [-(-self.nbytes(v) // memory.PAGE) * memory.PAGE for v in outside],
            [spans[v][:2] for v in outside],
        )
        total += rows * self._spare
        return Arranged(rows, flows, places, dict(zip(outside, at, strict=True)), total, file)

    def _cost(self, step):
        if step.kind in (TAKEN, PUT, PIXELS, "dau_pool", "skff_pool"):
            return 0.0, 0
        reads: dict[str, Any] = {
            name: tuple(map(whole, v)) if isinstance(v, tuple) else None if v is None else whole(v)
            for name, v in step.inputs.items()
        }
        writes = {name: whole(value) for name, value in step.outputs.items()}
        task = Task(step.kind, step.layers, reads, writes)
        return seconds_of(task, self.dtype.itemsize), cost.of(task, self.dtype.itemsize).flops


def seconds_of(task: Task, itemsize: int) -> float:
    """Seconds that a Task would take on as many COREs as there are threads."""
    if "out" not in task.writes:
        return 0.0
    found = cost.of(task, itemsize, winograd=True)
    return max(found.done / (CORE.rate * torch.get_num_threads()), found.nbytes / CORE.bandwidth)


@dataclass(frozen=True)
class Arranged:
    """Where everything lies, with what that takes."""

    rows: int
    flows: list[Flow]
    places: list[dict[Value, Place]]
    offsets: dict[Value, int]
    memory: int
    file: int


class NotEnough(MemoryError):
    """A budget is too small.

    Attributes:
        least: bytes that would do.
    """

    def __init__(self, least: int) -> None:
        super().__init__(f"at least {least} bytes are needed")
        self.least = least


def _with_rows(step):
    return (value for value in step.outputs.values() if value.kind != SUMS)


def _lines(nbytes):
    return -(-nbytes // memory.LINE) * memory.LINE
