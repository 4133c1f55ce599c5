"""Plans: the same to the bit run after run, never stale, safe in threads, dropped with what they are for."""

import contextlib
import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import mirnet_fast
from mirnet_fast import engine, reference
from mirnet_fast.engine import eligibility, memory, plan, schedule

from ..ops.common import needs_kernels

pytestmark = needs_kernels


@pytest.fixture(autouse=True)
def released():
    mirnet_fast.release_workspace()
    yield
    mirnet_fast.release_workspace()


@pytest.fixture
def network():
    return make()


def make(seed=0):
    torch.manual_seed(seed)
    return mirnet_fast.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1, bias=True).eval()


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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(("batch", "size"), [(1, 32), (1, 64), (3, 64)])
def test_is_the_same_to_the_bit(network, monkeypatch, batch, size, mode, layout):
    images = [image_of(size, batch, seed).contiguous(memory_format=layout) for seed in range(3)]
    exact = reference.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1, bias=True).double().eval()
    exact.load_state_dict(network.state_dict())
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
    exact = reference.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1, bias=True).double().eval()
    exact.load_state_dict({k: v.double() for k, v in network.state_dict().items()})
    expected = forward(exact, image.double())
    error = (result.double() - expected).norm() / expected.norm()
    assert error < (1e-12 if dtype == torch.float64 else 0.02)


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


def dau_of(network):
    return network.body[0].body[0].blocks[0][0]


@torch.no_grad()
def add_in_place(network):
    for p in network.parameters():
        p.mul_(1.25)


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

    def refuse(nbytes):
        raise OSError("no memory")

    monkeypatch.setattr(memory, "Block", refuse)
    torch.testing.assert_close(forward(network, image_of()), expected, rtol=1e-5, atol=1e-5)


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
    plain_network = reference.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1, bias=True).eval()
    plain_network.load_state_dict(network.state_dict())
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

    plain_network = reference.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1, bias=True).eval()
    plain_network.load_state_dict(network.state_dict())
    for one in (network, plain_network):
        one.body[0].body[0].blocks[1] = nn.ModuleList([Doubling(), Doubling()])
    expected = forward(plain_network, image_of())
    torch.testing.assert_close(forward(network, image_of()), expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert isinstance(engine.plan_of(network, image_of()), plan.Plan)


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

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
