"""A run over strips: the calls of a strip are bound once for all strips that are alike."""

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import torch

from ..ops.packed_weights import release_packed_weights
from . import cpu, in_place, memory
from .bound import Binder, Bound, by_torch
from .flow import Strip
from .graph import POOLED, SUMS, Step, Value
from .rows import maps_read, needed
from .schedule import Task, Window, whole
from .segments import PUT, SUMS_OF_CONV, TAKEN
from .store import Store
from .strips import PIXELS, Strips

# {(kind, argument): the row of a Task}, of the first row that is made and the first of that argument that is
# there: of the result that all of it would become.
ROW_OF: dict[tuple[str, str], Callable[[int, int], int]] = {
    **{(kind, "x"): lambda begin, above: begin - above for kind in ("conv1x1", "conv3x3", "convolution")},
    ("dau_attention", "pooled"): lambda begin, above: begin - above,
    ("residual_down_tail", "top"): lambda begin, above: 2 * begin - above,
    ("residual_up_tail", "bottom"): lambda begin, above: begin - 2 * above,
}

Rows = Callable[[int, int], torch.Tensor]
Put = Callable[[int, torch.Tensor, torch.Tensor | None], object]


def run(
    strips: Strips,
    folder: str,
    rows: Rows,
    put: Put,
    progress: Callable[[float, float], object] | None = None,
) -> None:
    """Runs a network over strips.

    Args:
        folder: where the temporary file is, if there is one.
        rows: rows(begin, end) is (1, C, end - begin, W), rows of the image in its dtype, asked for once each,
            from top to bottom.
        put: put(begin, result, image) gets the rows of the result from `begin` on, and those of the image
            or None, from top to bottom, for the time of the call.
        progress: progress(done, total) is called after each strip, with FLOPs.

    Raises:
        MemoryError: there is no memory.
        OSError: there is no space for the file, or it cannot be written or read.
    """
    block = memory.Block(strips.memory)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(Store(folder, strips.file)) if strips.file else None
        # Tensors of inference mode could not be written to outside of it.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        totals: dict[Value, torch.Tensor] = {}
        total, done = float(sum(strips.work)), 0.0
        for number, flow in enumerate(strips.flows):
            part = _Part(strips, number, block, store, totals)
            with contextlib.closing(part):
                for each in range(flow.count):
                    part.run(each, rows, put)
                    done += strips.work[number] / flow.count
                    if progress is not None:
                        progress(done, total)
                part.finish()


