"""The sums that the modules of an MSRB leave for its SKFFs."""

import pytest
import torch

import mirnet_fast
from mirnet_fast import MSRB, reference
from mirnet_fast.modules import _inference

from .ops.common import needs_kernels

pytestmark = needs_kernels


@pytest.fixture(autouse=True)
def small_maps_too(monkeypatch):
    monkeypatch.setattr(_inference, "FEWEST_PIXELS", {})


@pytest.fixture
def given(monkeypatch):
    """The sums that every SKFF got, in the order of the calls."""
    seen, original = [], torch.ops.mirnet_fast_cpu.skff_select_into

    def counted(out, branches, *args):
        sums = args[5]
        if sums:
            exact = sum(branch.double().sum((2, 3)) for branch in branches)
            torch.testing.assert_close(sum(sums), exact, rtol=1e-5, atol=1e-3)
        seen.append(len(sums))
        return original(out, branches, *args)

    monkeypatch.setattr(torch.ops.mirnet_fast_cpu, "skff_select_into", counted)
    return seen


@pytest.fixture
def x():
    image = torch.randn(2, 8, 40, 24, generator=torch.Generator().manual_seed(1))
    return image.contiguous(memory_format=torch.channels_last)


def block(cls=MSRB, **others):
    torch.manual_seed(3)
    return cls(8, 3, 2, 2, False, torch.nn.PReLU(), **others).eval()


def check(fast, x):
    plain = block(reference.MSRB).double()
    with torch.inference_mode():
        torch.testing.assert_close(fast(x).double(), plain(x.double()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("band", [2**11, 2**40])
def test_every_skff_gets_them(monkeypatch, x, given, band):
    monkeypatch.setattr(_inference, "BAND_BYTES", band)
    check(block(), x)
    # Column 1 has an SKFF a stream, and there is one at the end.
    assert len(given) == 4
    assert all(given) if band == 2**40 else max(given) > 3


def test_without_winograd_they_are_taken_of_the_branches(x, given):
    with mirnet_fast.use_winograd(False):
        check(block(), x)
    # The lowest stream's are what its own unit and two down-samplers make.
    assert given == [3, 0, 0, 0]


def test_not_where_others_may_come_to_the_maps(x, given):
    network = block()
    seen = []
    network.blocks[0][0].register_forward_hook(lambda module, args, result: seen.append(result))
    check(network, x)
    assert seen
    assert given == [0] * 4


def test_a_unit_of_others_that_changes_its_result(x, given):
    class Doubled(mirnet_fast.DAU):
        def forward(self, x):
            return super().forward(x).mul_(2)

    class PlainDoubled(reference.DAU):
        def forward(self, x):
            return super().forward(x) * 2

    fast, plain = block(), block(reference.MSRB)
    for network, unit in ((fast, Doubled), (plain, PlainDoubled)):
        network.blocks[0][0].__class__ = unit
    with torch.inference_mode():
        expected = plain.double()(x.double())
        torch.testing.assert_close(fast(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert given == [0] * 4


def test_of_one_unit_alone_nobody_asks(monkeypatch, x):
    seen, original = [], torch.ops.mirnet_fast_cpu.dau_attention_into
    monkeypatch.setattr(
        torch.ops.mirnet_fast_cpu,
        "dau_attention_into",
        lambda *args: seen.append(args[-1]) or original(*args),
    )
    torch.manual_seed(5)
    with torch.inference_mode():
        mirnet_fast.DAU(8).eval()(x)
    assert seen == [None]
