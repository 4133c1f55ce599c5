import gc
import mmap
import os
import threading
import warnings
import weakref
from pathlib import Path

import pytest
import torch

import mirnet_fast
from mirnet_fast import reference
from mirnet_fast.modules import _arena
from mirnet_fast.modules._arena import Arena, arena, empty_map

pytestmark = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="not on Linux: torch allocates")
SHAPE = (2, 3, 8, 16)  # 3 KiB of float32, so one page each
LIKE = torch.empty(0)


@pytest.fixture(autouse=True)
def arenas(monkeypatch):
    """The arenas that were made, of maps of any size; none is kept from before."""
    monkeypatch.setattr(_arena, "SMALLEST", 1)
    mirnet_fast.release_workspace()
    made, make = [], _arena.Arena.__init__
    monkeypatch.setattr(_arena.Arena, "__init__", lambda self, *args: made.append(self) or make(self, *args))
    yield made
    mirnet_fast.release_workspace()


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return mirnet_fast.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1).eval()


def forward(network, image):
    with torch.inference_mode():
        return network(image)


def expected_of(network, image):
    plain = reference.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1).double().eval()
    plain.load_state_dict(network.state_dict())
    return forward(plain, image.double()).float()


def addresses(tensors):
    return [t.data_ptr() for t in tensors]


def test_maps_are_apart_and_channels_last():
    space = Arena(8 * 4096)
    maps = [space.empty(SHAPE, torch.float32).fill_(i) for i in range(8)]
    assert space.empty(SHAPE, torch.float32) is None
    for i, value in enumerate(maps):
        assert value.shape == SHAPE
        assert value.is_contiguous(memory_format=torch.channels_last)
        assert (value == i).all()


def test_a_range_comes_back_with_its_last_tensor():
    space = Arena(2 * 4096)
    first, second = space.empty(SHAPE, torch.float32), space.empty(SHAPE, torch.float32)
    address, part = first.data_ptr(), first[1, :2].detach()
    del first
    assert space.empty(SHAPE, torch.float32) is None
    del part
    assert space.empty(SHAPE, torch.float32).data_ptr() == address
    del second


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2), (1, 2, 0)])
def test_ranges_grow_together(order):
    space = Arena(3 * 4096)
    maps = {i: space.empty(SHAPE, torch.float32) for i in range(3)}
    for i in order:
        del maps[i]
    assert space.empty((2, 3, 24, 16), torch.float64) is None  # six pages' worth
    assert space.empty((2, 3, 24, 16), torch.float32) is not None  # all three


def resident_kilobytes():
    fields = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return int(fields["Rss"].split()[0])


HAS_SMAPS = Path("/proc/self/smaps_rollup").exists()


@pytest.mark.skipif(not HAS_SMAPS, reason="needs Linux's /proc")
def test_takes_no_more_memory_than_its_maps():
    space = Arena(2**28)
    before = resident_kilobytes()

    def map_of(megabytes):
        return space.empty((1, megabytes, 512, 512), torch.float32).fill_(1)

    small, large = map_of(8), map_of(40)
    del small
    another = map_of(16)  # not where the small one was
    used = resident_kilobytes() - before
    assert another.data_ptr() > large.data_ptr()
    assert 54 * 1024 <= used < 60 * 1024, used
    again = map_of(6)
    assert again.data_ptr() < large.data_ptr()
    assert (large == 1).all() and (another == 1).all() and (again == 1).all()


def test_the_mapping_goes_with_the_last_tensor(arenas):
    with arena(4 * 4096):
        value = empty_map(SHAPE, LIKE).fill_(7)
        memory = weakref.ref(_arena._current.arena._memory)
    arenas.clear()
    mirnet_fast.release_workspace()
    gc.collect()
    assert memory() is not None
    assert (value == 7).all()
    del value
    gc.collect()
    assert memory() is None


def test_another_thread_gives_back():
    space = Arena(4096)
    held = [space.empty(SHAPE, torch.float32)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert space.empty(SHAPE, torch.float32) is not None


def test_each_thread_has_its_own():
    found = {}

    def forward(name):
        with arena(4 * 4096):
            found[name] = empty_map(SHAPE, LIKE), _arena._current.arena

    with arena(4 * 4096):
        mine = _arena._current.arena
        thread = threading.Thread(target=forward, args=("other",))
        thread.start()
        thread.join()
        forward("nested")
        assert _arena._current.arena is mine
    assert found["nested"][1] is mine
    assert found["other"][1] is not mine
    assert _arena._current.arena is None


def test_an_error_inside_ends_it():
    with pytest.raises(KeyError), arena(4096):
        raise KeyError
    assert _arena._current.arena is None


@pytest.mark.parametrize("nbytes", [4096, 2**60])
def test_no_room_is_no_error(nbytes):
    with arena(nbytes):
        maps = [empty_map(SHAPE, LIKE) for _ in range(3)]
    assert len(set(addresses(maps))) == 3
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)


