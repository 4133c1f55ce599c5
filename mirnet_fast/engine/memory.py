"""Where the values of a plan lie: lifetimes to offsets in one block, and the blocks.

The peak is known before a run. A block is a private mapping in large pages; a run takes one that no other
run uses, and the next run gets it again, as the system takes a tenth of a forward to hand out that
memory: up to KEPT_BYTES of it stay, until `release_workspace`.
"""

import math
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy
import torch

from .graph import OVERWRITTEN, Value

if TYPE_CHECKING:
    from .bound import Bound
    from .plan import Plan
    from .schedule import Scheduler, Task

PAGE = 4096
LINE = 256  # bytes at which values begin: so little that two maps fit in the place of one twice as large
KEPT_BYTES = 2**30

_kept = []  # the blocks that no run uses
_keeping = threading.Lock()
if hasattr(os, "register_at_fork"):
    # A child that was forked while another thread held it would wait for ever.
    os.register_at_fork(
        before=_keeping.acquire, after_in_parent=_keeping.release, after_in_child=_keeping.release
    )


class Layout:
    """Where the values that `tasks` make lie in a block.

    Args:
        nbytes: function of a Value.

    Attributes:
        offsets: {Value: byte}; what lies outside the plan has none.
        nbytes: the size of the block.
        live: for each task the bytes that are in use while it runs.
    """

    offsets: dict[Value, int]
    nbytes: int
    live: numpy.ndarray

    def __init__(self, tasks: "Sequence[Task]", nbytes: Callable[[Value], int]) -> None:
        first, last, written = {}, {}, {}
        for i, task in enumerate(tasks):
            for window in task.windows():
                first.setdefault(window.value, i)
                last[window.value] = i
            written |= {window.value: i for window in task.writes.values() if window is not None}
        self.owners = {}  # {Value: that whose memory it takes}
        for task in tasks:
            for name, window in task.writes.items():
                if window is not None and not window.value.outside and window.value not in self.owners:
                    over = self._overwritten(task, last, written) if name == "out" else None
                    self.owners[window.value] = window.value if over is None else self.owners[over]
        spans = {}
        for value, owner in self.owners.items():
            begin, end = spans.get(owner, (len(tasks), 0))
            spans[owner] = min(begin, first[value]), max(end, last[value])
        sizes = [-(-nbytes(value) // LINE) * LINE for value in spans]
        places, end = packed(sizes, [*spans.values()])
        self.nbytes = -(-end // PAGE) * PAGE
        places = dict(zip(spans, places, strict=True))
        self.offsets = {value: places[owner] for value, owner in self.owners.items()}
        changes = numpy.zeros(len(tasks) + 1, dtype=numpy.int64)
        for size, (begin, end) in zip(sizes, spans.values(), strict=True):
            changes[begin] += size
            changes[end + 1] -= size
        self.live = changes.cumsum()[:-1]
        self._first, self._last = first, last

    def is_at_peak(self, value: Value) -> bool:
        """Whether a Value is there when nearly the most memory is in use."""
        return self.live[self._first[value] : self._last[value] + 1].max() > 0.95 * self.live.max()

    def _overwritten(self, task, last, written):
        """The input that the task's output may lie over: nobody reads it later, and the kernel allows it."""
        name, out = OVERWRITTEN.get(task.kind), task.writes["out"]
        if name is None:
            return None
        windows = task.reads[name] if isinstance(task.reads[name], tuple) else (task.reads[name],)
        reads = [window.value for window in task.windows()]
        for window in reversed(windows):
            # Where it is done band by band, each reads the rows that it overwrites and no others.
            if (
                window is not None
                and window.value in self.owners
                and window.value.shape == out.value.shape
                and (window.begin, window.end) == (out.begin, out.end)
                and reads.count(window.value) == 1
                and last[window.value] <= written[out.value]
            ):
                return window.value
        return None


def arranged(scheduler: "Scheduler") -> "tuple[list[Task], Layout]":
    """Tasks and their Layout; what can be made late is, if the block gets clearly smaller by that."""
    late, tasks = set(), scheduler.tasks()
    layout = Layout(tasks, scheduler.nbytes)
    while True:
        more = {
            skff
            for skff in scheduler.skffs()
            if skff not in late and any(map(layout.is_at_peak, scheduler.late_branches(skff)))
        }
        if not more:
            return tasks, layout
        late |= more
        others = scheduler.tasks(late)
        better = Layout(others, scheduler.nbytes)
        if better.nbytes > 0.99 * layout.nbytes:
            return tasks, layout
        tasks, layout = others, better


def packed(sizes: Sequence[int], spans: Sequence[tuple[int, int]]) -> tuple[list[int], int]:
    """(offsets, size in all): what lives at the same time lies apart. The largest are placed first.

    That is TensorFlow Lite's "greedy by size" (Pisarchyk and Lee, MLSys 2020 workshop, arXiv 2001.03288).
    """
    lengths, lives = numpy.asarray(sizes, dtype=numpy.int64), numpy.asarray(spans).reshape(-1, 2)
    offsets, order = numpy.zeros(len(lengths), dtype=numpy.int64), numpy.argsort(-lengths, kind="stable")
    for count, i in enumerate(order):
        others = order[:count]
        others = others[(lives[others, 0] <= lives[i, 1]) & (lives[others, 1] >= lives[i, 0])]
        others = others[numpy.argsort(offsets[others], kind="stable")]
        end = 0
        for begin, size in zip(offsets[others].tolist(), lengths[others].tolist(), strict=True):
            if begin - end >= lengths[i]:
                break
            end = max(end, begin + size)
        offsets[i] = end
    return offsets.tolist(), int((offsets + lengths).max(initial=0))


class Block:
    """A private mapping of at least `nbytes`, for plans of the CPU.

    Attributes:
        device: whose memory it is.
        touched: bytes at its begin that take memory.
        bound: {Plan: what it runs with in this block}; goes with the plan or the block.

    Raises:
        MemoryError: the system does not give the address space.
    """

    device: torch.device
    touched: int
    bound: "weakref.WeakKeyDictionary[Plan, Bound]"

    def __init__(self, nbytes: int) -> None:
        try:
            self._memory = mmap.mmap(-1, max(nbytes, PAGE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError) as error:
            raise MemoryError(f"mirnet_fast: no {nbytes} bytes of address space: {error}") from error
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        # A tensor of inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            self._whole = torch.frombuffer(self._memory, dtype=torch.uint8)
        self.device, self.touched = torch.device("cpu"), 0
        self.bound = weakref.WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._memory)

    def view(
        self, offset: int, shape: Sequence[int], dtype: torch.dtype, channels_last: bool
    ) -> torch.Tensor:
        """The uninitialised tensor of this shape that begins at byte `offset`."""
        part = self._whole[offset : offset + math.prod(shape) * dtype.itemsize].view(dtype)
        if not channels_last:
            return part.view(shape)
        n, c, h, w = shape
        return part.view(n, h, w, c).permute(0, 3, 1, 2)

    def bytes(self, offset: int, nbytes: int) -> memoryview:
        """So many bytes from byte `offset` on."""
        return memoryview(self._memory)[offset : offset + nbytes]

    @property
    def address(self) -> int:
        """Where it begins."""
        return self._whole.data_ptr()

    def begin(self) -> None:
        """Called before a run."""

    def end(self, plan: "Plan") -> None:
        """Called after a run."""
        self.touched = max(self.touched, plan.peak_bytes)

    def trim(self, nbytes: int) -> bool:
        """Give the memory beyond `nbytes` (of whole pages) back to the system; whether it may stay."""
        if self.touched > nbytes and hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED, nbytes, len(self) - nbytes)
            self.touched = nbytes
        return True


def take_block(plan: "Plan") -> Block:
    """A Block for one run of a plan; `give_back` ends that.

    Raises:
        MemoryError: there is no memory for one.
    """
    with _keeping:
        of_device = [block for block in _kept if block.device == plan.device]
        fitting = [block for block in of_device if len(block) >= plan.peak_bytes]
        # One that it ran in before, else the smallest; too small ones would stay beside the larger one.
        chosen = min(fitting, key=lambda block: (plan not in block.bound, len(block)), default=None)
        for block in of_device if chosen is None else [chosen]:
            _kept.remove(block)
    block = plan.executor.make_block(plan) if chosen is None else chosen
    block.begin()
    return block


def give_back(block: Block, plan: "Plan") -> None:
    """Keep a Block for the next run, as far as KEPT_BYTES allow it."""
    block.end(plan)
    with _keeping:
        kept = sum(other.touched for other in _kept if other.device == block.device)
        if block.trim(max(KEPT_BYTES - kept, 0) // PAGE * PAGE):
            _kept.append(block)


def kept_bytes() -> int:
    """The memory that blocks take that no run uses."""
    with _keeping:
        return sum(block.touched for block in _kept)


def release_blocks() -> None:
    """Give back the memory of the blocks that no run uses."""
    with _keeping:
        _kept.clear()
