"""Inference of the network by Winograd's convolutions: reached, exact to its bound, never stale."""

import copy
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import mirnet_fast
from mirnet_fast import MIRNet, reference
from mirnet_fast.engine import in_place, plan_of, schedule
from mirnet_fast.ops import convolution

from .cases import pairwise
from .ops.common import needs_kernels

pytestmark = needs_kernels

CONFIG = {"n_feat": 16, "n_RRG": 2, "n_MSRB": 1}
BOUND = 3e-6


@pytest.fixture
def network():
    torch.manual_seed(0)
    return MIRNet(**CONFIG).eval()


@pytest.fixture
def image():
    return torch.rand(2, 3, 40, 52, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def small_maps_too(monkeypatch):
    monkeypatch.setattr(convolution, "FEWEST_PIXELS", {})


# The ops that run by Winograd's method, and which of their arguments is the weight.
WEIGHTS = {
    "conv3x3": 1,
    "conv3x3_into": 2,
    "conv_transpose3x3": 1,
    "residual_up_tail_of_conv": 2,
}


@pytest.fixture
def calls(monkeypatch):
    """The weights of the convolutions that ran by Winograd's method."""
    seen = []
    for name, at in WEIGHTS.items():
        room = in_place if hasattr(in_place, name) else torch.ops.mirnet_fast_cpu
        original = getattr(room, name)

        def counted(*args, at=at, original=original, **kwargs):
            seen.append(args[at])
            return original(*args, **kwargs)

        monkeypatch.setattr(room, name, counted)
    return seen


def run(network, image):
    with torch.inference_mode():
        return network(image).clone()


def residual_error(network, image, output):
    """Relative to what the network adds to its input, in float64."""
    exact = reference.MIRNet(**CONFIG).double().eval()
    exact.load_state_dict(network.state_dict())
    with torch.inference_mode():
        added = exact(image.double()) - image.double()
    return ((output.double() - image.double() - added).norm() / added.norm()).item()


def unit_gain(network):
    """Weights that keep the size of what goes through them."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
                inputs = module.weight[0].numel()
                module.weight.normal_(0, inputs**-0.5, generator=torch.Generator().manual_seed(2))
    return network


@pytest.mark.parametrize("size", [(8, 8), (40, 52), (64, 12)])
def test_error_against_float64(network, calls, size):
    network = unit_gain(network)
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    assert residual_error(network, image, run(network, image)) < BOUND
    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    convs = [m for m in network.modules() if isinstance(m, kinds) and m.kernel_size == (3, 3)]
    assert {id(weight) for weight in calls} == {id(conv.weight) for conv in convs}


def test_with_biases_and_other_streams(image, calls):
    torch.manual_seed(3)
    for config in ({"height": 2, "bias": True}, {"height": 1, "n_feat": 10}, {"n_feat": 12, "width": 1}):
        arguments = CONFIG | config
        network, plain = MIRNet(**arguments).eval(), reference.MIRNet(**arguments).eval()
        plain.load_state_dict(network.state_dict())
        with torch.inference_mode():
            expected = plain.double()(image.double())
        assert (run(network, image) - expected).norm() / expected.norm() < BOUND
    assert calls


@pairwise(rows=[1, 5, 8], height=[3, 4], width=[1, 2, 3], winograd=[True, False])
def test_large_maps_in_bands_of_rows(monkeypatch, image, rows, height, width, winograd):
    arguments = CONFIG | {"height": height, "width": width, "n_RRG": 1}
    torch.manual_seed(7)
    network, plain = MIRNet(**arguments).eval(), reference.MIRNet(**arguments).double().eval()
    plain.load_state_dict(network.state_dict())
    image = image[:, :, :, :48]
    monkeypatch.setattr(schedule, "LATE_BYTES", 0)
    monkeypatch.setattr(schedule, "BAND_BYTES", rows * 2 * 16 * 48 * 4)
    with torch.inference_mode(), mirnet_fast.use_winograd(winograd):
        tasks = plan_of(network, image).tasks
        expected = plain(image.double())
        error = (network(image) - expected).norm() / (expected - image).norm()
    assert error < BOUND
    # Streams 0 and 1 are there as a whole, the others in bands.
    selected = [task for task in tasks if task.kind == "skff_select"]
    late = {task.writes["out"].value for task in selected if task.row}
    assert len(late) >= width - 1
    assert all(
        (window.value.shape == image_like.shape) == (i < 2)
        for image_like in late
        for task in selected
        if task.writes["out"].value is image_like
        for i, window in enumerate(task.reads["branches"])
    )
    pools = [len(task.reads["branches"]) for task in tasks if task.kind == "skff_pool"]
    if winograd:
        assert not pools  # what makes a map, or a band of it, leaves its sums
    else:
        assert pools.count(2) == len(late)


def test_statistics_of_a_last_band_with_few_pixels(monkeypatch, image):
    torch.manual_seed(8)
    unit, plain = mirnet_fast.DAU(8).eval(), reference.DAU(8).double().eval()
    plain.load_state_dict(unit.state_dict())
    x = torch.randn(1, 8, 33, 12).contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(convolution, "FEWEST_PIXELS", {torch.nn.Conv2d: (64, 64)})
    monkeypatch.setattr(schedule, "BAND_BYTES", 8 * 8 * 12 * 4)  # eight rows
    with torch.inference_mode():
        torch.testing.assert_close(unit(x).double(), plain(x.double()), rtol=1e-5, atol=1e-5)


def test_few_pixels_are_left_to_pytorch(monkeypatch, network, image, calls):
    monkeypatch.setattr(
        convolution, "FEWEST_PIXELS", {torch.nn.Conv2d: (0, 80), torch.nn.ConvTranspose2d: (0, 500)}
    )
    run(network, image[:1, :, :32, :32])
    block = network.body[0].body[0]
    # 16 x 16 and 8 x 8 pixels for the second and third stream.
    ran = {id(weight) for weight in calls}
    assert id(block.blocks[1][0].body[0].weight) in ran
    assert id(block.blocks[2][0].body[0].weight) not in ran
    assert not any(isinstance(m, torch.nn.ConvTranspose2d) and id(m.weight) in ran for m in network.modules())


def test_can_be_switched_off(network, image, calls):
    on = run(network, image)
    assert calls
    calls.clear()
    with mirnet_fast.use_winograd(False):
        off = run(network, image)
    assert not calls and not torch.equal(on, off)
    assert torch.equal(run(network, image), on)
    assert residual_error(network, image, off) < BOUND


READS = """
import importlib, os, sys
from mirnet_fast import backends
for value in sys.argv[1:]:
    os.environ["MIRNET_FAST_WINOGRAD"] = value
    print(importlib.reload(backends).winograd(), *backends.problems())
"""


def test_environment_variable():
    on, off = ["1", "on", "True", "YES", ""], ["0", "off", "OFF", "False", "no"]
    command = [sys.executable, "-c", READS, *on, *off, "maybe", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    *good, maybe, two = done.stdout.splitlines()
    assert good == ["True"] * len(on) + ["False"] * len(off), done.stderr
    for value, line in (("maybe", maybe), ("2", two)):
        wanted = f"MIRNET_FAST_WINOGRAD must be one of 1, on, true, yes, 0, off, false, no; got '{value}'"
        assert wanted in line


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_follows_the_backend(network, image, calls, backend):
    with mirnet_fast.use_backend(backend):
        run(network, image)
    assert bool(calls) == (backend == "cpu")


def test_not_in_another_dtype_or_where_something_else_listens(network, image, calls):
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        network(image)
    assert not calls
    run(network.double(), image.double())
    assert not calls
    network.float()
    unit = network.body[0].body[0].blocks[0][0]
    unit.body[0].register_forward_hook(lambda *_: None)
    run(network, image)
    ran = {id(weight) for weight in calls}
    other = network.body[1].body[0].blocks[0][0]
    assert id(unit.body[0].weight) not in ran and id(other.body[0].weight) in ran


def last_of_a_group(network):
    return network.body[0].body[1].weight


CHANGES = {
    "in place": lambda n: last_of_a_group(n).mul_(2),
    "its data in place": lambda n: last_of_a_group(n).data.neg_(),
    "new data": lambda n: setattr(last_of_a_group(n), "data", last_of_a_group(n).data.flip(0)),
    "the same values in another order": lambda n: last_of_a_group(n).data.copy_(last_of_a_group(n).roll(1)),
    "state_dict": lambda n: n.load_state_dict(
        {k: v if k.endswith("filt") else -v for k, v in n.state_dict().items()}
    ),
    "to float64 and back": lambda n: last_of_a_group(n.double().float()).data.mul_(3),
    "channels_last": lambda n: last_of_a_group(n.to(memory_format=torch.channels_last)).data.neg_(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_stale_weight_is_used(network, image, change):
    before = run(network, image)
    with torch.no_grad():
        CHANGES[change](network)
    after = run(network, image)
    assert not torch.allclose(before, after)
    fresh = MIRNet(**CONFIG).eval()
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(after, run(fresh, image))


def test_copies_and_pickles(network, image):
    expected = run(network, image)
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    copies = [copy.deepcopy(network), torch.load(file, weights_only=False)]
    with torch.no_grad():
        for p in network.parameters():
            p.neg_()
    for other in copies:
        assert torch.equal(run(other, image), expected)


def test_two_networks_in_four_threads(image):
    torch.manual_seed(4)
    networks = [MIRNet(**CONFIG).eval(), MIRNet(**CONFIG | {"n_feat": 24}).eval()]
    expected = [run(n, image) for n in networks]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: run(networks[i % 2], image), range(16)))
    assert all(torch.equal(result, expected[i % 2]) for i, result in enumerate(results))


def test_an_accelerated_network_runs_so_too(image, calls):
    torch.manual_seed(5)
    plain = reference.MIRNet(**CONFIG).eval()
    expected = run(plain, image)
    mirnet_fast.accelerate(plain)
    torch.testing.assert_close(run(plain, image), expected, rtol=1e-5, atol=1e-5)
    assert calls


@pytest.mark.parametrize("scale", [1, 30, 1000])
@pytest.mark.parametrize("width", [16, 24])  # tiles of four columns, and of six
def test_conditioning(scale, width):
    """Where the sums cancel, the larger intermediate values show; the bound is of the largest value."""
    draw = torch.Generator().manual_seed(6)
    x = torch.randn(1, 32, 24, width, generator=draw) + scale
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(32, 32, 3, 3, generator=draw)
    weight -= weight.mean((1, 2, 3), keepdim=True)
    exact = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1)
    # Of what is added up, not of what is left.
    size = torch.nn.functional.conv2d(x.double().abs(), weight.double().abs(), padding=1).max()
    ours = torch.ops.mirnet_fast_cpu.conv3x3(x, weight, None, None, None)
    plain = torch.nn.functional.conv2d(x, weight, padding=1)
    errors = [((y - exact).abs().max() / size).item() for y in (ours, plain)]
    assert errors[0] < BOUND / 3 and errors[0] < 30 * errors[1]
