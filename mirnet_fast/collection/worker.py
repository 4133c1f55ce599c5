"""A worker of a cluster: what it holds, and what it does to a file."""

import os
import pickle
import socket
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch

from ..engine import budget
from ..restorer import Restorer
from . import places
from .job import How, finished
from .listing import Item
from .records import FAILED, Record

TRIES = 3  # of a file at which workers end, as by the system when memory runs out


class Worker:
    """What is made once in each worker's process: the network; called with one row after the other."""

    def __init__(self, shared: Sequence[Any], how: How, threads: int, device: str, base: str) -> None:
        ray = ray_package()
        torch.set_num_threads(threads)
        # In a sequence, as what is an argument itself would have to be there still when Ray starts anew.
        network, settings = ray.get(shared[0])
        self._restorer = Restorer(network, device=device, **settings)
        free = budget.free()
        if device == "cpu" and settings.get("memory") is settings.get("tile") is None and free:
            # Workers beside this one have theirs.
            share = int(free * min(1.0, threads / (os.cpu_count() or 1)))
            self._restorer.memory = share if self._restorer.can_keep_to_memory() else None
        self._begun, self._get = shared[1], ray.get
        self._how, self._base = how, base

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        number, item = pickle.loads(row["item"])
        tries = self._get(self._begun.count.remote(number))
        if tries > TRIES:
            reason = f"{item.input}: {TRIES} workers came to a sudden end at it, perhaps for want of memory"
            return _row(Record(item.input, item.output, FAILED, reason))
        here = Item(_joined(self._base, item.input), _joined(self._base, item.output))
        unseen = _unseen(here)
        if unseen is not None:
            return _row(Record(item.input, item.output, FAILED, f"{item.input}: {unseen}"))
        job = finished(here, self._restorer, self._how)
        notes = job.record.notes
        if tries > 1:
            notes += (f"a worker came to a sudden end at it; this is try {tries}",)
        record = replace(
            job.record,
            input=item.input,
            output=item.output,
            reason=job.record.reason and _told(job.record.reason, here, item),
            notes=tuple(_told(note, here, item) for note in notes),
        )
        return _row(record, job.no_space)


def ray_package() -> ModuleType:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(f"a cluster needs Ray ({error}); try: pip install 'mirnet-fast[ray]'") from error
    return ray


def begun(ray: ModuleType) -> Any:
    """An actor that counts how often each file was begun."""

    # Inside of a function it goes to its process as it is, which need not import this package and torch.
    class Begun:
        def __init__(self):
            self.counts = {}

        def count(self, number):
            self.counts[number] = self.counts.get(number, 0) + 1
            return self.counts[number]

    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Begun).remote()


def _unseen(item):
    """What of an item this machine does not see, or None."""
    hint = f"on {socket.gethostname()}, a machine of the cluster; all of them have to see it, or give a URL"
    if not places.is_url(item.input) and not os.path.lexists(item.input):
        return f"there is no such file {hint}"
    folder = os.path.dirname(item.output)
    if not places.is_url(item.output) and not os.path.isdir(folder):
        return f"the folder of its result, {folder}, is not there {hint}"
    return None


def _joined(base, path):
    return path if places.is_url(path) else os.path.join(base, path)


def _told(text, here, item):
    """With the paths as they were given."""
    return text.replace(here.input, item.input).replace(here.output, item.output)


def _row(record, no_space=False):
    return {"done": pickle.dumps((record, no_space))}
