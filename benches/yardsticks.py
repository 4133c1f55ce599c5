"""What the machine can do: copies and bare matrix products, and what share of them an op reaches."""

import functools
import math

import torch
from rows import COPY, FAST, GEMM, SGEMM, digits
from settings import DEVICE, TINY

SGEMM_SIDE = 64 if TINY else 1024


def _copy_bytes():
    return 2**16 if TINY else 2**26 if DEVICE == "cpu" else 2**28  # otherwise beyond any cache


@functools.cache
def copy():
    """A copy within memory, of more than any cache holds."""
    source = torch.ones(_copy_bytes(), dtype=torch.uint8, device=DEVICE)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def gemm(gemms, dtype):
    """The bare matrix products, into memory that is there already."""
    factors = [
        (
            torch.randn(rows, inner, device=DEVICE).to(dtype),
            torch.randn(inner, columns, device=DEVICE).to(dtype),
            torch.empty(rows, columns, device=DEVICE, dtype=dtype),
        )
        for rows, inner, columns in gemms
    ]

    def multiply():
        for left, right, product in factors:
            torch.mm(left, right, out=product)

    return multiply


@functools.cache
def sgemm():
    """A product of large float32 matrices, the measure of the arithmetic unit."""
    left, right = torch.randn(2, SGEMM_SIDE, SGEMM_SIDE)
    product = torch.empty(SGEMM_SIDE, SGEMM_SIDE)
    return lambda: torch.mm(left, right, out=product)


def bandwidth(seconds, nbytes, gemms):
    """What a row says of the bytes moved: nbytes at least, beside a copy and, of gemms, the bare products."""
    fast, copied = seconds[FAST], 2 * _copy_bytes() / seconds[COPY]
    result = {
        "floor_mb": digits(nbytes / 1e6),
        "gb_per_s": digits(nbytes / fast / 1e9),
        "copy_gb_per_s": digits(copied / 1e9),
        "of_copy": digits(nbytes / fast / copied),
    }
    if gemms:
        flops = sum(2 * math.prod(sizes) for sizes in gemms)
        result |= arithmetic(seconds, flops, flops) | {"gemm_ms": digits(1e3 * seconds[GEMM])}
        outside = fast - seconds[GEMM]
        # None where the whole op takes less than the bare product: no time is left to divide by.
        result["of_copy_outside_gemm"] = digits(nbytes / outside / copied) if outside > 0 else None
    return result


def arithmetic(seconds, flops, done):
    """What a row says of the arithmetic: that of the plain op, and what of it is done."""
    result = {
        "gflop": digits(flops / 1e9),
        "gflop_per_s": digits(flops / seconds[FAST] / 1e9),
        "done_gflop_per_s": digits(done / seconds[FAST] / 1e9),
    }
    if SGEMM in seconds:
        result["sgemm_gflop_per_s"] = digits(2 * SGEMM_SIDE**3 / seconds[SGEMM] / 1e9)
        result["of_sgemm"] = digits(result["done_gflop_per_s"] / result["sgemm_gflop_per_s"])
    return result
