"""Products of bfloat16 by vdpbf16ps and by AMX: on emulated units, and that these are as the machine's."""

import pytest
import torch

from mirnet_fast import MIRNet, packed_weights_bytes, reference, release_workspace

from .cases import each, first_of
from .emulated_units import UNITS, emulated, missing, only_where_real
from .ops import convolution, test_conv1x1, test_conv3x3, test_conv_transpose3x3
from .ops.common import check_same, check_sums, needs_kernels, with_threads
from .ops.convolution import SHAPES, close
from .ops.test_residual_up_tail import CONV_SHAPES, ConvArguments

pytestmark = [needs_kernels, pytest.mark.skipif(missing() is not None, reason=str(missing()))]
OPS = {module.__name__.rsplit("_")[-1]: module for module in (test_conv3x3, test_conv1x1)}
OPS["transposed"] = test_conv_transpose3x3
BFLOAT16 = {"dtype": torch.bfloat16}
tiles_alone = pytest.mark.parametrize("unit", ["tiles"], indirect=True)  # others leave 3x3 to Winograd


@pytest.fixture(autouse=True, params=UNITS)
def unit(request):
    release_workspace()
    with emulated(request.param):
        yield request.param
    release_workspace()


def arguments(op, *shape, **how):
    return OPS[op].Arguments(*shape, **how, **BFLOAT16)


@each(op=[*OPS], shape=[*SHAPES])
def test_contract(op, shape):
    convolution.check_contract(OPS[op].Arguments, shape, torch.bfloat16)


@pytest.mark.parametrize("op", ["conv3x3", "conv1x1"])
@convolution.some_shapes
def test_contract_with_epilogue(op, shape):
    names = ("bias", "slope", "residual") if op == "conv3x3" else ("bias", "slope")
    convolution.check_epilogue(OPS[op].Arguments, shape, names, torch.bfloat16)


@tiles_alone
@pytest.mark.parametrize("shape", first_of([*SHAPES][4:], 2))
def test_statistics_are_of_what_is_stored(shape):
    a = arguments("conv3x3", *SHAPES[shape])
    out, pooled, sums = a.run_with_statistics()
    assert torch.equal(out, a.run(a.bias, a.slope, a.residual))
    expected_pooled, _ = test_conv3x3.statistics(out.double())
    torch.testing.assert_close(pooled.double(), expected_pooled, rtol=1e-5, atol=1e-6)
    check_sums(sums, out)


@pytest.mark.parametrize("op", OPS)
def test_sliced_maps(op):
    a = arguments(op, 2, 18, 35, 11, 14, layout="sliced")
    close(a.run(), a.expected())


@pytest.mark.parametrize("op", OPS)
def test_empty_batch(op):
    assert arguments(op, 0, 3, 5, 8, 8).run().shape[:2] == (0, 5)


@tiles_alone
@pytest.mark.parametrize("rows", first_of([5, 4, 1]))
def test_in_bands_of_rows(rows):
    a = arguments("conv3x3", 2, 20, 35, 13, 10)
    expected = a.run_with_statistics()
    out, pooled, total = test_conv3x3.in_bands(a, rows, expected)
    check_same([expected[:2], [out, pooled]])
    torch.testing.assert_close(total, expected[2], rtol=1e-9, atol=1e-9)


@each(op=[*OPS], special=[float("nan"), float("inf"), -float("inf")], place=[(0, 0), (5, 6), (10, 12)])
def test_special_values_go_where_pytorch_has_them(op, special, place):
    a = arguments(op, 2, 5, 18, 11, 13)
    a.x[0, 2, place[0], place[1]] = special
    out, expected = a.run(), a.expected()
    assert not expected.isfinite().all()
    torch.testing.assert_close(out[~out.isfinite()].double(), expected[~out.isfinite()], equal_nan=True)
    close(out[out.isfinite()], expected[out.isfinite()])


@pytest.mark.parametrize("shape", first_of([*CONV_SHAPES], 4))
def test_contract_of_the_up_tail(shape):
    a = ConvArguments(CONV_SHAPES[shape], slopes="each", **BFLOAT16)
    sums = a.sums()
    out, expected = a.run_into(a.empty(), a.x, sums=sums), a.expected()
    # What the transposed convolution hands to the tail is rounded once more.
    close(out, expected, 4e-3)
    check_sums(sums, out)


def test_denormals_are_zero():
    a = arguments("conv1x1", 1, 3, 4, 5, 6)
    a.x.fill_(2.0**-130), a.weight.fill_(2.0**20)
    assert (a.run() == 0).all()


def test_the_up_tail_in_bands_of_rows():
    a = ConvArguments(CONV_SHAPES["several blocks"], **BFLOAT16)
    whole, out, height = a.run(), a.empty(), a.x.shape[2]
    for first in range(0, height, 7):
        last = min(first + 7, height)
        a.run_into(out[:, :, 2 * first : 2 * last], a.x[:, :, first : last + 1], 2 * first)
    assert torch.equal(out, whole)


def test_the_same_bits_with_any_number_of_threads():
    check_same(with_threads(lambda: arguments("conv3x3", 3, 20, 67, 30, 26).run_with_statistics()))


def test_packed_weights_are_kept_and_follow_the_weight():
    a = arguments("conv1x1", 1, 40, 24, 6, 7)
    for _ in range(2):
        out = a.run()
        assert packed_weights_bytes() == 64 * 32 * 2
    a.weight.view(torch.int16).view(-1)[-1] ^= 1 << 14
    changed = a.run()
    assert not torch.equal(changed, out)
    close(changed, a.expected())


def test_packed_weights_of_the_up_tail_are_kept():
    a = ConvArguments(CONV_SHAPES["several blocks"], **BFLOAT16)
    for _ in range(2):
        out = a.run()
        assert packed_weights_bytes() == 9 * 32 * 32 * 2
    a.conv[0][-1, -1, -1].view(torch.int16)[-1] ^= 1 << 14
    assert not torch.equal(a.run(), out)


def test_a_network():
    torch.manual_seed(0)
    network = MIRNet(n_feat=32, n_RRG=1, n_MSRB=1).eval().bfloat16()
    published = reference.MIRNet(n_feat=32, n_RRG=1, n_MSRB=1).eval()
    published.load_state_dict(network.state_dict())
    x = torch.rand(1, 3, 16, 20).bfloat16()
    with torch.no_grad():
        results = [network(x) for _ in range(3)]  # the last ones as a plan
        expected = published.double()(x.double())
        allowed = (published.bfloat16()(x).double() - expected).norm()
    assert packed_weights_bytes()
    for result in results:
        assert (result.double() - expected).norm() <= 1.2 * allowed


@pytest.mark.parametrize("op", OPS)
def test_the_emulation_is_as_the_machine(op, unit):
    only_where_real(unit)
    a = arguments(op, 2, 70, 67, 9, 45)
    emulated = a.run()
    torch.ops.mirnet_fast_cpu.lend_matrix_kernels(0)
    assert torch.equal(a.run(), emulated)
