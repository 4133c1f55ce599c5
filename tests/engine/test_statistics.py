"""The sums and pooled channels that the steps of an MSRB leave for its SKFFs and DAUs."""

import pytest
import torch

import mirnet_fast
from mirnet_fast import MSRB, engine, reference
from mirnet_fast.engine import in_place, schedule
from mirnet_fast.ops import convolution

from ..ops.common import needs_kernels

pytestmark = needs_kernels


@pytest.fixture(autouse=True)
def small_maps_too(monkeypatch):
    monkeypatch.setattr(convolution, "FEWEST_PIXELS", {})


@pytest.fixture
def given(monkeypatch):
    """The sums that every SKFF got, in the order of the calls, compared with what they should be."""
    seen = []

    original = in_place.skff_select_into

    def checked(out, branches, *args):
        sums = args[5]
        if sums and len(branches) == 3:
            exact = sum(branch.double().sum((2, 3)) for branch in branches)
            if out.shape[2] * out.shape[3] == args[6]:
                torch.testing.assert_close(sum(sums), exact, rtol=1e-5, atol=1e-3)
        seen.append(len(sums))
        original(out, branches, *args)

    monkeypatch.setattr(in_place, "skff_select_into", checked)
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


@pytest.mark.parametrize("late", [0, 2**40])
@pytest.mark.parametrize("band", [2**11, 2**40])
def test_every_skff_gets_them(monkeypatch, x, given, band, late):
    monkeypatch.setattr(schedule, "BAND_BYTES", band)
    monkeypatch.setattr(schedule, "LATE_BYTES", late)
    check(block(), x)
    # Column 1 has an SKFF a stream, and there is one at the end; a late branch has it run in bands.
    assert all(given)
    assert len(given) == 4 if late or band == 2**40 else len(given) > 4
    assert max(given) > 3 if band == 2**11 else given == [3] * 4


def test_without_winograd_they_are_taken_of_the_branches(x, given):
    with mirnet_fast.use_winograd(False):
        check(block(), x)
    # The lowest stream's are what its own unit and two down-samplers make.
    assert given == [3, 0, 0, 0]


def test_not_where_others_may_come_to_the_maps(x, given):
    network, seen = block(), []
    network.blocks[0][0].register_forward_hook(lambda module, args, result: seen.append(result))
    check(network, x)
    assert len(seen) == 2
    # Stream 0 is in the last SKFF and in its own of column 1.
    assert given == [3, 3, 0, 0]


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


def test_every_unit_gets_its_pooled_channels(x):
    with torch.no_grad():
        tasks = engine.plan_of(block(), x).tasks
    units = [task for task in tasks if task.kind == "dau_attention"]
    assert len(units) == 6
    assert all(task.reads["pooled"] and task.reads["sums"] for task in units)


def test_of_one_unit_alone_nobody_asks(x):
    torch.manual_seed(5)
    with torch.no_grad():
        *_, unit = engine.plan_of(mirnet_fast.DAU(8).eval(), x).tasks
    assert set(unit.writes) == {"out"}
