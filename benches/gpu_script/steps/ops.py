"""Whether the ops are right."""

import functools
import itertools

import torch
from mirnet_fast.kernels import tune

from mirnet_fast import ops, reference

from . import DEVICE, ON_GPU
from .cases import Case, run_cases
from .contract import hold_contract, run, with_backend
from .plans import planned_part


def once(backend):
    """The first thing to know: which op is wrong, if any, and which plan."""
    channels, side = (64, 32) if ON_GPU else (16, 8)
    cases = [
        Case(f"{backend} {op}", functools.partial(_held_op, backend, op, channels, side, torch.float16))
        for op in ops.OPS
    ]
    parts = ("DAU", "ResidualDownSample", "ResidualUpSample") if backend == "triton" else ()
    cases += [
        Case(f"plan of {part}, convolutions by {convs}", functools.partial(planned_part, part, convs))
        for part, convs in itertools.product(parts, ("triton", "cudnn"))
    ]
    run_cases(cases)


def check(op):
    """Needs no pytest, and gives an answer early."""
    sizes = ((24, 18), (64, 32), (256, 16)) if ON_GPU else ((24, 18),)
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    run_cases(
        Case(
            f"{backend} {op} C={channels} {side}x{side} {dtype}",
            functools.partial(_held_op, backend, op, channels, side, dtype),
        )
        for (channels, side), dtype, backend in itertools.product(sizes, dtypes, ("triton", "cuda"))
    )


def _held_op(backend, op, channels, side, dtype):
    chosen = with_backend(backend)
    torch.backends.cudnn.allow_tf32 = False  # the reference's own error is the yardstick
    args = _arguments(op, channels, dtype, side)
    hold_contract(chosen, getattr(ops, op), getattr(reference, op), args)


def small(backend):
    def once_each_way(op):
        chosen = with_backend(backend)
        args = _arguments(op, 24, torch.float16, 18)
        with chosen():
            output = getattr(ops, op)(*args)
            run(getattr(ops, op), args, torch.ones_like(output))
        if ON_GPU:
            torch.cuda.synchronize()

    run_cases(Case(f"{backend} {op}", functools.partial(once_each_way, op)) for op in ops.OPS)


def _arguments(op, channels, dtype, side):
    args = tune.arguments(op, channels, dtype, side=side, device=DEVICE)
    return [tuple(a) if isinstance(a, list) else a for a in args]
