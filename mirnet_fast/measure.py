"""Measuring: time, bandwidth, memory, and the machine it was measured on."""

import ctypes
import importlib.metadata
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from . import _native


def interleave(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    synchronize: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
    """Time several callables round by round, so that a noisy machine is noisy for all of them.

    Args:
        variants: {name: callable without arguments}.
        rounds: timed calls of each; each round starts with another variant.
        warmup: untimed calls of each before.
        synchronize: called before the clock is read, e.g. torch.cuda.synchronize.

    Returns:
        {name: [seconds] * rounds}.
    """
    synchronize = synchronize or (lambda: None)
    names = list(variants)
    for _ in range(warmup):
        for name in names:
            variants[name]()
    times = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            synchronize()
            start = time.perf_counter()
            variants[name]()
            synchronize()
            times[name].append(time.perf_counter() - start)
    return times


def gpu_times(
    variants: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """As `interleave`, but the time that the GPU itself takes, without that of launching from Python.

    The GPU is kept waiting until the call has been launched; then its own clock is read around it.
    """
    names = list(variants)
    hosts = {}
    for name in names:
        for _ in range(warmup):
            variants[name]()
        torch.cuda.synchronize()
        start = time.perf_counter()
        variants[name]()
        hosts[name] = time.perf_counter() - start
        torch.cuda.synchronize()
    times = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            torch.cuda._sleep(int(2e9 * (1e-4 + 2 * hosts[name])))  # cycles, of at most 2 GHz
            events[0].record()
            variants[name]()
            events[1].record()
            torch.cuda.synchronize()
            times[name].append(events[0].elapsed_time(events[1]) / 1e3)
    return times


def copy_bandwidth(
    nbytes: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, rounds: int = 7
) -> float:
    """Bytes per second of `copy_` between two tensors of `nbytes` each, reads and writes counted.

    The median of `rounds`. Take tensors much larger than the caches.
    """
    source = torch.ones(nbytes // dtype.itemsize, dtype=dtype, device=device)
    target = torch.zeros_like(source)
    synchronize = torch.cuda.synchronize if source.is_cuda else None
    times = interleave({"copy": lambda: target.copy_(source)}, rounds, synchronize=synchronize)
    return 2 * source.nbytes / statistics.median(times["copy"])


def product_rate(
    side: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, rounds: int = 7
) -> float:
    """FLOP per second of the product of two matrices of random numbers, each (side, side).

    The median of `rounds`; a multiplication and its addition are two FLOPs.
    """
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    synchronize = torch.cuda.synchronize if left.is_cuda else None
    times = interleave({"mm": lambda: torch.mm(left, right, out=product)}, rounds, synchronize=synchronize)
    return 2 * side**3 / statistics.median(times["mm"])


def launch_seconds(device: torch.device | str = "cpu", rounds: int = 7, count: int = 200) -> float:
    """Seconds from one call of an operator on one number to the next, of `count` in a row.

    The median of `rounds`.
    """
    number = torch.zeros(1, device=device)

    def add():
        for _ in range(count):
            number.add_(1)

    synchronize = torch.cuda.synchronize if number.is_cuda else None
    return statistics.median(interleave({"add": add}, rounds, synchronize=synchronize)["add"]) / count


def peak_memory(
    make: Callable[..., Callable[[], object]], *args: Any, device: torch.device | str = "cpu"
) -> int:
    """Most bytes that one call takes above what was held before it, in a fresh process.

    Args:
        make: `make(*args)` returns the callable that is measured, called once, never before.
            It must be importable by name, and `args` picklable.
        device: "cpu" for resident memory of the process, "cuda" for torch's allocator.

    Raises:
        concurrent.futures.process.BrokenProcessPool: the process was killed, as for want of memory.
        Exception: whatever `make` or the call raise.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_peak_memory_here, make, args, torch.device(device).type).result()


def machine() -> dict[str, str | int | None]:
    """The machine, the versions and the commit, as {str: str, int or None}."""
    return {
        "cpu": _cpu_model(),
        "cpu_isa": _native.build_info().get("isa_active"),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "mirnet_fast": _version("mirnet-fast"),
        "commit": _commit(),
    }


def _peak_memory_here(make, args, device_type):
    call = make(*args)
    if device_type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    # What `make` freed but the allocator kept would hide as much of the call's memory.
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from the present size
        before = _status_bytes("VmRSS")
    except OSError:
        # Without that the peak of `make` is the level above which it counts.
        before = _max_rss()
    call()
    return _max_rss() - before  # pyrefly: ignore[unsupported-operation]


def _max_rss():
    # Some sandboxes have no VmHWM; ru_maxrss is never reset, but then neither was VmHWM.
    return _status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status_bytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _cpu_model():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit():
    """The commit of the checkout that this file belongs to, None if it is installed elsewhere."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # a virtual environment may lie inside another project's checkout
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], check=True, capture_output=True)
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty"], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
