"""Products of maps in bfloat16 by vdpbf16ps and by AMX, on emulated units: see tests/emulated_units."""

import pytest
import torch

from ...cases import each, first_of
from ...emulated_units import UNITS, emulated, missing, only_where_real
from ..common import check_sums, gradient_maker, on_tensors
from ..subject import CPU
from ..test_dau_attention import DAU_ATTENTION
from . import every_op

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(autouse=True, params=UNITS)
def unit(request, op):
    with emulated(request.param):
        yield request.param


@every_op(CPU, where=lambda op: op.products)
@pytest.mark.parametrize("name", first_of(["wide", "larger", "tiny", "plain"]))
def test_contract(op, name):
    args = op.arguments(name, torch.bfloat16, "channels_last")
    op.check_contract(args, gradient_maker("dense", torch.bfloat16), draws=2)


@every_op(CPU, where=lambda op: op.products and op.into)
def test_sums(op):
    args = op.arguments("wide", torch.bfloat16, "channels_last")
    out = torch.empty_like(op.fast(*args))
    sums = torch.full(out.shape[:2], float("nan"), dtype=torch.float64)
    op.into_overload(out, *args, **{op.sums: sums})
    check_sums(sums, out)


@DAU_ATTENTION.on(CPU)
def test_an_attention_over_its_input(op):
    r, *others = op.arguments("64 channels", torch.bfloat16, "channels_last")
    expected = op.fast(r, *others)
    op.into_overload(r, r, *others, None, None, None)
    assert torch.equal(r, expected)


@every_op(CPU, where=lambda op: op.products)
@each(special=[float("nan"), float("inf")])
def test_special_values_go_through(op, special):
    args = op.arguments("larger", torch.bfloat16, "channels_last")
    args[0][0, 2, 11, 15] = special
    out, expected = op.fast(*args), op.reference(*on_tensors(torch.Tensor.double, args))
    assert not expected.isfinite().all()
    assert torch.equal(out.isfinite(), expected.isfinite())


@every_op(CPU, where=lambda op: op.products)
def test_the_emulation_is_as_the_machine(op, unit):
    only_where_real(unit)
    args = op.arguments("wide", torch.bfloat16, "channels_last")
    emulated = op.fast(*args).double()
    torch.ops.mirnet_fast_cpu.lend_matrix_kernels(0)
    real = op.fast(*args).double()
    # The same products; around them the machine rounds some steps of float32 once, the emulation twice.
    assert (real == emulated).double().mean() > 0.99
    torch.testing.assert_close(real, emulated, rtol=2**-7, atol=1e-6)
