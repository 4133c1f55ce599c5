"""A NaN or an infinity ends where the reference's does."""

import pytest
import torch

from ...cases import each, first_of
from ..common import FLOATS, gradient_maker, is_map, on_tensors, run, tensors
from ..subject import CPU, CUDA, TRITON
from . import every_op

SPECIAL = (float("nan"), float("inf"), -float("inf"))
PIXELS = ("middle", "first")  # where a special value stands; the first is what padding of tables points to


def check(op, clean, cases):
    """A special value in each tensor in turn; each takes the next case.

    From the first pixel of a map it goes nowhere else than in the reference, and everywhere there but in
    `op.meets_padding`, where the reference multiplies it by zeros beyond the border.
    """
    dtype = tensors(clean)[0].dtype
    count = len(tensors(clean))
    for place in range(count + 1):
        special, pixel = cases[place % len(cases)]
        args = on_tensors(torch.clone, clean)
        output_grad = gradient_maker("dense", dtype)(op.fast(*args))
        value = [*tensors(args), output_grad][place]
        # In a window's middle, where no zero of the padding meets it: libraries differ there.
        at = (-1, 3, 4, 5) if value.shape[-1] > 5 else tuple(size // 2 for size in value.shape)
        if pixel == "first" and is_map(value):
            at = (*at[:2], 0, 0)
        value[at] = special
        fasts = run(op.fast, args, lambda _, g=output_grad: g)
        exact = on_tensors(torch.Tensor.double, args)
        oracles = run(op.reference, exact, lambda _, g=output_grad: g.double())
        assert not all(oracle.isfinite().all() for oracle in oracles)
        for i, (fast, expected) in enumerate(zip(fasts, oracles, strict=True)):
            where = f"special value in tensor {place}, result {i}"
            if pixel == "first" and i in op.meets_padding:
                assert (fast.isfinite() | ~expected.isfinite()).all(), where
                continue
            assert torch.equal(fast.isfinite(), expected.isfinite()), where
            if op.orders_infinities:
                assert torch.equal(fast.isnan(), expected.isnan()), where


@every_op(CPU)
@each(special=SPECIAL, pixel=PIXELS, dtype=FLOATS[:2])
def test_special_values_go_through(op, special, pixel, dtype):
    check(op, op.arguments("plain", dtype, "channels_last"), [(special, pixel)])


# The three together: each special value in each tensor.
@every_op(TRITON, CUDA)
@pytest.mark.parametrize("first", first_of(range(3)))
def test_special_values_go_through_a_gpu(op, first):
    cases = [(SPECIAL[i % 3], PIXELS[i % 2]) for i in range(first, first + 6)]
    check(op, op.arguments("plain"), cases)
