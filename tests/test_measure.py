"""The measuring helpers measure what they say."""

import os
import time

import numpy as np
import pytest
import torch

from mirnet_fast import _native, measure

MEGABYTE = 2**20


def test_interleave_goes_round_by_round():
    calls = []
    variants = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = measure.interleave(variants, rounds=3, warmup=2)
    assert "".join(calls) == "abcabc" + "abc" + "bca" + "cab"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_interleave_measures_seconds():
    times = measure.interleave({"slow": lambda: time.sleep(0.05), "fast": lambda: None}, rounds=2)
    assert all(value >= 0.05 for value in times["slow"])
    assert all(0 <= value < 0.05 for value in times["fast"])


def test_interleave_synchronizes_before_both_readings_of_the_clock():
    events = []
    measure.interleave(
        {"work": lambda: events.append("call")}, 2, warmup=0, synchronize=lambda: events.append("wait")
    )
    assert events == ["wait", "call", "wait"] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copy_bandwidth(dtype):
    nbytes = 64 * MEGABYTE
    source, target = torch.ones(2, nbytes // dtype.itemsize, dtype=dtype)
    seconds = measure.interleave({"copy": lambda: target.copy_(source)}, 7)["copy"]
    assert 2 * nbytes / max(seconds) / 4 < measure.copy_bandwidth(nbytes, "cpu", dtype)
    assert measure.copy_bandwidth(nbytes, "cpu", dtype) < 2 * nbytes / min(seconds) * 4


def test_product_rate():
    left, right = torch.randn(2, 256, 256)
    seconds = measure.interleave({"mm": lambda: torch.mm(left, right)}, 7)["mm"]
    assert 2 * 256**3 / max(seconds) / 4 < measure.product_rate(256) < 2 * 256**3 / min(seconds) * 4


def test_launch_seconds():
    number = torch.zeros(1)
    seconds = measure.interleave({"add": lambda: [number.add_(1) for _ in range(200)]}, 7)["add"]
    assert min(seconds) / 200 / 4 < measure.launch_seconds() < max(seconds) / 200 * 4


def allocate(before, during):
    ballast = np.ones(before * MEGABYTE, np.uint8)
    spike = np.ones(2 * (before + during) * MEGABYTE, np.uint8)  # a peak before the call does not count
    del spike
    return lambda: np.ones(during * MEGABYTE, np.uint8).sum() + ballast[0]


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no reset of the peak here")
def test_peak_memory_is_that_of_the_call():
    peak = measure.peak_memory(allocate, 100, 200)
    assert 198 < peak / MEGABYTE < 220


def hoard():
    chunks = [bytearray(64 * 1024) for _ in range(1600)]  # small enough for the heap, which keeps them
    last = bytearray(64 * 1024)
    del chunks
    return lambda: [bytearray(64 * 1024) for _ in range(1600)] and last


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no reset of the peak here")
def test_peak_memory_counts_what_the_allocator_had_kept():
    assert 98 < measure.peak_memory(hoard) / MEGABYTE < 120


def fail():
    raise KeyError("from the child")


def test_peak_memory_passes_errors_on():
    with pytest.raises(KeyError, match="from the child"):
        measure.peak_memory(fail)


def test_machine():
    machine = measure.machine()
    assert machine["torch"] == torch.__version__
    assert machine["threads"] == torch.get_num_threads()
    assert machine["cores"] >= 1 and machine["cpu"]
    assert machine["cpu_isa"] in (_native.ISAS if _native.build_info()["compiled"] else (None,))
