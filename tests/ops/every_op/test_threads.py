"""What comes does not depend on who computes what, of the CPU's threads or of a GPU's."""

import threading

import pytest
import torch

from ... import emulation
from ..common import check_same, run, with_threads
from ..subject import CPU, CUDA, DEVICE, TRITON
from . import every_op
from .test_numerics import CHUNK


@every_op(CPU)
def test_threads(op):
    args = op.arguments("larger", torch.float32, "channels_last")
    expected = run(op.fast, args, torch.ones_like)
    results = []
    workers = [
        threading.Thread(target=lambda: results.append(run(op.fast, args, torch.ones_like))) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4
    check_same([expected, *results])


@every_op(CPU)
def test_result_does_not_depend_on_the_number_of_threads(op):
    args = op.arguments("larger", torch.float32, "channels_last")
    check_same(with_threads(lambda: run(op.fast, args, torch.ones_like)))


@every_op(TRITON, CUDA)
def test_the_same_every_time(op):
    args = op.arguments("plain")
    check_same([run(op.fast, args, torch.ones_like) for _ in range(3)])


@every_op(CUDA)
@pytest.mark.parametrize("order", ["forward", "backward", "1"])
def test_threads_in_another_order(op, order, monkeypatch):
    # Of the emulated GPU: a result that depends on it lacks a barrier.
    args = op.arguments("plain")
    expected = run(op.fast, args, torch.ones_like)
    monkeypatch.setenv("MIRNET_EMULATED_ORDER", order)
    check_same([expected, run(op.fast, args, torch.ones_like)])


@every_op(CUDA, where=lambda op: op.deep)
def test_no_bank_conflicts(op):
    if DEVICE == "cuda":
        pytest.skip("the emulated GPU counts them")
    before = emulation.bank_conflicts()
    run(op.fast, op.deep(2 * CHUNK)(op.values(torch.float16)), torch.ones_like)
    assert emulation.bank_conflicts() == before
