"""Two strangers' networks (lookalike.py and renamed.py), and what tests of accelerate() do with them."""

import copy
import importlib.util
import sys
from pathlib import Path

import torch
from torch import nn

import mirnet_fast
from mirnet_fast.accelerate import recognise

CLOSE = 1e-9


def strangers_code(import_path, file="lookalike.py"):
    """A file of tests/, imported as a module of this name."""
    spec = importlib.util.spec_from_file_location(import_path, Path(__file__).with_name(file))
    module = importlib.util.module_from_spec(spec)
    sys.modules[import_path] = module  # pickle looks there
    spec.loader.exec_module(module)
    return module


lookalike = strangers_code("somebodys_networks")
renamed = strangers_code("a_third_partys_restorer", "renamed.py")


def network(**options):
    torch.manual_seed(0)
    return lookalike.MIRNet(**{"base": 8, "groups": 1, "blocks": 1, **options}).double()


def picture(requires_grad=False):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 8, 12, generator=generator, dtype=torch.float64)
    return x.requires_grad_(requires_grad)


def arguments(module, height=8, width=12, channels=8):
    generator = torch.Generator().manual_seed(2)
    count = len(module.fcs) if hasattr(module, "fcs") else 1
    maps = [
        torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64)
        for _ in range(count)
    ]
    return maps if hasattr(module, "fcs") else maps[0]


def relative(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def reasons(report):
    return {entry.name: entry.reason for entry in report.skipped}


def is_ours(module):
    return type(module) in recognise.OURS


def check_same_function(module, inputs):
    """A module alone, before and after: result, gradients, class."""
    module = module.double()
    twin = copy.deepcopy(module)
    report = mirnet_fast.accelerate(module)
    assert report.skipped == [] and is_ours(module), str(report)
    expected, actual = twin(inputs), module(inputs)
    assert relative(actual, expected) < CLOSE
    weights = torch.linspace(-1, 2, expected.numel(), dtype=expected.dtype).reshape(expected.shape)
    if expected.requires_grad:
        expected.backward(weights)
        actual.backward(weights)
    for (name, a), b in zip(module.named_parameters(), twin.parameters(), strict=True):
        assert relative(a.grad, b.grad) < CLOSE, name


def tampered(base, name=None, **members):
    """A class of the same name as `base` with other members."""
    return type(name or base.__name__, (base,), members)


def edited(module, edit):
    edit(module)
    return module


def swap(module, path, part):
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, part)


def conv(*args, **options):
    return nn.Conv2d(*args, **{"bias": False, **options})


def whole(cls=renamed.Restorer, *args, **options):
    """A small network of one or the other stranger."""
    torch.manual_seed(0)
    return cls(*(args or (8, 1, 1, 2)), **options).double()


def check_same(model, twin, parameters=True):
    """Results with and without gradients, and the gradients."""
    with torch.no_grad():
        for _ in range(3):  # from the second on a plan may be there
            assert relative(model(picture()), twin(picture())) < CLOSE
    x, y = picture(True), picture(True)
    for one, leaf in ((model, x), (twin, y)):
        one.zero_grad()
        one(leaf).square().sum().backward()
    assert relative(x.grad, y.grad) < CLOSE
    for (name, a), (_, b) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert relative(a.grad, b.grad) < CLOSE, name