def test_without_an_arena():
    value = empty_map(SHAPE, torch.empty(0, dtype=torch.bfloat16))
    assert value.dtype == torch.bfloat16
    assert value.is_contiguous(memory_format=torch.channels_last)


def test_tensors_of_inference_mode():
    with torch.inference_mode(), arena(4096):
        assert empty_map(SHAPE, LIKE).is_inference()


def test_is_kept_for_images_of_other_sizes(network, arenas):
    for size in (64, 32, 64, 48):
        image = torch.rand(1, 3, size, size)
        torch.testing.assert_close(forward(network, image), expected_of(network, image))
    assert len(arenas) == 1


def test_grows_with_the_image(network, arenas):
    for size in (32, 64):
        forward(network, torch.rand(1, 3, size, size))
    assert len(arenas) == 2
    assert _arena._kept == arenas[1:]


def test_results_are_the_callers(network, arenas):
    images = torch.rand(5, 1, 3, 32, 32)
    results = [forward(network, image) for image in images]
    (space,) = arenas
    space.idle_bytes()
    assert space._used == 0
    for image, result in zip(images, results, strict=True):
        torch.testing.assert_close(result, expected_of(network, image))


def test_keeps_no_more_than_its_bound(network, arenas, monkeypatch):
    forward(network, torch.rand(1, 3, 64, 64))
    (space,) = arenas
    before = space.idle_bytes()
    bound = before // 2 // _arena.PAGE * _arena.PAGE
    monkeypatch.setattr(_arena, "KEPT_BYTES", bound)
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(forward(network, image), expected_of(network, image))
    assert space.idle_bytes() == bound
    torch.testing.assert_close(forward(network, image), expected_of(network, image))


@pytest.mark.skipif(not HAS_SMAPS, reason="needs Linux's /proc")
def test_gives_memory_back_to_the_system(arenas, monkeypatch):
    monkeypatch.setattr(_arena, "KEPT_BYTES", 2**26)
    before = resident_kilobytes()
    with arena(2**28):
        empty_map((1, 1, 2**12, 2**14), LIKE).zero_()
        assert resident_kilobytes() - before > 250 * 1024
    assert 60 * 1024 < resident_kilobytes() - before < 70 * 1024
    arenas.clear()
    mirnet_fast.release_workspace()
    assert resident_kilobytes() - before < 8 * 1024


def test_many_threads_share_the_bound(network, arenas, monkeypatch):
    image = torch.rand(1, 3, 64, 64)
    expected = expected_of(network, image)
    forward(network, image)
    bound = arenas[0].idle_bytes() * 3 // 2 // _arena.PAGE * _arena.PAGE
    monkeypatch.setattr(_arena, "KEPT_BYTES", bound)
    inside, results = threading.Barrier(4), []

    def work():
        with arena(12 * 8 * 64 * 64 * 4):  # the forward uses this one
            inside.wait()
            results.extend(forward(network, image) for _ in range(3))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(arenas) == len(_arena._kept) == 4
    assert sum(space.idle_bytes() for space in _arena._kept) <= bound
    assert len(results) == 12
    for result in results:
        torch.testing.assert_close(result, expected)


def test_release_during_a_forward(arenas):
    with arena(2**20):
        x = empty_map((1, 4, 16, 16), LIKE).fill_(3)
        mirnet_fast.release_workspace()
        y = empty_map((1, 4, 16, 16), LIKE).fill_(4)
        assert x.data_ptr() != y.data_ptr()
    mirnet_fast.release_workspace()
    assert (x == 3).all()
    assert (y == 4).all()
    assert len(arenas) == 1


def test_what_still_lives_is_never_overwritten(arenas):
    with arena(2**20):
        x = empty_map((1, 4, 16, 16), LIKE).fill_(3)
    for _ in range(3):
        with arena(2**20):
            empty_map((1, 4, 16, 16), LIKE).fill_(4)
    assert (x == 3).all()
    assert len(arenas) == 1


def test_after_an_error(network, arenas, monkeypatch):
    image = torch.rand(1, 3, 32, 32)
    with monkeypatch.context() as patch:
        patch.setattr(network.body[0].body[0].blocks[1][0], "forward", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            forward(network, image)
    assert getattr(_arena._current, "arena", None) is None
    torch.testing.assert_close(forward(network, image), expected_of(network, image))
    assert len(arenas) == 1


def test_a_forked_process_has_its_own(arenas):
    with arena(2**20):
        x = empty_map((1, 4, 16, 16), LIKE).fill_(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fork in a process with threads: what this is about
        child = os.fork()
    if child == 0:
        try:
            with arena(2**20):
                empty_map((1, 4, 16, 16), LIKE).numpy().fill(4)
            x.numpy().fill(5)
        finally:
            os._exit(0 if (x.numpy() == 5).all() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert (x == 3).all()
