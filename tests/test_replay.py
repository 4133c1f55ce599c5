import contextlib
import copy
import gc
import mmap
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import mirnet_fast
from mirnet_fast.modules import _arena, _replay

pytestmark = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="not on Linux: there is no arena")


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
def only_replayed(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(mirnet_fast.MIRNet, "_forward", lambda self, x: pytest.fail("is not replayed"))
        yield


def recorded(network, *images):
    """The network, after so many forwards that the next is a replayed one."""
    for image in images or [image_of()]:
        for _ in range(2):
            forward(network, image)
    return network


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(("batch", "size"), [(1, 32), (1, 64), (3, 64)])
def test_is_the_same_to_the_bit(network, monkeypatch, batch, size, mode, layout):
    images = [image_of(size, batch, seed).contiguous(memory_format=layout) for seed in range(4)]
    with mode():
        expected = [copy.deepcopy(network)(image) for image in images]
        results = [network(image) for image in images[:2]]
        with only_replayed(monkeypatch):
            results += [network(image) for image in images[2:]]
    for result, wanted in zip(results, expected, strict=True):
        assert torch.equal(result, wanted)
        assert result.stride() == wanted.stride()
        assert result.is_inference() == wanted.is_inference()


@pytest.mark.parametrize("late", [0, 2**40])
@pytest.mark.parametrize("band", [2**12, 2**40])
def test_in_bands(network, monkeypatch, band, late):
    monkeypatch.setattr(mirnet_fast.modules._inference, "BAND_BYTES", band)
    monkeypatch.setattr(mirnet_fast.modules.network, "LATE_BYTES", late)
    recorded(network)
    with only_replayed(monkeypatch):
        assert torch.equal(forward(network, image_of(seed=5)), plain_result(network, monkeypatch, 5))


def plain_result(network, monkeypatch, seed):
    with monkeypatch.context() as patch:
        patch.setattr(_replay, "LARGEST", 0)
        patch.setattr(mirnet_fast.MIRNet, "_forward", FORWARD)
        return forward(network, image_of(seed=seed))


FORWARD = mirnet_fast.MIRNet._forward


def test_an_input_of_no_usual_layout(network):
    image = image_of(128)[:, :, ::2, ::2]
    expected = plain(network, image.contiguous())
    for _ in range(4):
        torch.testing.assert_close(forward(network, image), expected)


def test_sizes_take_turns(network, monkeypatch):
    images = [image_of(size) for size in (96, 64, 32)]
    expected = [plain(network, image) for image in images]
    recorded(network, *images)
    with only_replayed(monkeypatch):
        for _ in range(2):
            for image, wanted in zip(images, expected, strict=True):
                assert torch.equal(forward(network, image), wanted)


def test_special_values(network):
    recorded(network)
    image = image_of()
    image[0, 0, 20, 20] = float("nan")
    assert forward(network, image).isnan().any()
    assert torch.equal(forward(network, image_of()), plain(network, image_of()))


def test_neither_image_nor_result_is_kept(network):
    recorded(network)
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
    recorded(network)
    before = forward(network, image_of())
    torch.manual_seed(7)
    change(network)
    expected = plain(network, image_of())
    assert not torch.equal(before, expected)
    for _ in range(4):
        assert torch.equal(forward(network, image_of()), expected)


@pytest.mark.parametrize("where", ["one module", "all modules"])
def test_hooks_are_called(network, where):
    recorded(network)
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
    recorded(network)
    with monkeypatch.context() as patch:
        patch.setattr(mirnet_fast.DAU, "forward", lambda self, x: x)
        assert torch.equal(forward(network, image_of()), plain(network, image_of()))


def test_other_weights_for_one_call(network):
    recorded(network)
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
    usual = forward(recorded(network), image_of())
    with torch.no_grad(), contexts[setting]():
        expected = copy.deepcopy(network)(image_of())
        for _ in range(4):
            result = network(image_of())
            assert torch.equal(result, expected)
            assert result.requires_grad == (setting == "gradients")
    assert not torch.equal(usual, expected) or setting == "gradients"
    with only_replayed(monkeypatch):
        assert torch.equal(forward(network, image_of()), usual)


def test_copies_are_their_own(network):
    recorded(network)
    other = copy.deepcopy(network)
    add_in_place(other)
    expected = plain(other, image_of())
    recorded(other)
    assert torch.equal(forward(other, image_of()), expected)
    assert not torch.equal(forward(network, image_of()), expected)


def test_networks_that_share_weights(network):
    other = make(1)
    dau_of(other).body[0].weight = dau_of(network).body[0].weight
    recorded(network), recorded(other)
    add_in_place(network)
    for one in (network, other):
        assert torch.equal(forward(one, image_of()), plain(one, image_of()))


def test_nothing_is_left_of_a_network():
    network = recorded(make())
    weight = weakref.ref(dau_of(network).body[0].weight)
    del network
    gc.collect()
    assert weight() is None


def test_goes_with_the_workspace(network):
    recorded(network)
    (space,) = _arena._kept
    memory = weakref.ref(space._memory)
    del space
    mirnet_fast.release_workspace()
    gc.collect()
    assert memory() is None
    assert not _replay._recordings
    assert torch.equal(forward(network, image_of()), plain(network, image_of()))


def test_its_memory_is_counted(network, monkeypatch):
    recorded(network)
    (space,) = _arena._kept
    space.trim(0)
    forward(network, image_of())
    assert 0 < space.idle_bytes() <= len(space)
    assert space.is_unused()


def test_a_map_that_still_lives_is_not_overwritten(network):
    recorded(network)
    with _arena.arena(1):
        value = _arena.empty_map((1, 8, 256, 256), torch.empty(0)).fill_(3)
    expected = plain(network, image_of())
    assert torch.equal(forward(network, image_of()), expected)
    assert (value == 3).all()


def test_large_images_are_not_recorded(network, monkeypatch):
    monkeypatch.setattr(_replay, "LARGEST", 2**16)
    recorded(network)
    assert not _replay._recordings


def test_a_small_image_in_the_arena_of_a_large_one(network, monkeypatch):
    monkeypatch.setattr(_replay, "LARGEST", 2**20)
    expected = plain(network, image_of(32))
    recorded(network, image_of(128), image_of(32))
    with only_replayed(monkeypatch):
        assert torch.equal(forward(network, image_of(32)), expected)


def test_no_more_than_so_many(network, monkeypatch):
    monkeypatch.setattr(_replay, "MOST", 2)
    images = [image_of(size) for size in (64, 48, 32, 16)]
    recorded(network, *images)
    ((known,),) = (one.values() for one in _replay._recordings.values())
    assert [key[0][2] for key in known] == [32, 16]
    for image in images:
        assert torch.equal(forward(network, image), plain(network, image))


def test_after_an_error(network, monkeypatch):
    recorded(network)
    (space,) = _arena._kept
    with monkeypatch.context() as patch:
        patch.setattr(_replay.Recording, "is_of", lambda self, network: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            forward(network, image_of())
    recording = next(iter(_replay._recordings[space][network].values()))
    steps = recording._steps
    recording._steps = [*steps[:20], (lambda: 1 / 0, (), {})]
    with pytest.raises(ZeroDivisionError):
        forward(network, image_of())
    assert space.is_unused()
    recording._steps = steps
    assert torch.equal(forward(network, image_of()), plain(network, image_of()))


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
    assert any(
        isinstance(one, _replay.Recording)
        for known in _replay._recordings.values()
        for recordings in known.values()
        for one in recordings.values()
    )
