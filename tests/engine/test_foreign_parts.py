"""Hooks and modules of others in a planned network: they are called, and get maps of their own."""

import pytest
import torch
from torch import nn

import mirnet_fast
from mirnet_fast import engine
from mirnet_fast.engine import plan

from ..ops.common import needs_kernels
from .common import dau_of, forward, image_of, plain, reference_of

pytestmark = needs_kernels


@pytest.mark.parametrize("where", ["one module", "all modules"])
def test_hooks_are_called(network, where):
    forward(network, image_of())
    seen = []

    def hook(module, args, result):
        seen.append(module)

    if where == "one module":
        handle = dau_of(network).register_forward_hook(hook)
    else:
        handle = nn.modules.module.register_module_forward_hook(hook)
    with handle:
        for i in range(4):
            result = forward(network, image_of())
            assert seen.count(dau_of(network)) == 2 * (i + 1)  # both columns use it
    torch.testing.assert_close(result, plain(network, image_of()))


class Counting(mirnet_fast.DAU):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def test_the_code_of_others_runs(network):
    dau = Counting(8, bias=True)
    network.body[0].body[0].blocks[0][0] = dau
    for i in range(4):
        forward(network, image_of())
        assert dau.calls == i + 1


def test_what_a_hook_gets_is_its_own(network):
    seen = []
    dau_of(network).register_forward_hook(lambda module, args, result: seen.append((args[0], result)))
    forward(network, image_of())
    (x, y), *_ = kept = [(x.clone(), y.clone()) for x, y in seen]
    assert not torch.equal(x, y)
    forward(network, image_of(seed=3))
    for before, after in zip(kept, seen, strict=False):
        assert all(map(torch.equal, before, after))


def test_a_hook_that_changes_the_result(network):
    plain_network = reference_of(network)
    for one in (network, plain_network):
        dau_of(one).register_forward_hook(lambda module, args, result: 2 * result)
    expected = forward(plain_network, image_of())
    torch.testing.assert_close(forward(network, image_of()), expected, rtol=1e-4, atol=1e-4)


class Wider(nn.Module):
    """Returns more channels than it got, which the next convolution can't take."""

    def forward(self, x):
        return torch.cat([x, x], 1)


def test_a_module_that_returns_something_else(network):
    network.body[0].body[0].blocks[0][0] = Wider()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="size"):
            forward(network, image_of())
    assert isinstance(engine.plan_of(network, image_of()), str)


def test_a_part_of_others_that_changes_its_input(network):
    class Doubling(nn.Module):
        def forward(self, x):
            return x.mul_(2)

    plain_network = reference_of(network)
    for one in (network, plain_network):
        one.body[0].body[0].blocks[1] = nn.ModuleList([Doubling(), Doubling()])
    expected = forward(plain_network, image_of())
    torch.testing.assert_close(forward(network, image_of()), expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert isinstance(engine.plan_of(network, image_of()), plan.Plan)
