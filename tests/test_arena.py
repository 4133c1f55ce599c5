import gc
import threading
import weakref
from pathlib import Path

import pytest
import torch

from mirnet_fast.modules import _arena
from mirnet_fast.modules._arena import Arena, arena, empty_map

SHAPE = (2, 3, 8, 16)  # 3 KiB of float32, so one page each
LIKE = torch.empty(0)


@pytest.fixture(autouse=True)
def small_maps_too(monkeypatch):
    monkeypatch.setattr(_arena, "SMALLEST", 1)


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


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
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


def test_the_mapping_goes_with_the_last_tensor():
    with arena(4 * 4096):
        value = empty_map(SHAPE, LIKE).fill_(7)
        memory = weakref.ref(_arena._current.arena._memory)
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
