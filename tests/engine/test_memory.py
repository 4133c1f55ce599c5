"""Where a plan's values lie, and the blocks that they lie in."""

import mmap
import os
import random
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import mirnet_fast
from mirnet_fast import engine, reference
from mirnet_fast.engine import cpu, memory
from mirnet_fast.engine.graph import SUMS, Value
from mirnet_fast.engine.memory import Block, Layout
from mirnet_fast.engine.schedule import Task, whole

from ..ops.common import needs_kernels

MAP = (1, 4, 32, 32)  # four pages of float32


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    """The blocks that were made; none is kept from before."""
    mirnet_fast.release_workspace()
    made, make = [], Block.__init__
    monkeypatch.setattr(Block, "__init__", lambda self, *args: made.append(self) or make(self, *args))
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


def nbytes(value):
    count = 8 if value.kind == SUMS else 4
    for size in value.shape:
        count *= size
    return count


def task(out, *reads, kind="conv1x1", name="x"):
    windows = {f"{name}{i or ''}": whole(value) for i, value in enumerate(reads)}
    return Task(kind, {}, windows, {"out": whole(out)})


def check_apart(tasks, layout):
    """Whatever lives at the same time lies apart, but for a value over the one that it replaces."""
    alive = {}
    for i, each in enumerate(tasks):
        for window in each.windows():
            first, _ = alive.get(window.value, (i, i))
            alive[window.value] = first, i
    spans = [(layout.offsets[v], layout.offsets[v] + nbytes(v), *alive[v], v) for v in layout.offsets]
    for a in spans:
        for b in spans:
            if layout.owners[a[4]] is not layout.owners[b[4]]:
                assert a[1] <= b[0] or b[1] <= a[0] or a[3] < b[2] or b[3] < a[2]


@pytest.mark.parametrize("seed", range(20))
def test_what_lives_together_lies_apart(seed):
    rng = random.Random(seed)
    values, tasks = [Value((1, 4, 32, 32))], []
    tasks.append(task(values[0]))
    for _ in range(40):
        out = Value((1, rng.choice([1, 4, 16]), rng.choice([8, 32, 64]), 32))
        tasks.append(task(out, *rng.sample(values, min(len(values), rng.randint(1, 3)))))
        values.append(out)
    layout = Layout(tasks, nbytes)
    check_apart(tasks, layout)
    assert max(layout.live) <= layout.nbytes <= 1.25 * max(layout.live)
    assert all(offset % memory.LINE == 0 for offset in layout.offsets.values())


def chain(kind, name, *more):
    """Tasks of which the second may overwrite the result of the first."""
    a, b, c = (Value(MAP) for _ in range(3))
    return a, b, [task(a), task(b, a, *more, kind=kind, name=name), task(c, b)]


@pytest.mark.parametrize(
    ("kind", "name"), [("dau_attention", "r"), ("conv3x3", "residual"), ("skff_select", "branches")]
)
def test_is_overwritten_by_what_replaces_it(kind, name):
    a, b, tasks = chain(kind, name)
    if kind == "skff_select":
        tasks[1].reads["branches"] = (tasks[1].reads["branches"],)
    layout = Layout(tasks, nbytes)
    assert layout.offsets[a] == layout.offsets[b]
    assert layout.nbytes == 2 * nbytes(a)


@pytest.mark.parametrize("why", ["read later", "another kernel", "another shape", "read twice", "outside"])
def test_is_not_overwritten(why):
    a, b, tasks = chain("conv1x1" if why == "another kernel" else "dau_attention", "r")
    if why == "read later":
        tasks.append(task(Value(MAP), a))
    if why == "another shape":
        b.shape = (1, 4, 32, 16)
        tasks[1].writes["out"] = whole(b)
    if why == "read twice":
        tasks[1].reads["x"] = whole(a)
    if why == "outside":
        a.outside = True
    layout = Layout(tasks, nbytes)
    assert a not in layout.offsets or layout.offsets[a] != layout.offsets[b]
    check_apart(tasks, layout)


@needs_kernels
@pytest.mark.parametrize("size", [16, 64, 128])
def test_the_peak_is_known_before_the_run(network, blocks, size):
    image = torch.rand(1, 3, size, size)
    with torch.no_grad():
        plan = engine.plan_of(network, image)
        assert not blocks
        network(image)
    (block,) = blocks
    assert len(block) >= plan.peak_bytes
    # Of the maps at full resolution seven are there at a time.
    assert 5 < plan.peak_bytes / (8 * size * size * 4) < (8 if size > 16 else 20)


def resident_kilobytes():
    fields = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return int(fields["Rss"].split()[0])


HAS_SMAPS = Path("/proc/self/smaps_rollup").exists()


