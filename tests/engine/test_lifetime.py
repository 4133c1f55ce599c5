"""How long plans and their memory live, after errors and in several threads too."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import mirnet_fast
from mirnet_fast import engine
from mirnet_fast.engine import eligibility, memory, plan

from ..ops.common import needs_kernels
from .common import dau_of, forward, image_of, make, plain

pytestmark = needs_kernels


def test_nothing_is_left_of_a_network():
    network = make()
    forward(network, image_of())
    weight = weakref.ref(dau_of(network).body[0].weight)
    del network
    gc.collect()
    assert weight() is None


def test_goes_with_the_workspace(network):
    forward(network, image_of())
    (block,) = memory._kept
    mapping = weakref.ref(block._memory)
    del block
    mirnet_fast.release_workspace()
    gc.collect()
    assert mapping() is None
    assert torch.equal(forward(network, image_of()), plain(network, image_of()))


def test_no_more_than_so_many(network, monkeypatch):
    monkeypatch.setattr(plan, "MOST", 2)
    images = [image_of(size) for size in (64, 48, 32, 16)]
    before = engine.engine_stats().dropped
    for image in images:
        forward(network, image)
    known = eligibility.snapshot_of(network).plans
    assert [key[0][2] for key in known] == [32, 16]
    assert engine.engine_stats().dropped == before + 2
    for image in images:
        assert torch.equal(forward(network, image), plain(network, image))


def test_after_an_error(network, monkeypatch):
    expected = forward(network, image_of())
    (block,) = memory._kept
    (bound,) = block.bound.values()
    calls = bound.calls
    bound.calls = [*calls[:20], lambda: 1 / 0]
    with pytest.raises(ZeroDivisionError):
        forward(network, image_of())
    assert memory._kept == [block]
    assert not bound.values
    bound.calls = calls
    assert torch.equal(forward(network, image_of()), expected)


def test_no_address_space(network, monkeypatch):
    expected = forward(network, image_of())
    mirnet_fast.release_workspace()

    def refuse(*args, **kwargs):
        raise OSError("no memory")

    monkeypatch.setattr(memory.mmap, "mmap", refuse)
    torch.testing.assert_close(forward(network, image_of()), expected, rtol=1e-5, atol=1e-5)


def test_two_networks_in_four_threads():
    networks = [make(seed) for seed in range(2)]
    images = [image_of(seed=seed) for seed in range(4)]
    expected = [plain(networks[i % 2], image) for i, image in enumerate(images)]
    start, wrong = threading.Barrier(4), []

    def work(i):
        start.wait()
        for _ in range(8):
            if not torch.equal(forward(networks[i % 2], images[i]), expected[i]):
                wrong.append(i)

    with ThreadPoolExecutor(4) as pool:
        [*pool.map(work, range(4))]
    assert not wrong


def test_release_drops_the_plans():
    network, image = make(), image_of()
    with torch.no_grad():
        first = network(image)
        assert mirnet_fast.engine_stats().plans == 1
        mirnet_fast.release_workspace()
        after = mirnet_fast.engine_stats()
        assert (after.plans, after.kept_bytes) == (0, 0)
        assert torch.equal(network(image), first)
    assert mirnet_fast.engine_stats().built == after.built + 1


def test_a_plan_goes_with_its_module():
    network, image = make(), image_of()
    with torch.no_grad():
        network(image)
    del network
    gc.collect()
    assert mirnet_fast.engine_stats().plans == 0