class _Calls(Bound):
    """The calls of a segment's strips; where anything lies is looked up when one is made."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.values, self.calls, self._views = {}, [], {}
        self.dtype, self.device = dtype, torch.device("cpu")

    def of(self, window: Window | tuple[Window, ...] | None) -> Any:
        return [*window] if isinstance(window, tuple) else window

    def of_task(self, task: Task) -> list[Callable[[], object]]:
        """The calls of a Task."""
        self.calls.clear()
        (_BINDERS.get(task.kind) or cpu.BINDERS.get(task.kind) or by_torch[task.kind])(self, task)
        return [*self.calls]


class _Part:
    """The run of one segment."""

    def __init__(
        self,
        strips: Strips,
        number: int,
        block: memory.Block,
        store: Store | None,
        totals: dict[Value, torch.Tensor],
    ) -> None:
        self._strips, self._flow, self._places = strips, strips.flows[number], strips.places[number]
        self._block, self._totals = block, totals
        self._store: Any = store  # there if anything is loaded or stored
        self._segment = self._flow.segment
        self._calls, self._bound = {}, _Calls(strips.dtype)
        self._sums = {}  # {Step: what one strip leaves}
        self._reads: dict[Value, Future[None]] = {}
        self._writes: dict[tuple[Value, int], Future[None]] = {}
        self._loads = [v for v in self._segment.loads if v in strips.offsets]
        self._stores = {v: self._segment_step(v) for v in self._segment.stores if v in strips.offsets}
        self._before: Strip | None = None
        self._next: Strip | None = self._flow.strip(0)
        for step in self._segment.steps:
            if "sums" in step.outputs:
                value = step.outputs["sums"]
                self._sums[step] = Value(value.shape, SUMS)
                self._bound.values[self._sums[step]] = torch.zeros(value.shape, dtype=torch.float64)
                if step not in self._segment.again:
                    totals[value] = torch.zeros(value.shape, dtype=torch.float64)
        self._bound.values |= totals

    def _segment_step(self, value):
        return next(step for step in self._segment.steps if value in step.outputs.values())

    def run(self, number: int, rows: Rows, put: Put) -> None:
        """Runs strip `number`; they have to come in order."""
        strip, values = self._next, self._bound.values
        assert strip is not None
        if number == 0:
            self._read_ahead(strip, 0)
        for read in self._reads.values():
            read.result()
        more = number + 1 < self._flow.count
        self._next = self._flow.strip(number + 1) if more else None
        if self._next is not None:
            self._read_ahead(self._next, number + 1)
        for value, (begin, end) in strip.held.items():
            values[value] = self._tensor(value, number, begin, end)
            self._bring(value, strip, number)
        for step, (begin, end) in strip.made.items():
            if step.kind == TAKEN:
                first, _ = strip.held[self._strips.image]
                values[self._strips.image][:, :, begin - first : end - first].copy_(rows(begin, end))
        for call in self._calls_of(strip):
            call()
        for step, (begin, end) in strip.made.items():
            if step.kind == PUT:
                result: Any = self._rows(step.inputs["x"], strip, begin, end)
                put(begin, result, self._rows(step.inputs["image"], strip, begin, end))
        self._write_behind(strip, number)
        self._before = strip

    def finish(self) -> None:
        """Waits for what is being written."""
        for write in self._writes.values():
            write.result()

    def close(self) -> None:
        """Lets go of the block, as calls and what they are bound to hold each other; and packed weights."""
        release_packed_weights()
        self._calls.clear()
        self._bound.values.clear()
        self._bound.calls.clear()

    # Where things are

    def _region(self, value, number):
        """The byte at which the buffer of a Value begins in strip `number`."""
        buffers = self._places[value].buffers
        return buffers[number % len(buffers)]

    def _tensor(self, value, number, begin, end):
        """Rows [begin, end) of a Value, the first of its buffer or those of the whole."""
        _, channels, _, width = value.shape
        at, dtype = self._places[value].whole, self._strips.dtype_of(value)
        at = self._region(value, number) if at is None else at + begin * self._strips.row_bytes(value)
        if value.kind != POOLED:
            return self._block.view(at, (1, channels, end - begin, width), dtype, channels_last=True)
        # Row by row, so that rows of it are bytes in a row.
        return self._block.view(at, (1, end - begin, channels, width), dtype, False).permute(0, 2, 1, 3)

    def _rows(self, value, strip, begin, end):
        if value is None:
            return None
        first, _ = strip.held[value]
        return self._bound.values[value][:, :, begin - first : end - first]

    def _bring(self, value, strip, number):
        """Brings the rows of the strip before that are still read to the top of a buffer."""
        buffers = self._places[value].buffers
        write = self._writes.pop((value, number % 2), None)
        if write is not None:
            write.result()
        before = self._before
        if before is None or not buffers or not before.kept.get(value):
            return
        first, last = before.held[value]
        size, kept = self._strips.row_bytes(value), before.kept[value]
        source = self._region(value, number - 1) + (last - first - kept) * size
        base = self._block.address
        ctypes.memmove(base + self._region(value, number), base + source, kept * size)

    # The file

    def _read_ahead(self, strip, number):
        for value in self._loads:
            begin, end = strip.held[value]
            size = self._strips.row_bytes(value)
            into = self._block.bytes(self._region(value, number), (end - begin) * size)
            self._reads[value] = self._store.read(into, self._strips.offsets[value] + begin * size)

    def _write_behind(self, strip, number):
        for value, step in self._stores.items():
            if step in strip.made:
                (begin, end), (first, _) = strip.made[step], strip.held[value]
                size = self._strips.row_bytes(value)
                at = self._region(value, number) + (begin - first) * size
                data = self._block.bytes(at, (end - begin) * size)
                write = self._store.write(data, self._strips.offsets[value] + begin * size)
                self._writes[value, number % 2] = write

    # The calls

    def _calls_of(self, strip):
        """The calls that make a strip's rows in the buffers."""
        made = {
            s: self._windows(s, rows, strip) for s, rows in strip.made.items() if s.kind not in (TAKEN, PUT)
        }
        key = tuple((step, row, *[(w.begin, w.end) for _, w in found]) for step, (row, found) in made.items())
        if key not in self._calls:
            tasks = [task for step, found in made.items() for task in self._tasks(step, *found)]
            self._calls[key] = [call for task in tasks for call in self._bound.of_task(task)]
        return self._calls[key]

    def _windows(self, step, rows, strip) -> tuple[int, list[tuple[str, Window]]]:
        """(the row as of a Task, [(argument, rows of a buffer)] of what a Step makes and reads)."""
        (begin, end), windows, row = rows, [], 0
        for name, value in step.outputs.items():
            if value.kind != SUMS:
                first, _ = strip.held[value]
                windows.append((name, Window(value, begin - first, end - first)))
        for name, value in maps_read(step):
            above, below = needed(step, name, value.height, begin, end)
            first, _ = strip.held[value]
            windows.append((name, Window(value, above - first, below - first)))
            if (step.kind, name) in ROW_OF:
                row = ROW_OF[step.kind, name](begin, above)
            elif step.kind == SUMS_OF_CONV:
                row = (begin == 0) + 2 * (end == value.height)
        return row, windows

    def _tasks(self, step: Step, row: int, found: list[tuple[str, Window]]) -> Iterator[Task]:
        names = [name for name, value in step.outputs.items() if value.kind != SUMS]
        writes: dict[str, Any] = dict(found[: len(names)])
        reads: dict[str, Any] = dict.fromkeys(step.inputs)
        for name, window in found[len(names) :]:
            reads[name] = (*(reads[name] or ()), window) if isinstance(step.inputs[name], tuple) else window
        sums = step.inputs.get("sums")
        if sums is not None:
            reads["sums"] = tuple(map(whole, sums)) if isinstance(sums, tuple) else whole(sums)
        layers = step.layers
        if step.kind in ("dau_attention", "skff_select"):
            layers = layers | {"pixels": step.out.shape[2] * step.out.shape[3]}
        leaves = step in self._sums and (step not in self._segment.again or "pooled" in writes)
        writes["sums"] = whole(self._sums[step]) if leaves else None
        if step.kind == "skff_pool":
            reads, writes = {"branches": (reads["x"],)}, {"out": writes["sums"]}
        yield Task(step.kind, layers, reads, writes, row)
        if leaves and step not in self._segment.again:
            yield Task("sum up", {}, {"x": whole(self._sums[step])}, {"out": whole(step.outputs["sums"])})