class Planned:
    """As much of a Plan as a block asks for."""

    device, executor = torch.device("cpu"), cpu

    def __init__(self, peak_bytes):
        self.peak_bytes = peak_bytes


@pytest.mark.skipif(not HAS_SMAPS, reason="needs Linux's /proc")
def test_gives_memory_back_to_the_system(blocks, monkeypatch):
    monkeypatch.setattr(memory, "KEPT_BYTES", 2**26)
    before, plan = resident_kilobytes(), Planned(2**28)
    block = memory.take_block(plan)
    block.view(0, (2**26,), torch.float32, channels_last=False).zero_()
    assert resident_kilobytes() - before > 250 * 1024
    memory.give_back(block, plan)
    assert 60 * 1024 < resident_kilobytes() - before < 70 * 1024
    assert memory.kept_bytes() == engine.engine_stats().kept_bytes == 2**26
    blocks.clear()
    del block
    mirnet_fast.release_workspace()
    assert resident_kilobytes() - before < 8 * 1024
    assert memory.kept_bytes() == 0


def test_a_view_has_the_layout_of_a_map():
    block = Block(2**16)
    view = block.view(4096, (2, 3, 8, 16), torch.float32, channels_last=True)
    assert view.shape == (2, 3, 8, 16)
    assert view.is_contiguous(memory_format=torch.channels_last)
    assert view.data_ptr() == block._whole.data_ptr() + 4096
    assert block.view(0, (2, 3), torch.float64, channels_last=False).is_contiguous()


@needs_kernels
def test_is_kept_for_images_of_other_sizes(network, blocks):
    for size in (64, 32, 64, 48):
        image = torch.rand(1, 3, size, size)
        torch.testing.assert_close(forward(network, image), expected_of(network, image))
    assert len(blocks) == 1


@needs_kernels
def test_grows_with_the_image(network, blocks):
    for size in (32, 64):
        forward(network, torch.rand(1, 3, size, size))
    assert len(blocks) == 2
    assert memory._kept == blocks[1:]


@needs_kernels
def test_keeps_no_more_than_its_bound(network, blocks, monkeypatch):
    forward(network, torch.rand(1, 3, 64, 64))
    (block,) = blocks
    bound = block.touched // 2 // memory.PAGE * memory.PAGE
    monkeypatch.setattr(memory, "KEPT_BYTES", bound)
    for _ in range(2):
        image = torch.rand(1, 3, 64, 64)
        torch.testing.assert_close(forward(network, image), expected_of(network, image))
        assert memory.kept_bytes() == bound


@needs_kernels
def test_many_threads_share_the_bound(network, blocks, monkeypatch):
    image = torch.rand(1, 3, 64, 64)
    expected = expected_of(network, image)
    forward(network, image)
    bound = blocks[0].touched * 3 // 2 // memory.PAGE * memory.PAGE
    monkeypatch.setattr(memory, "KEPT_BYTES", bound)
    inside, take = threading.Barrier(4), memory.take_block

    def together(plan):
        block = take(plan)
        inside.wait()
        return block

    monkeypatch.setattr(memory, "take_block", together)
    with ThreadPoolExecutor(4) as pool:
        results = [*pool.map(lambda _: forward(network, image), range(4))]
    assert len(blocks) == len(memory._kept) == 4
    assert memory.kept_bytes() <= bound
    for result in results:
        torch.testing.assert_close(result, expected)


@needs_kernels
def test_release_during_a_forward(network, blocks):
    image = torch.rand(1, 3, 32, 32)
    expected = expected_of(network, image)
    dau = network.body[0].body[0].blocks[1][0]
    with dau.register_forward_hook(lambda *args: mirnet_fast.release_workspace()):
        torch.testing.assert_close(forward(network, image), expected)


@needs_kernels
def test_after_an_error(network, blocks, monkeypatch):
    image = torch.rand(1, 3, 32, 32)
    with monkeypatch.context() as patch:
        patch.setitem(vars(network.body[0].body[0].blocks[1][0]), "forward", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            forward(network, image)
    torch.testing.assert_close(forward(network, image), expected_of(network, image))
    assert sorted(map(id, memory._kept)) == sorted(map(id, blocks[-1:]))


@needs_kernels
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process_has_its_own(network):
    image, other = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # OpenMP's own threads do not survive a fork
    try:
        expected, wanted = forward(network, image), forward(network, other)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fork in a process with threads: what this is about
            child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(forward(network, other), wanted) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert torch.equal(forward(network, image), expected)
    finally:
        torch.set_num_threads(threads)


def test_a_system_without_large_pages(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    monkeypatch.delattr(mmap, "MADV_DONTNEED", raising=False)
    block = Block(2**16)
    block.touched = len(block)
    block.trim(0)
    assert block.touched == len(block) == 2**16
