"""Whatever is done to a layer inside a fused module has the effect that it has in the reference network."""

import copy
import functools
import threading

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mirnet_fast
from mirnet_fast import backends, reference
from mirnet_fast.engine import eligibility

from . import lookalike
from .cases import exhaustive, first_of
from .layer_changes import (
    CHANGES,
    LAYERS,
    NETWORK_CHANGES,
    SHAPE,
    backward_hooked,
    backward_pre_hooked,
    block,
    dau,
    hooked,
    other_filter,
    other_filter_by_data,
    other_stride,
    own_forward,
    pruned,
    skff,
    weight_norm,
    wrapped,
)


@functools.cache
def originals(kind):
    torch.manual_seed(0)
    if kind == "accelerated":
        slow = lookalike.MIRNet(8, 1, 1, 2).double().eval()
        fast = copy.deepcopy(slow)
        assert mirnet_fast.accelerate(fast).replaced
    else:
        slow = reference.MIRNet(**SHAPE).double().eval()
        fast = mirnet_fast.MIRNet(**SHAPE).double().eval()
        fast.load_state_dict(slow.state_dict())
    return fast, slow


def networks(kind="ours"):
    """A fast network and one of plain PyTorch with the same weights, float64."""
    return copy.deepcopy(originals(kind))


def image():
    return torch.rand(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def check_same(fast, slow):
    x = image()
    with torch.no_grad():
        for _ in range(3):  # from the second on the plan is there
            torch.testing.assert_close(fast(x), slow(x), rtol=1e-9, atol=1e-12)
    results = []
    for network in (fast, slow):
        leaf = x.clone().requires_grad_()
        network.zero_grad()
        network(leaf).square().sum().backward()
        results.append([leaf.grad, *(p.grad for p in network.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def check_change(change, kind="ours"):
    """Of both networks, before and after; the change must have an effect."""
    fast, slow = networks(kind)
    check_same(fast, slow)
    with torch.no_grad():
        before = slow(image())
    seen = []
    for network in (fast, slow):
        change(network)
        seen.append(network(image()))
    check_same(fast, slow)
    return before, seen[1].detach()


# Every layer with two of the changes, in turn: among them each change several times.
CASES = [
    pytest.param(
        layer,
        CHANGES[(i + shift) % len(CHANGES)],
        ("ours", "accelerated")[(i // 2 + shift) % 2],
        marks=exhaustive if shift else (),
    )
    for i, layer in enumerate(LAYERS)
    for shift in (0, 3)
]


@pytest.mark.parametrize(("layer", "change", "kind"), CASES)
def test_a_changed_layer(layer, change, kind):
    before, after = check_change(lambda n: change(n, LAYERS[layer](n)), kind)
    if change not in (backward_hooked, backward_pre_hooked):
        assert (before - after).norm() > 1e-6 * before.norm()


@pytest.mark.parametrize("kind", first_of(["ours", "accelerated"]))
@pytest.mark.parametrize("change", NETWORK_CHANGES)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_a_changed_network(change, kind):
    if kind == "accelerated" and change in (other_filter, other_filter_by_data, other_stride):
        pytest.skip("the published layers know no such attributes, or refuse it where they are loaded")
    before, after = check_change(change, kind)
    assert (before - after).norm() > 1e-7 * before.norm()


def test_training_what_was_put_in():
    """The gradients of an adapter, a computed weight and a mask, not only the result."""
    fast, slow = networks()
    for network in (fast, slow):
        weight_norm(network)
        pruned(network)
        wrapped(network, skff(network).fcs[1])
    check_same(fast, slow)
    assert all(p.grad is not None for p in fast.parameters())


@pytest.mark.parametrize("register", ["register_module_forward_hook", "register_module_full_backward_hook"])
def test_process_wide_hooks_see_every_module(register):
    fast, slow = networks()
    seen = []
    for network in (fast, slow):
        names = []
        known = {module: name for name, module in network.named_modules()}
        with getattr(nn.modules.module, register)(lambda module, *_: names.append(known[module])):  # noqa: B023
            network(image().requires_grad_()).sum().backward()
        seen.append(sorted(names))
    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 60


def test_counters_see_everything():
    fast, slow = networks()
    counts = []
    for network in (fast, slow):
        calls = []
        handles = [m.register_forward_hook(lambda m, *_: calls.append(type(m))) for m in network.modules()]  # noqa: B023
        network(image())
        for handle in handles:
            handle.remove()
        with FlopCounterMode(display=False) as counter:
            network(image())
        counts.append((len(calls), counter.get_total_flops()))
    assert counts[0] == counts[1]


def test_a_class_whose_forward_is_patched(monkeypatch):
    fast, slow = networks()
    check_same(fast, slow)
    plain = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: 2 * plain(self, x))
    check_same(fast, slow)


def test_the_fused_way_is_taken(monkeypatch):
    """These tests would also pass if every module called all of its layers."""
    blocks = [
        block(networks(kind)[0]).float() for kind in ("ours", "accelerated")
    ]  # whose proof calls layers
    called, plain = [], nn.Conv2d.forward
    patched = lambda self, x: called.append(self) or plain(self, x)  # noqa: E731
    monkeypatch.setattr(nn.Conv2d, "forward", patched)
    monkeypatch.setitem(eligibility._FORWARDS, nn.Conv2d, patched)
    for network in blocks:
        with torch.no_grad():
            network(torch.rand(1, 8, 16, 16))
        assert not called
        assert eligibility.snapshot_of(network).alone
    reference.DAU(8)(torch.rand(1, 8, 16, 16))
    assert called


def test_a_look_costs_little():
    network = mirnet_fast.MIRNet()
    snapshot = eligibility.snapshot_of(network)
    assert eligibility.snapshot_of(network) is snapshot
    network.eval()  # which changes nothing here
    assert eligibility.snapshot_of(network) is snapshot
    network.conv_in.padding = 0, 0
    assert eligibility.snapshot_of(network) is not snapshot


@pytest.mark.parametrize("setting", ["use_winograd", "use_backend"])
def test_settings_are_read_once_a_forward(monkeypatch, setting):
    """Another thread changes one while a forward runs."""
    fast = mirnet_fast.MIRNet(**SHAPE).eval()
    x = image().float()
    with torch.no_grad():
        expected = fast(x)
    read = "winograd" if setting == "use_winograd" else "pick"
    plain, other = getattr(backends, read), False if setting == "use_winograd" else "reference"

    def change_at(moment):
        calls = []

        def reading(*args):
            calls.append(args)
            if len(calls) == moment:
                thread = threading.Thread(target=getattr(mirnet_fast, setting), args=(other,))
                thread.start()
                thread.join()
            return plain(*args)

        monkeypatch.setattr(backends, read, reading)
        mirnet_fast.release_workspace()
        with torch.no_grad():
            result = fast(x)
        monkeypatch.setattr(backends, read, plain)
        getattr(mirnet_fast, setting)(True if setting == "use_winograd" else None)
        return result, len(calls)

    _, moments = change_at(-1)
    for moment in range(1, moments + 1, 3):
        assert torch.equal(change_at(moment)[0], expected)


@exhaustive
@pytest.mark.untraced
def test_compiled():
    """Of what is changed before a network is compiled; torch.compile does not look for later hooks."""
    torch.compiler.reset()
    fast, slow = networks()
    for network in (fast, slow):
        hooked(network, dau(network).conv1x1)
        own_forward(network, skff(network).fcs[0])
        other_filter(network)
    x = image()
    torch.testing.assert_close(torch.compile(fast, backend="eager")(x), slow(x), rtol=1e-9, atol=1e-12)