def _sum_up(bound, task):
    bound.emit(torch.Tensor.add_, bound.of(task.writes["out"]), bound.of(task.reads["x"]))


def _pixels(bound, task):
    bound.emit(_put_pixels, task.layers["function"], bound.of(task.writes["out"]), bound.of(task.reads["x"]))


def _put_pixels(function, out, x):
    out.copy_(function(x))


def _sums_of_conv(bound, task):
    operands = task.layers["conv"], bound.of(task.writes["sums"]), bound.of(task.reads["x"])
    bound.emit(_put_sums_of_conv, *operands, bool(task.row & 1), bool(task.row & 2))


def _put_sums_of_conv(layer, sums, x, first, last):
    """The sums of a 3x3 convolution's result: those of what each of its taps reads, times its weight.

    first, last: whether x begins and ends with its map, whose edges a tap on the other side does not reach.
    """
    each = torch.empty(x.shape[:2], dtype=torch.float64)
    in_place.skff_pool_into(each, [x])
    read = each[:, :, None, None].repeat(1, 1, 3, 3)
    for tap, column in ((0, -1), (2, 0)):
        read[:, :, :, tap] -= x[:, :, :, column].sum(2, dtype=torch.float64)[:, :, None]
    for tap, row, there in ((0, -1, last), (2, 0, first)):
        if there:
            line = x[:, :, row].double()
            read[:, :, tap] -= line.sum(2)[:, :, None]
            read[:, :, tap, 0] += line[:, :, -1]
            read[:, :, tap, 2] += line[:, :, 0]
    torch.matmul(read.flatten(1), layer.weight.double().flatten(1).t(), out=sums)
    if layer.bias is not None:
        sums += layer.bias.double() * (x.shape[2] * x.shape[3])


_BINDERS: dict[str, Binder] = {
    "sum up": _sum_up,
    PIXELS: _pixels,
    SUMS_OF_CONV: _sums_of_conv,
}
