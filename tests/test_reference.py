"""The reference against the golden data: values, gradients, names, sharing."""

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

import mirnet_fast
from mirnet_fast import reference

GOLDEN = Path(__file__).parent / "golden"
CASES = {
    "skff_h3": lambda m: m.SKFF(16, height=3),
    "skff_h2": lambda m: m.SKFF(24, height=2),
    "dau": lambda m: m.DAU(16),
    "residual_down": lambda m: m.ResidualDownSample(8),
    "residual_up": lambda m: m.ResidualUpSample(16),
    "down_x4": lambda m: m.DownSample(8, 4),
    "up_x4": lambda m: m.UpSample(16, 4),
    "msrb": lambda m: m.MSRB(8, 3, 2, 2, False),
    "mirnet_small": lambda m: m.MIRNet(n_feat=8, n_RRG=2, n_MSRB=1),
}

# The golden network shares its DAUs' PReLU with the golden MSRB, which was differentiated
# first in the same process: the number recorded for mirnet_small has the MSRB's added.
DAU_SLOPE = re.compile(r"blocks\.\d\.\d\.body\.1\.weight")
MSRB_SLOPE = "blocks.0.0.body.1.weight"


@pytest.fixture(scope="session")
def golden():
    return np.load(GOLDEN / "modules.npz")


def tensor(array):
    return torch.from_numpy(array).double()


def relative(actual, expected):
    return ((actual - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def part(golden, prefix):
    return {k.removeprefix(prefix): tensor(golden[k]) for k in golden.files if k.startswith(prefix)}


def check_case(golden, name, module):
    module.load_state_dict(part(golden, f"{name}/weight/"), strict=True)
    inputs = [t.requires_grad_() for _, t in sorted(part(golden, f"{name}/input/").items())]
    output = module(inputs) if name.startswith("skff") else module(*inputs)
    assert relative(output, tensor(golden[f"{name}/output"])) < 1e-5
    output.backward(tensor(golden[f"{name}/grad_output"]))
    for i, value in enumerate(inputs):
        assert relative(value.grad, tensor(golden[f"{name}/grad_input/{i}"])) < 1e-5, i
    gradients = part(golden, f"{name}/grad_weight/")
    assert gradients
    parameters = dict(module.named_parameters(remove_duplicate=False))
    slopes = []
    for key, expected in gradients.items():
        actual = parameters[key].grad
        if name == "mirnet_small" and DAU_SLOPE.search(key):
            expected = expected - tensor(golden[f"msrb/grad_weight/{MSRB_SLOPE}"])
        if expected.numel() == 1:
            slopes.append((actual, expected))
        else:
            assert relative(actual, expected) < 1e-5, key
    # A slope's gradient is one sum with heavy cancellation: rounding the golden weights to the
    # float32 they are stored in moves single ones by 5e-5, so they are compared as one vector.
    if slopes:
        actual, expected = (torch.cat(values) for values in zip(*slopes, strict=True))
        assert relative(actual, expected) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_golden_module(golden, name):
    check_case(golden, name, CASES[name](reference).double())


@pytest.mark.parametrize("pad_type", ["reflect", "replicate", "zero"])
@pytest.mark.parametrize("filt_size", range(1, 8))
def test_golden_blur_pool(golden, pad_type, filt_size):
    x = tensor(golden[f"blur/{pad_type}_{filt_size}/input"])
    expected = tensor(golden[f"blur/{pad_type}_{filt_size}/output"])
    assert relative(reference.blur_pool(x, filt_size, pad_type), expected) < 1e-5
    layer = reference.Downsample(pad_type, filt_size, channels=3).double()
    assert relative(layer(x), expected) < 1e-5


def sharing(module):
    groups = defaultdict(list)
    for name, value in module.state_dict(keep_vars=True).items():
        groups[id(value)].append(name)
    return sorted(sorted(g) for g in groups.values() if len(g) > 1)


def test_state_dict_of_the_published_size():
    published = json.loads((GOLDEN / "state_dict_default.json").read_text())
    network = reference.MIRNet()
    state = network.state_dict()
    assert {k: list(v.shape) for k, v in state.items()} == published["entries"]
    assert list(state) == list(published["entries"])
    assert sharing(network) == sorted(sorted(g) for g in published["shared"])
    assert sum(p.numel() for p in network.parameters()) == published["parameters"]


def test_two_networks_share_nothing():
    first, second = (reference.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1) for _ in range(2))
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}


SMALL = {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1}
MIRNET = [
    "in_channels",
    "out_channels",
    "n_feat",
    "kernel_size",
    "stride",
    "n_RRG",
    "n_MSRB",
    "height",
    "width",
]


@pytest.mark.parametrize("package", [reference, mirnet_fast])
@pytest.mark.parametrize(
    ("make", "argument"),
    [
        *((lambda m, v, name=name: m.MIRNet(**{**SMALL, name: v}), f"MIRNet: {name}") for name in MIRNET),
        (lambda m, v: m.SKFF(8, v), "SKFF: height"),
        (lambda m, v: m.DAU(v), "DAU: n_feat"),
        (lambda m, v: m.MSRB(8, 3, v, 2, False), "MSRB: width"),
        (lambda m, v: m.RRG(8, v, 3, 2, 2), "RRG: n_MSRB"),
        (lambda m, v: m.DownSample(8, v), "scale_factor"),
        (lambda m, v: m.UpSample(8, v), "scale_factor"),
    ],
)
@pytest.mark.parametrize("value", ["8", 8.0, None, -1])
def test_a_wrong_constructor_argument_is_named(package, make, argument, value):
    with pytest.raises(ValueError, match=rf"^{argument} must be .*; got {re.escape(repr(value))}$"):
        make(package, value)


@pytest.mark.parametrize("make", [reference.MIRNet, mirnet_fast.MIRNet, reference.DAU, mirnet_fast.DAU])
@pytest.mark.parametrize("size", [0, 2, 4])
def test_an_even_kernel_is_refused(make, size):
    message = rf"^{make.__name__}: kernel_size must be an odd integer of at least 1; got {size}$"
    with pytest.raises(ValueError, match=message):
        make(n_feat=8, kernel_size=size)


def test_an_even_window_of_the_spatial_attention_is_refused():
    with pytest.raises(ValueError, match=r"^SpatialAttention: kernel_size must be an odd integer"):
        reference.modules.SpatialAttention(4)
