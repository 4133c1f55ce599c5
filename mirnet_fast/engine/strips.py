"""The plan of a network over strips: what is kept where, how many rows a strip has, what that takes.

`Strips` decides, so that memory stays within a budget: of the maps that later segments read, those that are
moved most for the time that they are kept stay in memory, the others go to a file; and where writing them
would take longer than making them again, they are made again.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from . import cost, cpu, eligibility, memory
from .devices import Device
from .flow import Flow
from .graph import POOLED, SUMS, Builder, Step, Value
from .rows import maps_read
from .schedule import TILE, Task, whole
from .segments import PUT, SUMS_OF_CONV, TAKEN, Segments, maker

STRIP_BYTES = 2**24  # of a strip of a large map: it stays in the last-level cache
# Assumed, to weigh one against the other: what a core and memory do, and a disk with steady writing.
CORE = Device("a core", 1.5e11, 1.5e10, 0)
WRITTEN, COPIED = 4e8, 5e9  # bytes/s
# The input over which a step may put its result: a pixel is read before it is written.
OVERLAID = {"dau_attention": "x", "skff_select": "branches", "conv3x3": "residual"}
PACKED = 0.8  # of the memory for maps, what is filled: there are gaps
TRIED = 4  # of what should be fastest, for how much of it fits in memory
# Of Winograd's convolutions, up to FEW_CHANNELS and above: points of a tile, and its columns. Their packed
# weights are kept beside no more products than these (csrc/cpu/packed_weights.cpp).
POINTS = {"conv3x3": ((48, 6), (36, 4)), "residual_up_tail": ((81, 4), (81, 4))}
FEW_CHANNELS, KEPT_PRODUCTS = 128, 2**28
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
        self._flows: dict[Any, Flow] = {}
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
        if value.kind == POOLED:
            return torch.promote_types(self.dtype, torch.float32)
        return self._dtypes.get(value, self.dtype)

    # Decisions

    def _decide(self, budget, in_file):
        height = self._heights[-1]
        unit = height // math.gcd(*self._heights)  # rows that are whole ones of the smallest maps
        widest = max(map(self.row_bytes, self._stored(self._segments.cut_up())), default=1)
        most = max(STRIP_BYTES // widest, 1)
        choices = sorted({unit * 2**k for k in range(12) if unit * 2**k <= max(most, unit)}, reverse=True)
        cuts = self._segments.cut_up()
        always = set() if in_file else {*self._stored(cuts)}
        # Whole tiles of the smallest maps, if it can be, and most of the memory for maps that stay.
        fine = [rows for rows in choices if rows >= TILE * unit]
        wanted = [(rows, budget // 4 if in_file else budget) for rows in fine]
        wanted += [(rows, budget) for rows in [*fine[::-1], *choices[len(fine) :]]]
        chosen = self._arranged(cuts, choices[-1], always)
        if chosen.memory > budget:
            raise NotEnough(chosen.memory)
        for rows, limit in wanted:
            others = self._arranged(cuts, rows, always)
            if others.memory <= limit:
                chosen = others
                break
        if in_file:
            chosen = self._best(budget, chosen, choices)
        self.rows, self.flows, self.places = chosen.rows, chosen.flows, chosen.places
        self.offsets, self.memory, self.file = chosen.offsets, chosen.memory, chosen.file
        self.count = self.flows[0].count
        self.moved, self.seconds = self._moved(chosen), self._seconds_of(chosen)
        self.work = [sum(self._work[s] for s in flow.segment.steps) for flow in self.flows]

    def _best(self, budget, first, choices):
        """The arrangement that should take least time; `first` is that where all is kept in the file."""
        found = []
        for cuts in self._worthwhile(int(PACKED * (budget - first.memory)), first.rows):
            for rows in (rows for rows in choices if rows <= first.rows):
                arranged = self._arranged(cuts, rows, set())  # what is made again needs buffers
                if arranged.memory <= budget:
                    found.append(self._filled(cuts, arranged, budget))
                    break
            if len(found) == TRIED:
                break
        return min(found, key=self._seconds_of, default=first)

    def _seconds_of(self, arranged):
        written, read = self._moved(arranged)
        compute = sum(self._costs[step] for flow in arranged.flows for step in flow.segment.steps)
        return max(compute + (written + read) / COPIED, written / WRITTEN)

    def _moved(self, arranged):
        """Bytes that are written to the file, and bytes that are read."""
        written = sum(map(self.nbytes, arranged.offsets))
        loads = (value for flow in arranged.flows for value in flow.segment.loads)
        return written, sum(self.nbytes(value) for value in loads if value in arranged.offsets)

    def _worthwhile(self, room, rows):
        """Lists of Segments, the fastest first, with more and more of the maps made again.

        Next comes what saves the most writing for the work, or else what is the fastest at once, until the
        disk does not hold up the processor.
        """
        whole = self._segments.cut_up()
        start = self._seconds(whole, room, rows)
        found = [(max(start), whole)]
        for by_gain in (True, False):
            (works, writes), dropped, classes = start, set(), self._classes()
            while classes and writes > works:
                tries = {key: self._segments.cut_up(dropped | steps) for key, steps in classes.items()}
                times = {key: self._seconds(others, room, rows) for key, others in tries.items()}
                ranks = {
                    key: (less - writes) / max(more - works, 1e-9) if by_gain else max(more, less)
                    for key, (more, less) in times.items()
                }
                key = min(ranks, key=lambda each: ranks[each])
                works, writes = times[key]
                found.append((max(works, writes), tries[key]))
                dropped |= classes.pop(key)
        return [cuts for _, cuts in sorted(found, key=lambda each: each[0])]

    def _filled(self, cuts, arranged, budget):
        """The same with what else fits in memory."""
        spans, _ = self._spans(cuts, arranged.rows)
        stays = self._staying(spans, len(cuts), budget - arranged.memory)
        while stays:
            more = self._arranged(cuts, arranged.rows, {*stays})
            if more.memory <= budget:
                return more
            stays = stays[: int(0.9 * len(stays))]
        return arranged

    def _classes(self):
        """{kind, shape, half of them: Steps whose maps may be made again}: what needs no sums itself."""
        classes, counts = {}, Counter()
        for step in self._segments.crossing():
            if step.kind in ("conv3x3", "residual_up_tail", "residual_down_tail", "conv1x1"):
                key = step.kind, next(_with_rows(step)).shape, "pooled" in step.outputs
                classes.setdefault((*key, counts[key] % 2), set()).add(step)
                counts[key] += 1
        return classes

    def _seconds(self, cuts, room, rows):
        """(the processor's seconds, the disk's), of which the more count."""
        compute = sum(self._costs[step] for segment in cuts for step in segment.steps)
        spans, owners = self._spans(cuts, rows)
        stays = {*self._staying(spans, len(cuts), room)}
        file = {value for value, owner in owners.items() if owner not in stays}
        written = sum(map(self.nbytes, file))
        read = sum(self.nbytes(v) for segment in cuts for v in segment.loads if v in file)
        return compute + (written + read) / COPIED, written / WRITTEN

    def _stored(self, cuts):
        return [value for segment in cuts for value in segment.stores]

    def _flow(self, segment, rows):
        key = (*segment.steps, *segment.loads, *segment.stores, rows)
        if key not in self._flows:
            self._flows[key] = Flow(segment, self._heights[-1], rows)
        return self._flows[key]

    def _spans(self, cuts, rows):
        """({Value: (first segment, last one, times moved)}, {Value that is kept: that whose place it has}).

        A result takes the place of what it is made of, if nobody reads that any more.
        """
        last = {value: number for number, segment in enumerate(cuts) for value in segment.loads}
        spans, owners = {}, {}
        for number, segment in enumerate(cuts):
            for value in segment.loads:
                first, _, moved = spans[owners[value]]
                spans[owners[value]] = first, number, moved + 1
            free = {value for value in segment.loads if last[value] == number}
            for value in segment.stores:
                flow = self._flow(segment, rows)
                olds = (old for old in _overlaid(value) if old in free and flow.may_overlay(value, old))
                old = next(olds, None)
                if old is not None:
                    free.discard(old)
                    owners[value] = owners[old]
                    first, _, moved = spans[owners[value]]
                    spans[owners[value]] = first, number, moved + 2
                else:
                    owners[value], spans[value] = value, (number, number, 2)
        return spans, owners

    def _staying(self, spans, count, room):
        """The owners that stay in memory within so many bytes: the most moved for the time they are kept."""
        rank = {value: moved / (last - first + 1) for value, (first, last, moved) in spans.items()}
        used, chosen = [0] * count, []
        for value in sorted(spans, key=lambda v: -rank[v]):
            first, last, _ = spans[value]
            size = self.nbytes(value)
            if max(used[first : last + 1]) + size <= room:
                chosen.append(value)
                for number in range(first, last + 1):
                    used[number] += size
        return chosen

    def _arranged(self, cuts, rows, stays):
        """Where everything lies if the owners in `stays` are whole in memory."""
        spans, owners = self._spans(cuts, rows)
        flows = [self._flow(segment, rows) for segment in cuts]
        sizes, lives, keys = [], [], []
        for number, flow in enumerate(flows):
            moved = {*flow.segment.stores, *flow.segment.loads}
            for value, most in flow.most_rows().items():
                if owners.get(value) in stays:
                    continue
                for _ in range(2 if value in moved else 1):  # one is written or read meanwhile
                    sizes.append(_lines(most * self.row_bytes(value)))
                    lives.append((number, number))
                    keys.append((number, value))
        for value in (value for value in spans if value in stays):
            sizes.append(_lines(self.nbytes(value)))
            lives.append(spans[value][:2])
            keys.append((None, value))
        offsets, total = memory.packed(sizes, lives)
        buffers: list[dict[Value, list[int]]] = [{} for _ in cuts]
        wholes: dict[Value | None, int] = {}
        for (number, value), offset in zip(keys, offsets, strict=True):
            if number is None:
                wholes[value] = offset
            else:
                buffers[number].setdefault(value, []).append(offset)
        places = [
            {v: Place(tuple(own.get(v, ())), wholes.get(owners.get(v))) for v in flow.values}
            for own, flow in zip(buffers, flows, strict=True)
        ]
        outside = [value for value in spans if value not in stays]
        pages = [-(-self.nbytes(v) // memory.PAGE) * memory.PAGE for v in outside]
        at, file = memory.packed(pages, [spans[v][:2] for v in outside])
        begins = dict(zip(outside, at, strict=True))
        offsets_in_file = {v: begins[owner] for v, owner in owners.items() if owner in begins}
        total += rows * self._spare + max(map(self._packed_weights, flows))
        return Arranged(rows, flows, places, offsets_in_file, total, file)

    def _packed_weights(self, flow):
        """Bytes that the weights of a segment's convolutions take in the order of the kernels, at most.

        Those of few tiles are kept from strip to strip, the others are in one place after the other.
        """
        kept, most, strip = {}, 0, flow.strip(min(1, flow.count - 1))
        for step, (begin, end) in strip.made.items():
            if step.kind in POINTS and step.layers["by_kernels"]:
                weight, read = step.layers["conv"].weight, step.inputs["x"]
                points, columns = POINTS[step.kind][read.shape[1] > FEW_CHANNELS]
                outputs = weight.numel() // (9 * read.shape[1])
                count = points * read.shape[1] * (-(-outputs // 16) * 16)
                lines = (end - begin) * read.height / next(_with_rows(step)).height
                if lines * read.shape[3] / (TILE * columns) * count <= KEPT_PRODUCTS:
                    kept[weight] = 4 * count
                most = max(most, 4 * count)
        return sum(kept.values()) + most

    def _cost(self, step):
        if step.kind in (TAKEN, PUT, PIXELS, SUMS_OF_CONV, "dau_pool", "skff_pool"):
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


def _overlaid(value):
    """The inputs of its step whose places a Value may take."""
    step = maker(value)
    name = OVERLAID.get(step.kind, "")
    if step.outputs.get("out") is not value:
        return []
    return [read for argument, read in maps_read(step) if argument == name and read.shape == value.shape]


def _with_rows(step):
    return (value for value in step.outputs.values() if value.kind != SUMS)


def _lines(nbytes):
    return -(-nbytes // memory.LINE) * memory.LINE
