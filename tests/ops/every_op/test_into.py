"""Of the ops that inference gives a map to write into, and of those that also leave its sums."""

import pytest
import torch

from ...cases import each
from ..common import FLOATS, LAYOUTS, check_sums, needs_kernels
from ..subject import CPU
from . import every_op

pytestmark = needs_kernels

writes_into = every_op(CPU, where=lambda op: op.into)
leaves_sums = every_op(CPU, where=lambda op: op.sums)


@writes_into
@each(layout=[layout for layout in LAYOUTS if layout != "expanded"], dtype=FLOATS)
def test_into_a_map_of_any_strides(op, any_case, layout, dtype):
    args = op.direct(op.arguments(any_case, dtype))
    expected = op.fast(*args)
    out = op.values(dtype, layout).map(*expected.shape)
    op.into_overload(out, *args)
    # Another order of sums where the layout makes other tiles.
    torch.testing.assert_close(out, expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-5)


@writes_into
def test_into_opcheck(op):
    args = op.direct(op.arguments("tiny", torch.float32))
    torch.library.opcheck(op.into_overload, (torch.zeros_like(op.fast(*args)), *args))


@writes_into
def test_into_a_map_that_does_not_fit(op):
    args = op.direct(op.arguments("tiny", torch.float32))
    right = op.fast(*args)
    for wrong in (right[:, :-1], right[:1], right.double()):
        with pytest.raises(RuntimeError, match=f"{op.name}: out must have"):
            op.into_overload(wrong.clone(), *args)


@leaves_sums
@each(layout=["channels_last", "sliced"], dtype=FLOATS)
def test_sums(op, any_case, layout, dtype):
    args = op.direct(op.arguments(any_case, dtype))
    out = op.values(dtype, layout).map(*op.fast(*args).shape)
    sums = torch.full(out.shape[:2], float("nan"), dtype=torch.float64)
    op.into_overload(out, *args, **{op.sums: sums})
    check_sums(sums, out)


@leaves_sums
def test_sums_opcheck(op):
    args = op.direct(op.arguments("tiny", torch.float32))
    out = op.fast(*args)
    sums = {op.sums: torch.zeros(out.shape[:2], dtype=torch.float64)}
    torch.library.opcheck(op.into_overload, (torch.zeros_like(out), *args), sums)


@leaves_sums
def test_sums_that_do_not_fit(op):
    args = op.direct(op.arguments("tiny", torch.float32))
    out = op.fast(*args)
    right = torch.zeros(out.shape[:2], dtype=torch.float64)
    for wrong in (right[:, :-1].contiguous(), right.float(), right.T.contiguous().T):
        with pytest.raises(RuntimeError, match=f"{op.name}: {op.sums} must be contiguous float64"):
            op.into_overload(out, *args, **{op.sums: wrong})
