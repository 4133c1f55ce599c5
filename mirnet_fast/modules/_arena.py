"""Memory for the feature maps of one forward.

The system's allocator can't put a feature map where an equal one was before (alignment makes
each a little larger than the gap), so a third of what a forward holds would be gaps. Here maps
lie in one mapping, in large pages, that takes no more memory than its maps took at most
together. The next forward gets it again, as the system takes a tenth of a forward to hand
out that memory: up to KEPT_BYTES of it stay, until `release_workspace`.
"""

import contextlib
import math
import mmap
import os
import threading
import weakref
from collections import deque

import torch

from ..ops.packed_weights import release_packed_weights

PAGE = 4096
SMALLEST = 2**21  # maps below one large page are usually left to torch
KEPT_BYTES = 2**30

_current = threading.local()
_kept = []  # the arenas that no forward uses
_keeping = threading.Lock()
if hasattr(os, "register_at_fork"):
    # A child that was forked while another thread held it would wait for ever.
    os.register_at_fork(
        before=_keeping.acquire, after_in_parent=_keeping.release, after_in_child=_keeping.release
    )


class Arena:
    """First-fit ranges of a private mapping of `nbytes`.

    Raises:
        OSError: the system does not give the address space.
    """

    def __init__(self, nbytes):
        self.takes_all = False  # also maps below SMALLEST
        self._memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._free = [(0, len(self._memory))]
        self._everything = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._idle = []  # parts of it that take memory, as they held maps; the oldest first
        self._used = self._most_used = 0
        self._returned = deque()  # by whatever thread drops a tensor; appending is atomic

    def empty(self, shape, dtype):
        """An uninitialised channels_last (N, C, H, W) tensor, None where nothing is left."""
        n, c, h, w = shape
        count = math.prod(shape)
        taken = self._take(-(-count * dtype.itemsize // PAGE) * PAGE)
        if taken is None:
            return None
        view = memoryview(self._memory)[slice(*taken)]
        # The tensor's storage holds the view: the range comes back with the last tensor on it.
        weakref.finalize(view, self._returned.append, taken).atexit = False
        return torch.frombuffer(view, dtype=dtype, count=count).view(n, h, w, c).permute(0, 3, 1, 2)

    def __len__(self):
        return len(self._memory)

    def is_unused(self):
        """Whether no map lies in it."""
        self._collect()
        return not self._used

    def end_of(self, tensor):
        """Behind which byte of it the tensor ends, 0 for one elsewhere."""
        begin = tensor.data_ptr() - self._everything.data_ptr()
        span = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        return begin + span * tensor.element_size() if 0 <= begin < len(self) else 0

    def place_of(self, tensor):
        """The tensor's place without its claim to it; itself for one elsewhere."""
        if not self.end_of(tensor):
            return tensor
        whole = self._everything.view(tensor.dtype)
        begin = (tensor.data_ptr() - whole.data_ptr()) // tensor.element_size()
        return whole.as_strided(tensor.shape, tensor.stride(), begin)

    @contextlib.contextmanager
    def reserved(self, nbytes):
        """Its first `nbytes`, in an unused one, are for what lies at places in them."""
        taken = self._take(-(-nbytes // PAGE) * PAGE)
        try:
            yield
        finally:
            self._give_back(*taken)

    def idle_bytes(self):
        """The memory that it takes and that no map lies in."""
        self._collect()
        return sum(end - begin for begin, end in self._idle)

    def trim(self, nbytes):
        """Gives idle memory back beyond `nbytes` (of whole pages), that which is asked for last first."""
        excess = self.idle_bytes() - nbytes
        while excess > 0:
            part = max(self._idle)
            self._idle.remove(part)
            begin = max(part[0], part[1] - excess)
            self._memory.madvise(mmap.MADV_DONTNEED, begin, part[1] - begin)
            if begin > part[0]:
                self._idle.append((part[0], begin))
            excess -= part[1] - begin
        self._most_used = self._used + self.idle_bytes()

    def _collect(self):
        while self._returned:
            self._give_back(*self._returned.popleft())

    def _take(self, nbytes):
        self._collect()
        for i, (begin, end) in enumerate(self._free):
            if end - begin >= nbytes:
                self._free[i : i + 1] = [(begin + nbytes, end)] if end - begin > nbytes else []
                self._occupy(begin, begin + nbytes)
                return begin, begin + nbytes
        return None

    def _occupy(self, begin, end):
        outside = [part for b, e in self._idle for part in ((b, min(e, begin)), (max(b, end), e))]
        self._idle = [(b, e) for b, e in outside if b < e]
        self._used += end - begin
        self._most_used = max(self._most_used, self._used)
        # Elsewhere a gap that is no longer needed would stay as large as it was.
        while self._used + sum(e - b for b, e in self._idle) > self._most_used:
            b, e = self._idle.pop(0)
            self._memory.madvise(mmap.MADV_DONTNEED, b, e - b)

    def _give_back(self, begin, end):
        self._idle.append((begin, end))
        self._used -= end - begin
        merged = []
        for other in self._free:
            if other[1] == begin:
                begin = other[0]
            elif other[0] == end:
                end = other[1]
            else:
                merged.append(other)
        self._free = sorted([*merged, (begin, end)])


@contextlib.contextmanager
def arena(nbytes):
    """Maps made by this thread inside lie in one Arena of at least `nbytes`.

    Nested: in that of the outer `with`; with 0 bytes in none, for what outlives the forward.
    Yields the Arena, None in these cases and where there is no room.
    """
    outer = getattr(_current, "arena", None)
    is_new = nbytes > 0 and outer is None and hasattr(mmap, "MADV_HUGEPAGE")
    if is_new or not nbytes:
        _current.arena = _opened(nbytes) if is_new else None
    try:
        yield _current.arena if is_new else None
    finally:
        if is_new and _current.arena is not None:
            _keep(_current.arena)
        _current.arena = outer


def _opened(nbytes):
    with _keeping:
        while _kept:
            arena = _kept.pop()
            if len(arena) >= nbytes:
                return arena
    try:
        return Arena(nbytes)
    except OSError:  # the ordinary allocator may still find room
        return None


def _keep(arena):
    with _keeping:
        arena.trim(max(KEPT_BYTES - sum(other.idle_bytes() for other in _kept), 0))
        _kept.append(arena)


def release_workspace():
    """Give back the memory that forwards without gradients on the CPU keep for the next one.

    That is at most 1 GiB in all for maps, of any number of networks and threads, and what
    `packed_weights_bytes` tells. Safe at any time: a forward that is running keeps what it uses.
    """
    with _keeping:
        _kept.clear()
    release_packed_weights()


def empty_map(shape, like):
    """An uninitialised channels_last map with the dtype of `like`, in this thread's arena if any."""
    arena = getattr(_current, "arena", None)
    result = None
    if arena is not None and (arena.takes_all or math.prod(shape) * like.itemsize >= SMALLEST):
        result = arena.empty(shape, like.dtype)
    if result is None:
        result = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
    return result
