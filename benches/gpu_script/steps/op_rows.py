"""The benchmark rows of an op."""

import functools
import importlib
import json
import math

import harness
import torch

import mirnet_fast

from . import ON_GPU
from .cases import Case, run_cases
from .timing import Timer


def rows(op):
    if not ON_GPU:
        mirnet_fast.use_backend("triton")  # interpreted, it is never picked by itself
    bench = getattr(importlib.import_module(f"bench_{op}"), f"test_{op}")
    cases = bench.pytestmark[0].args[1]
    # What the targets are about first, should the time end: the forward of the largest maps.
    order = [torch.float16, torch.bfloat16, torch.float32]
    cases = sorted(
        cases,
        key=lambda c: (
            c.layout == harness.NCHW,
            order.index(c.dtype),
            c.direction == harness.BACKWARD,
            -math.prod(c.size),
        ),
    )

    def run(case, timer):
        torch.manual_seed(0)
        bench(timer, lambda row, times: print(json.dumps(row), flush=True), case)
        if ON_GPU:
            torch.cuda.empty_cache()

    run_cases(
        Case(
            f"{op} {case}",
            functools.partial(run, case, Timer()),
            functools.partial(run, case, Timer(enabled=False)),
        )
        for case in (_largest(cases) if ON_GPU else cases)
    )


def _largest(cases):
    """Of the first dtype and layout, the two sizes that the targets are about: a large image, and many."""
    first = [case for case in cases if (case.layout, case.dtype) == (cases[0].layout, cases[0].dtype)]
    sizes = sorted({case.size for case in first}, key=math.prod)[-2:]
    return [case for case in first if case.size in sizes]
