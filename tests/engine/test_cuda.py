"""Plans of a GPU's executor, in Triton's interpreter, with stand-ins for streams and CUDA graphs."""

import os
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import mirnet_fast
from mirnet_fast import engine, precision, reference
from mirnet_fast.engine import cost, cuda, memory, plan, schedule
from mirnet_fast.engine.bound import Bound

from ..cases import first_of
from .common import as_if_on_a_gpu

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs in Triton's interpreter; set TRITON_INTERPRET=1", allow_module_level=True)

SHAPE = {"height": 2, "width": 1, "stride": 2, "bias": False}

# What makes the host wait for a GPU, or the other way round.
WAITING = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero", "aten::equal"}


class Launches(TorchDispatchMode):
    """Counts what a GPU is given to do: Triton's kernels, which do not run, and PyTorch's operators."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.counts = Counter()
        launch = "triton.runtime.interpreter.GridExecutor.__call__"
        monkeypatch.setattr(launch, lambda kernel, *args, **kwargs: self.counts.update([kernel.fn.__name__]))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and "empty" not in func._schema.name:
            self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def gpu():
    with as_if_on_a_gpu() as standins, mirnet_fast.use_backend("triton"):
        yield standins


def unit(channels=16):
    """The smallest that has more than one step."""
    return varied(mirnet_fast.DAU(channels))


def varied(module):
    torch.manual_seed(0)
    module.eval()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return module


def image(channels=16, size=(4, 6), seed=1):
    return torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(seed))


def exact(module, x, **config):
    yardstick = getattr(reference, type(module).__name__)(x.shape[1], **config).double().eval()
    yardstick.load_state_dict(module.state_dict())
    with torch.no_grad(), mirnet_fast.use_backend("reference"):
        return yardstick(x.double())


def check(module, x, **config):
    with torch.no_grad():
        y = module(x)
    torch.testing.assert_close(y.double(), exact(module, x, **config), rtol=1e-4, atol=1e-4)
    return y


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_first_recorded_replayed(gpu, layout):
    module = unit()
    images = [image(seed=seed).contiguous(memory_format=layout) for seed in range(3)]
    results = [check(module, x) for x in images]
    assert (gpu.recorded.graphs, gpu.recorded.replays) == (1, 2)
    assert all(y.is_contiguous(memory_format=layout) for y in results)
    assert len({y.data_ptr() for y in results}) == 3  # none is the graph's own
    with torch.no_grad():
        assert torch.equal(module(images[0]), results[0])


@pytest.mark.exhaustive
def test_a_whole_block(gpu):
    module, x = varied(mirnet_fast.MSRB(16, **SHAPE)), image(size=(8, 12))
    for _ in range(3):
        check(module, x, **SHAPE)
    with torch.no_grad():
        planned = engine.plan_of(module, x)
    kinds = {task.kind for task in planned.tasks}
    assert kinds >= {"conv1x1", "conv3x3", "residual_down_tail", "residual_up_tail", "skff_select"}
    assert any(task.layers.get("also") for task in planned.tasks)
    assert (gpu.recorded.graphs, gpu.recorded.replays) == (1, 2)


# A small network, and the published one.
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "config_and_size", first_of([({"n_feat": 16, "n_RRG": 1, "n_MSRB": 1}, 256), ({}, 256), ({}, 1024)])
)
def test_each_task_is_one_launch(gpu, monkeypatch, config_and_size, layout):
    """And there is one more, before them; whatever the memory format of the weights.

    Beside the graph a run copies the image into it and the result out of it.
    """
    config, size = config_and_size
    with torch.device("meta"):
        network = mirnet_fast.MIRNet(**config).eval().half().to(memory_format=layout)
        x = torch.empty((1, 3, size, size), dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        planned = plan.Plan(network, x)
        bound = planned._bound(cuda.make_block(planned))
    bound.values |= dict.fromkeys(planned._inputs, x)
    with Launches(monkeypatch) as launches:
        Bound.run(bound)
    assert launches.counts.pop("gather_kernel") == 1
    assert not [name for name in launches.counts if name.startswith("aten")]
    assert launches.counts.total() == len(planned.tasks)
    tasks, peak_bytes = cost.tasks_of_gpu(network, x.shape, 2)
    assert (len(tasks), peak_bytes) == (len(planned.tasks), planned.peak_bytes)
    # The cost model leaves out slopes and the taps of gates.
    gathered = 2 * sum(t.nbytes for t in bound._packed) + bound._sums.nbytes
    assert cost.of_gathering(tasks, 2).nbytes == pytest.approx(gathered, rel=0.02)


@pytest.mark.parametrize("convolutions", ["cudnn", "triton"])
def test_nothing_waits(gpu, monkeypatch, convolutions):
    monkeypatch.setattr(cuda.backends, "convolution", lambda *convolution: convolutions)
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    module, x = varied(mirnet_fast.ResidualUpSample(16)), image()
    check(module, x)
    with torch.no_grad(), Watch():
        module(x)
        recording = len(seen)
        module(x)
    assert ("aten::convolution" in seen[:recording]) == (convolutions == "cudnn")
    assert not WAITING & {*seen[:recording]}
    assert not WAITING & {*seen[recording:]}


@pytest.mark.parametrize("last", [False, True])
def test_values_changed_in_place(gpu, last):
    module, x = unit(), image()
    if last:
        module.to(memory_format=torch.channels_last)
    for _ in range(2):
        check(module, x)
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(1.1)
    check(module, x)
    for p in module.parameters():
        p.data.mul_(0.9)
    check(module, x)
    assert gpu.recorded.graphs == 1


def test_time_of_each_task(gpu, monkeypatch):
    class Event:
        """Of a clock that an event takes a millisecond of."""

        count = 0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.time = Event.count = Event.count + 1

        def elapsed_time(self, later):
            return later.time - self.time

    for name, value in (("Event", Event), ("synchronize", lambda: None), ("_sleep", lambda cycles: None)):
        monkeypatch.setattr(torch.cuda, name, value)
    module, x = unit(), image()
    expected = check(module, x)
    with torch.no_grad():
        planned = engine.plan_of(module, x)
        assert planned.timed([x]) == [1e-3] * len(planned.tasks)
        assert torch.equal(module(x), expected)


def test_values_that_moved(gpu):
    module, x = unit(), image()
    for _ in range(2):
        check(module, x)
    for p in module.parameters():
        p.data = 1.1 * p.data
    for _ in range(2):
        check(module, x)
    assert gpu.recorded.graphs == 2


@pytest.mark.exhaustive
def test_products_in_tf32_are_another_plan(gpu, monkeypatch):
    module, x = unit(), image()
    with torch.no_grad():
        before = engine.plan_of(module, x)
        monkeypatch.setattr(cuda._kernel("_common"), "product_precision", lambda: "tf32x3")
        assert engine.plan_of(module, x) is not before


def test_a_recording_of_the_callers(gpu, monkeypatch):
    module, x = unit(), image()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with torch.no_grad():
        assert engine.plan_of(module, x) == "a CUDA graph is being recorded"


def test_code_of_others_is_not_recorded(gpu):
    class Doubled(nn.Module):
        def forward(self, x):
            return 2 * x

    group, x = varied(mirnet_fast.RRG(16, n_MSRB=1, **SHAPE)), image()
    group.body[0] = Doubled()
    with torch.no_grad():
        first, second, third = (group(x) for _ in range(3))
    assert torch.equal(first, second) and torch.equal(first, third)
    assert gpu.recorded.graphs == 0
    assert engine.engine_stats().runs


@pytest.mark.exhaustive
def test_one_after_the_other(gpu):
    module, x = unit(), image()
    for _ in range(3):
        check(module, x)
    assert len(gpu.stream.waited) == 2
    (kept,) = memory._kept
    assert len(kept) == engine.engine_stats().kept_bytes > 0


def test_runs_at_a_time_have_a_block_each(gpu):
    # Not in threads, which Triton's interpreter does not bear.
    module, x = unit(), image()
    expected = check(module, x)
    with torch.no_grad():
        planned = engine.plan_of(module, x)
        held = memory.take_block(planned)
        assert torch.equal(module(x), expected)
        memory.give_back(held, planned)
        assert len(memory._kept) == 2
        assert torch.equal(module(x), expected)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(gpu, dtype):
    module, x = unit().to(dtype), image().to(dtype)
    expected = exact(module.float(), x.float())
    module.to(dtype)
    with torch.no_grad():
        results = [module(x) for _ in range(3)]
    error = (results[0].double() - expected).norm() / expected.norm()
    assert error < (2e-2 if dtype == torch.bfloat16 else 3e-3)
    torch.testing.assert_close(results[2], results[0])


@pytest.mark.parametrize("convolutions", first_of(["cudnn", "triton"]))
def test_weights_in_float32_and_a_graph_in_half_precision(gpu, monkeypatch, convolutions):
    monkeypatch.setattr(cuda.backends, "convolution", lambda *convolution: convolutions)
    config = {"n_feat": 16, "n_RRG": 1, "n_MSRB": 0}
    network = varied(mirnet_fast.MIRNet(3, **config))
    for seed in range(4):
        if seed == 3:
            for p in network.parameters():
                p.data.mul_(1.5)
        x = image(3, (8, 8), seed)
        with torch.no_grad():
            change = precision.run(network, x, "fp16") - x
        error = change - (exact(network, x, **config) - x)
        assert error.norm() < 3e-3 * change.norm()
    assert (gpu.recorded.graphs, gpu.recorded.replays) == (1, 3)


@pytest.mark.exhaustive
def test_no_memory(gpu, monkeypatch):
    module, x = unit(), image()
    expected = check(module, x)
    mirnet_fast.release_workspace()

    def refuse(plan):
        raise MemoryError

    monkeypatch.setattr(cuda, "make_block", refuse)
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernels", ["conv1x1", "conv3x3", "conv_transpose3x3"])
def test_where_cudnn_is_faster(gpu, monkeypatch, kernels, layout):
    module, x = varied(mirnet_fast.ResidualUpSample(16)), image().contiguous(memory_format=layout)
    monkeypatch.setattr(
        cuda.backends, "convolution", lambda op, *args: "triton" if op == kernels else "cudnn"
    )
    for _ in range(2):
        check(module, x)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cls", [mirnet_fast.ResidualUpSample, mirnet_fast.ResidualDownSample])
def test_sampling(gpu, cls, bias):
    module = varied(cls(16, bias=bias))
    for _ in range(2):
        check(module, image(), bias=bias)


def test_tables_of_a_graph_are_held(gpu, monkeypatch):
    module = varied(mirnet_fast.ResidualDownSample(16))
    check(module, image())
    # As if they were no longer kept, for those of many other sizes.
    monkeypatch.setattr(cuda._kernel("residual_down_tail"), "blur_table", None)
    for _ in range(2):
        check(module, image())


class Fusing(nn.Module):
    """An SKFF of what is enlarged once, of another or of its map as it is, and of what is enlarged twice.

    [(N, 16, 2H, 2W), (N, 32, H, W), (N, 64, H / 2, W / 2)] -> (N, 16, 2H, 2W), the last two or all of them;
    where `sums` are to be left, the first is (N, 32, H, W).
    """

    def __init__(self, library, streams, sums):
        super().__init__()
        up, config = library.ResidualUpSample, {"bias": True}
        self.first = up(32, **config) if sums else None
        self.ups = nn.ModuleList([nn.ModuleList([up(32, **config)]), nn.ModuleList([up(64), up(32)])])
        self.ups = self.ups[: streams - 1]
        self.skff = library.SKFF(16, height=streams)

    def lower(self, builder, maps):
        def applied(layers, x):
            for layer in layers:
                x = layer.lower(builder, x)
            return x

        first, *others = maps
        branches = [applied([self.first] if self.first else [], first)]
        branches += map(applied, self.ups, others)
        return self.skff.lower(builder, tuple(branches))

    def forward(self, maps):
        first, *others = maps
        ups = [nn.Sequential(*layers)(x) for layers, x in zip(self.ups, others, strict=True)]
        return self.skff([self.first(first) if self.first else first, *ups])


@pytest.fixture
def in_bands(monkeypatch):
    """What can be late is, if that saves as little as it may here; then every joined up tail is in bands."""
    for module, name, value in ((schedule, "LATE_BYTES", 0), (schedule, "TILE", 1), (memory, "PAGE", 64)):
        monkeypatch.setattr(module, name, value)


# The height of the map that is enlarged once: bands of 2 or 3 rows, which begin and end at odd ones too.
@pytest.mark.parametrize(
    "case",
    first_of([(3, True, 2, 6), (3, False, 1, 10), (3, True, 3, 6), (3, False, 3, 6), (2, True, 3, 5)], 2),
)
def test_in_bands(gpu, in_bands, monkeypatch, case):
    streams, sums, batch, height = case
    module, exact = (Fusing(library, streams, sums).eval() for library in (mirnet_fast, reference))
    varied(module)
    exact.double().load_state_dict(module.state_dict())
    width, generator = 6, torch.Generator().manual_seed(1)
    shapes = [(32, height, width) if sums else (16, 2 * height, 2 * width), (32, height, width)]
    shapes += [(64, height // 2, width // 2)]
    maps = [torch.randn((batch, *shape), generator=generator) for shape in shapes[:streams]]
    maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    with torch.no_grad():
        expected = exact([x.double() for x in maps])
        planned = plan.Plan(module, maps)
        block = cuda.make_block(planned)
        block._whole.fill_(255)  # NaN
        monkeypatch.setattr(memory, "take_block", lambda plan: block)
        result = planned.run(maps)
        monkeypatch.setattr(schedule, "LATE_BYTES", 2**40)
        whole = plan.Plan(module, maps)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    kinds = Counter(task.kind for task in planned.tasks)
    bands = -(-height // -(-height // 4)) if streams == 3 else 1
    assert kinds["skff_select"] == bands
    assert kinds["skff_pool"] == (0 if sums else 1 + bands)
    assert len(whole.tasks) == 2 * (sums + (1 if streams == 2 else 3)) + 1
    if bands > 1:
        assert any(task.writes["out"].end % 2 for task in planned.tasks if task.kind == "conv1x1")
        assert planned.peak_bytes < whole.peak_bytes
    else:
        assert len(planned.tasks) == len(whole.tasks)


@pytest.mark.exhaustive
def test_a_block_in_bands(gpu, in_bands):
    config = SHAPE | {"height": 3, "width": 2}
    module, x = varied(mirnet_fast.MSRB(16, **config)), image(size=(20, 12))
    check(module, x, **config)
    with torch.no_grad():
        kinds = Counter(task.kind for task in engine.plan_of(module, x).tasks)
    assert kinds["residual_up_tail"] > 3 * 7 and kinds["skff_select"] > 4
