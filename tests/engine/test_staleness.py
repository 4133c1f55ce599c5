"""Plans are never stale: a change of a network, its weights or a setting counts at the next forward."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import mirnet_fast

from ..ops.common import needs_kernels
from .common import add_in_place, dau_of, forward, image_of, make, only_planned, plain

pytestmark = needs_kernels


def replace_parameter(network):
    dau_of(network).body[0].weight = nn.Parameter(torch.randn_like(dau_of(network).body[0].weight))


def replace_data(network):
    for p in network.parameters():
        p.data = p.data * 0.75


def replace_module(network):
    dau_of(network).body[2] = nn.Conv2d(8, 8, 3, padding=1)


def replace_activation(network):
    dau_of(network).body[1] = nn.LeakyReLU(0.3)


def set_attribute(network):
    dau_of(network).SKIP = not dau_of(network).SKIP


def set_padding(network):
    dau_of(network).body[0].padding_mode = "reflect"


def load(network):
    network.load_state_dict(make(1).state_dict())


def load_assigned(network):
    network.load_state_dict(make(1).state_dict(), assign=True)


def halve_precision(network):
    network.to(torch.bfloat16).float()


def normalise(network):
    parametrizations.weight_norm(dau_of(network).body[0])
    with torch.no_grad():
        dau_of(network).body[0].parametrizations.weight.original0.mul_(2)


def patch_forward(network):
    dau_of(network).forward = lambda x: 2 * x


CHANGES = [
    add_in_place,
    replace_parameter,
    replace_data,
    replace_module,
    replace_activation,
    set_attribute,
    set_padding,
    load,
    load_assigned,
    halve_precision,
    normalise,
    patch_forward,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_seen(network, change):
    before = forward(network, image_of())
    torch.manual_seed(7)
    change(network)
    expected = plain(network, image_of())
    assert not torch.equal(before, expected)
    for _ in range(4):
        assert torch.equal(forward(network, image_of()), expected)


def test_a_class_whose_forward_is_replaced(network, monkeypatch):
    forward(network, image_of())
    with monkeypatch.context() as patch:
        patch.setattr(mirnet_fast.DAU, "forward", lambda self, x: x)
        assert torch.equal(forward(network, image_of()), plain(network, image_of()))


def test_other_weights_for_one_call(network):
    forward(network, image_of())
    other = make(1)
    weights = dict(other.named_parameters())
    with torch.inference_mode():
        for _ in range(4):
            result = torch.func.functional_call(network, weights, (image_of(),))
            assert torch.equal(result, plain(other, image_of()))
    assert torch.equal(forward(network, image_of()), plain(network, image_of()))


@pytest.mark.parametrize("setting", ["winograd", "backend", "autocast", "gradients"])
def test_settings_count(network, monkeypatch, setting):
    contexts = {
        "winograd": lambda: mirnet_fast.use_winograd(False),
        "backend": lambda: mirnet_fast.use_backend("reference"),
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "gradients": torch.enable_grad,
    }
    usual = forward(network, image_of())
    with torch.no_grad(), contexts[setting]():
        expected = copy.deepcopy(network)(image_of())
        for _ in range(4):
            result = network(image_of())
            assert torch.equal(result, expected)
            assert result.requires_grad == (setting == "gradients")
    assert not torch.equal(usual, expected) or setting == "gradients"
    with only_planned(monkeypatch):
        assert torch.equal(forward(network, image_of()), usual)


def test_copies_are_their_own(network):
    forward(network, image_of())
    other = copy.deepcopy(network)
    add_in_place(other)
    expected = plain(other, image_of())
    assert torch.equal(forward(other, image_of()), expected)
    assert not torch.equal(forward(network, image_of()), expected)


def test_networks_that_share_weights(network):
    other = make(1)
    dau_of(other).body[0].weight = dau_of(network).body[0].weight
    forward(network, image_of()), forward(other, image_of())
    add_in_place(network)
    for one in (network, other):
        assert torch.equal(forward(one, image_of()), plain(one, image_of()))
