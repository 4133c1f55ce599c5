"""How rows of calls are timed: by turns, with the GPU alone; and the memory that they take."""

import functools
import json
import time

import harness
import torch
from rows import make_row, milliseconds

import mirnet_fast
from mirnet_fast import measure

from . import ON_GPU
from .cases import Case


class Timer:
    """What harness.py needs of pytest-benchmark's fixture, so that no row waits for the whole run."""

    def __init__(self, enabled=True):
        self.enabled, self.stats = enabled, {}

    def pedantic(self, function, setup, rounds):
        times = []
        for _ in range(rounds if self.enabled else 1):
            setup()
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        self.stats = {"data": times}


def made(prepare, *arguments):
    return functools.partial(prepare, *arguments, torch.get_num_threads())


def row_of(name, makes, described):
    """The Case of a row of calls, {name: function that makes it}; described: op, size, dtype, direction."""
    calls, peaks = {}, {}

    def prepare():
        torch.backends.cudnn.allow_tf32 = True  # PyTorch's default
        for variant, make in makes.items():
            # cuDNN's search for the fastest takes memory of its own, and time, which has to be quiet; what
            # is compiled keeps what was found first.
            torch.backends.cudnn.benchmark = variant.startswith("torch.compile")
            calls[variant] = make()
            peaks[variant] = _peak_mb(calls[variant])
        harness.check_agreement(calls, described[2])

    def call():
        torch.backends.cudnn.benchmark = True
        _release()
        for variant in calls.values():
            for _ in range(3):  # run, recorded, replayed
                variant()
        row = make_row(*described, harness.timed(Timer(), calls, {}, budget=5))
        if ON_GPU:
            row["gpu_ms"] = milliseconds(measure.gpu_times(calls, 7))
            row["peak_mb"] = peaks
        print(json.dumps(row), flush=True)
        calls.clear()
        _release()

    return Case(name, call, prepare)


def _release():
    mirnet_fast.release_workspace()
    if ON_GPU:
        torch.cuda.empty_cache()


def _peak_mb(call):
    """The most MB that three calls take, the recording of graphs among them; what stays with them counts."""
    if not ON_GPU:
        call()
        return None
    _release()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before[0]
    torch.cuda.empty_cache()
    # Of a graph that torch.compile recorded only the pool tells.
    return round(max(peak, torch.cuda.memory_reserved() - before[1]) / 1e6)


def times_on_gpu(calls, rounds):
    return measure.gpu_times(calls, rounds) if ON_GPU else measure.interleave(calls, 1)
