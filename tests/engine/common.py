"""A small network, and what is asked of its forwards."""

import contextlib
import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import mirnet_fast
from mirnet_fast import engine, reference
from mirnet_fast.engine import cuda, plan


def make(seed=0):
    torch.manual_seed(seed)
    return mirnet_fast.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1, bias=True).eval()


def reference_of(network):
    """The same network in plain PyTorch."""
    plain_network = reference.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1, bias=True).eval()
    plain_network.load_state_dict(network.state_dict())
    return plain_network


def image_of(size=64, batch=1, seed=0):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def forward(network, image):
    return network(image)


def plain(network, image):
    """A forward of a copy, which is the copy's first."""
    return forward(copy.deepcopy(network), image)


@contextlib.contextmanager
def only_planned(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(mirnet_fast.MIRNet, "_fused", lambda self, x: pytest.fail("no plan is run"))
        yield


def planned(network, image):
    """The Plan of a forward; fails where there is none."""
    with torch.no_grad():
        found = engine.plan_of(network, image)
    assert isinstance(found, plan.Plan), found
    return found


def dau_of(network):
    return network.body[0].body[0].blocks[0][0]


@torch.no_grad()
def add_in_place(network):
    for p in network.parameters():
        p.mul_(1.25)


class Recorded:
    """As a CUDA graph: the launches of one run, with the addresses that they had."""

    def __init__(self):
        self.graphs, self.replays = 0, 0

    def __call__(self, run):
        bound, launches = run.__self__, []
        for call in bound.calls:
            function = getattr(call, "func", None)
            if function == bound._call:
                function, args = call.args
                launches.append(partial(function, *map(bound._found, args)))
            elif function not in (bound._allocate, bound.values.pop):
                launches.append(call)
            call()
        self.graphs += 1

        def replay():
            self.replays += 1
            for launch in launches:
                launch()

        return replay


class Stream:
    """Counts the events that it waits for."""

    def __init__(self):
        self.waited = []

    def record_event(self):
        return object()

    def wait_event(self, event):
        self.waited.append(event)


@contextlib.contextmanager
def as_if_on_a_gpu():
    """Inside, everything on the CPU is planned as if it were on a GPU, in Triton's interpreter."""
    recorded, stream = Recorded(), Stream()
    mirnet_fast.release_workspace()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "executor_of", lambda device: cuda)
        patch.setattr(cuda, "recorded", recorded)
        patch.setattr(torch.cuda, "current_stream", lambda device: stream)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        yield SimpleNamespace(recorded=recorded, stream=stream)
    mirnet_fast.release_workspace()
