"""Plans: the same to the bit run after run, whatever the layout, the dtype and the bands of rows."""

import copy
import pickle

import pytest
import torch
from torch import nn

import mirnet_fast
from mirnet_fast import engine, reference
from mirnet_fast.engine import schedule

from ..ops.common import needs_kernels
from .common import forward, image_of, make, only_planned, plain, planned, reference_of

pytestmark = needs_kernels


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(("batch", "size"), [(1, 32), (1, 64), (3, 64)])
def test_is_the_same_to_the_bit(network, monkeypatch, batch, size, mode, layout):
    images = [image_of(size, batch, seed).contiguous(memory_format=layout) for seed in range(3)]
    exact = reference_of(network).double()
    with mode(), only_planned(monkeypatch):
        expected = [copy.deepcopy(network)(image) for image in images]
        results = [network(image) for image in images]
        precise = [exact(image.double()) for image in images]
    for result, wanted, best in zip(results, expected, precise, strict=True):
        assert torch.equal(result, wanted)
        assert result.stride() == image_of(size, batch).contiguous(memory_format=layout).stride()
        assert result.is_inference() == (mode is torch.inference_mode)
        torch.testing.assert_close(result.double(), best, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(monkeypatch, dtype):
    network, image = make().to(dtype), image_of(32).to(dtype)
    with only_planned(monkeypatch):
        result = forward(network, image)
    exact = reference_of(network).double()
    expected = forward(exact, image.double())
    error = (result.double() - expected).norm() / expected.norm()
    assert error < (1e-12 if dtype == torch.float64 else 0.02)


@pytest.mark.parametrize("matrix_unit", [False, True])
def test_convolutions_in_bfloat16(monkeypatch, matrix_unit):
    """By the kernels, which round less than PyTorch's; a matrix unit, which PyTorch uses, is faster."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: matrix_unit)
    network, image = make().bfloat16(), image_of(32).bfloat16()
    by_kernels = [
        task.layers["by_kernels"] for task in planned(network, image).tasks if "conv" in task.layers
    ]
    assert {*by_kernels} == {not matrix_unit}
    with only_planned(monkeypatch):
        result = forward(network, image)
    expected = forward(reference_of(network).double(), image.double())
    error = (result.double() - expected).norm()
    published = (forward(reference_of(network).bfloat16(), image).double() - expected).norm()
    assert error <= 2 * published if matrix_unit else error <= published


@pytest.mark.parametrize("winograd", [False, True])
@pytest.mark.parametrize("late", [0, 2**40])
@pytest.mark.parametrize("band", [2**12, 2**40])
def test_in_bands_and_late(network, monkeypatch, band, late, winograd):
    expected = plain(network, image_of())
    monkeypatch.setattr(schedule, "BAND_BYTES", band)
    monkeypatch.setattr(schedule, "LATE_BYTES", late)
    with mirnet_fast.use_winograd(winograd), only_planned(monkeypatch):
        found = planned(network, image_of())
        kinds = [task.kind for task in found.tasks]
        result = forward(network, image_of())
    # In bands every convolution is several, and the SKFF of a late branch too.
    assert (kinds.count("skff_select") > 4) == (band < 2**40 and not late)
    assert (len(kinds) > 200) == (band < 2**40)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_late_branches_take_less_memory(network, monkeypatch):
    monkeypatch.setattr(schedule, "BAND_BYTES", 2**12)
    image, peaks = image_of(128), {}
    for late in (0, 2**40):
        monkeypatch.setattr(schedule, "LATE_BYTES", late)
        peaks[late] = planned(copy.deepcopy(network), image).peak_bytes
    # One map of stream 0, which would be there as a whole.
    assert peaks[2**40] - peaks[0] > 0.4 * 8 * 128 * 128 * 4


def test_an_input_of_no_usual_layout(network):
    image = image_of(128)[:, :, ::2, ::2]
    expected = plain(network, image.contiguous())
    for other in (image, image.flip(3).flip(3), image.transpose(2, 3).contiguous().transpose(2, 3)):
        torch.testing.assert_close(forward(network, other), expected)


def test_sizes_take_turns(network, monkeypatch):
    images = [image_of(size) for size in (96, 64, 32)]
    expected = [plain(network, image) for image in images]
    before = engine.engine_stats().built
    with only_planned(monkeypatch):
        for _ in range(3):
            for image, wanted in zip(images, expected, strict=True):
                assert torch.equal(forward(network, image), wanted)
    assert engine.engine_stats().built == before + 3


def test_special_values(network):
    image = image_of()
    image[0, 0, 20, 20] = float("nan")
    assert forward(network, image).isnan().any()
    assert torch.equal(forward(network, image_of()), plain(network, image_of()))


def test_neither_image_nor_result_is_kept(network):
    image = image_of(seed=1)
    before = image.clone()
    first = forward(network, image)
    kept = first.clone()
    forward(network, image_of(seed=2))
    assert torch.equal(image, before)
    assert torch.equal(first, kept)
    with torch.inference_mode():
        first.zero_()
    assert torch.equal(forward(network, image), kept)


def test_is_planned_as_a_part_of_others(monkeypatch):
    network = make()

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x):
            return self.inner(x) + 1

    class Derived(mirnet_fast.MIRNet):
        pass

    derived = Derived(n_feat=8, n_RRG=1, n_MSRB=1, bias=True).eval()
    derived.load_state_dict(network.state_dict())
    expected = forward(network, image_of())
    with only_planned(monkeypatch):
        assert torch.equal(forward(Wrapped(), image_of()), expected + 1)
        assert torch.equal(forward(derived, image_of()), expected)
        assert torch.equal(forward(pickle.loads(pickle.dumps(network)), image_of()), expected)


@pytest.mark.parametrize("part", ["DAU", "SKFF", "ResidualDownSample", "ResidualUpSample", "MSRB"])
def test_parts_alone(part, monkeypatch):
    torch.manual_seed(3)
    given = {"MSRB": (8, 3, 2, 2, False), "SKFF": (8, 2)}.get(part, (8,))
    fast, exact = getattr(mirnet_fast, part)(*given).eval(), getattr(reference, part)(*given).double().eval()
    exact.load_state_dict(fast.state_dict())
    x = torch.randn(2, 8, 24, 16)
    if part == "SKFF":  # which is one op, and in NCHW called as such
        x = x.to(memory_format=torch.channels_last)
    inputs = [x, x.flip(2)] if part == "SKFF" else x
    doubles = [each.double() for each in inputs] if part == "SKFF" else x.double()
    monkeypatch.setattr(type(fast), "_fused", lambda self, x: pytest.fail("no plan is run"))
    with torch.no_grad():
        result, expected = fast(inputs), exact(doubles)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def test_in_and_out_channels_that_differ():
    torch.manual_seed(0)
    shape = {"in_channels": 1, "out_channels": 3, "n_feat": 8, "n_RRG": 1, "n_MSRB": 1}
    network, exact = mirnet_fast.MIRNet(**shape).eval(), reference.MIRNet(**shape).double().eval()
    exact.load_state_dict(network.state_dict())
    image = image_of()[:, :1]
    planned(network, image)
    result, expected = forward(network, image), forward(exact, image.double())
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
