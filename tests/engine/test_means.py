"""Plans that record the means which gates take, and plans that are given them."""

import os

import pytest
import torch

import mirnet_fast
from mirnet_fast import engine
from mirnet_fast.engine import cuda, schedule
from mirnet_fast.engine.means import GIVEN, RECORDED
from mirnet_fast.engine.plan import Plan
from mirnet_fast.ops import convolution

from ..cases import exhaustive
from ..ops.common import needs_kernels
from .common import as_if_on_a_gpu, image_of, make

pytestmark = needs_kernels


def gated(dtype=torch.float32):
    """A network whose gates depend on the image."""
    network = make().to(dtype)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "conv_du" in name or "fcs" in name:
                weight.mul_(10)
    return network


def plan(network, image, means):
    with torch.no_grad():
        found = engine.plan_of(network, image, means=means)
    assert isinstance(found, Plan), found
    return found


@torch.no_grad()
def recorded(network, image):
    """(the result, the means)."""
    found = plan(network, image, RECORDED)
    means = torch.full(found.means.value.shape, torch.nan, dtype=torch.float64)
    return found.run([image, means]), means


@torch.no_grad()
def given(network, image, means):
    return plan(network, image, GIVEN).run([image, means])


def check(network, image, tolerance):
    with torch.no_grad():
        expected = network(image)
    result, means = recorded(network, image)
    torch.testing.assert_close(result, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(given(network, image, means), expected, rtol=0, atol=tolerance)
    # What is given is taken: of another image, and with each of the gates' means changed.
    other = image.flip(1) * 0.5
    with torch.no_grad():
        theirs = network(other)
    _, others = recorded(network, other)
    assert (means - others).abs().amax((0, 2, 3)).count_nonzero() > 0.9 * means.shape[1]
    torch.testing.assert_close(given(network, other, others), theirs, rtol=0, atol=tolerance)
    assert (given(network, other, means) - theirs).abs().max() > 20 * tolerance
    return means


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 2])
def test_recorded_and_given(dtype, batch):
    means = check(gated(dtype), image_of(40, batch).to(dtype), 1e-6)
    # Three streams' units twice, an SKFF for each of them and one at the end.
    assert means.shape == (batch, 2 * (8 + 16 + 32) + (8 + 16 + 32) + 8, 1, 1)


def test_they_are_those_of_the_maps(monkeypatch):
    network, image, seen = gated(), image_of(40), []
    yardstick = mirnet_fast.reference.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1, bias=True).eval()
    yardstick.load_state_dict(network.state_dict())
    for module in yardstick.modules():
        if isinstance(module, mirnet_fast.reference.modules.ChannelAttention):
            module.register_forward_hook(lambda module, args, result: seen.append(args[0].mean((2, 3))))
        if isinstance(module, mirnet_fast.reference.SKFF):
            module.register_forward_hook(lambda module, args, result: seen.append(sum(args[0]).mean((2, 3))))
    with torch.no_grad():
        yardstick(image)
    _, means = recorded(network, image)
    # In whatever order.
    torch.testing.assert_close(
        means.flatten().sort().values, torch.cat(seen, 1).flatten().double().sort().values, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("late", [0, 2**40])
def test_in_bands(monkeypatch, late):
    monkeypatch.setattr(convolution, "FEWEST_PIXELS", {})
    monkeypatch.setattr(schedule, "BAND_BYTES", 2**11)
    monkeypatch.setattr(schedule, "LATE_BYTES", late)
    check(gated(), image_of(40), 1e-6)


def test_where_nobody_leaves_sums():
    with mirnet_fast.use_winograd(False):
        network, image = gated(), image_of(40)
        kinds = [task.kind for task in plan(network, image, RECORDED).tasks]
        assert "skff_pool" in kinds
        check(network, image, 1e-6)


def test_places_do_not_depend_on_the_size():
    network, large = gated(), image_of(200)
    _, means = recorded(network, large)
    part = large[:, :, 60:140, 60:140].contiguous()
    with torch.no_grad():
        wanted = network(large)[:, :, 90:110, 90:110]
        own = network(part)[:, :, 30:50, 30:50]
    result = given(network, part, means)[:, :, 30:50, 30:50]
    assert (result - wanted).abs().max() < 0.1 * (own - wanted).abs().max()


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in Triton's interpreter")
@pytest.mark.parametrize("convolutions", ["cudnn", "triton"])
@pytest.mark.parametrize("whole_block", [False, pytest.param(True, marks=exhaustive)])
def test_on_a_gpu(monkeypatch, whole_block, convolutions):
    """Means are recorded launch by launch, into whatever memory; a graph is given others in each run."""
    monkeypatch.setattr(cuda.backends, "convolution", lambda *convolution: convolutions)
    torch.manual_seed(0)
    shape = {"height": 2, "width": 1, "stride": 2, "bias": True}
    block = (mirnet_fast.MSRB(16, **shape) if whole_block else mirnet_fast.DAU(16, bias=True)).eval()
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if name.endswith("CA.conv_du.0.bias"):
                parameter.fill_(1)  # so that a ReLU lets through what depends on the means
    images = [torch.rand(1, 16, 8, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    with as_if_on_a_gpu() as gpu, mirnet_fast.use_backend("triton"):
        pairs = [recorded(block, x) for x in images]
        assert gpu.recorded.graphs == 0 and not any(means.isnan().any() for _, means in pairs)
        for x, (result, means) in zip(images, pairs, strict=True):
            torch.testing.assert_close(given(block, x, means), result, rtol=0, atol=1e-5)
        assert (gpu.recorded.graphs, gpu.recorded.replays) == (1, 2)
        assert (given(block, images[0], 10 * pairs[0][1]) - pairs[0][0]).abs().max() > 1e-3
