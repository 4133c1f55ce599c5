"""The cost model against counts by hand and PyTorch's own counter; predictions; the devices' figures."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mirnet_fast
from mirnet_fast import measure, reference
from mirnet_fast.engine import cost, devices, schedule
from mirnet_fast.engine.graph import SUMS, Builder
from mirnet_fast.engine.schedule import Scheduler

from ..ops.common import needs_kernels
from .common import forward, image_of, planned

# Of the published network at 256 x 256: (channels, pixels) of the three streams.
STREAMS = ((64, 256 * 256), (128, 128 * 128), (256, 64 * 64))
BLOCKS = 6  # MSRBs
HALF = 2  # bytes


def on_meta(cls=mirnet_fast.MIRNet, **arguments):
    with torch.device("meta"):
        return cls(**arguments)


def tasks_of(lower, *shapes, in_bands=False, itemsize=HALF):
    """The tasks for lower(builder, value, ...) of maps of these shapes."""
    builder = Builder(lambda module: True)
    values = [builder.input(shape, channels_last=True)[1] for shape in shapes]
    result = lower(builder, *values)
    return Scheduler(builder.steps, result, itemsize, lambda step: True, in_bands).tasks()


def costs_of(*args, winograd=False, **options):
    """{kind: Cost} of tasks of different kinds."""
    tasks = tasks_of(*args, **options)
    costs = {task.kind: cost.of(task, HALF, winograd) for task in tasks}
    assert len(costs) == len(tasks)
    return costs


def conv3x3(c):
    return 2 * 9 * c * c


def test_a_convolution():
    layer, slope = nn.Conv2d(64, 64, 3, padding=1, bias=False, device="meta"), nn.PReLU(device="meta")
    found = costs_of(lambda builder, x: builder.conv(layer, x, slope), (1, 64, 256, 256))["conv3x3"]
    assert found.flops == found.done == 2 * 9 * 64 * 64 * 65536 == 4831838208
    assert found.nbytes == HALF * (2 * 64 * 65536 + 9 * 64 * 64 + 1)
    assert (found.pixels, found.channels) == (65536, 64)


@pytest.mark.parametrize(("channels", "share"), [(128, 48 / 216), (256, 36 / 144)])
def test_winograd_makes_fewer_products(channels, share):
    layer = nn.Conv2d(channels, channels, 3, padding=1, device="meta")

    def lower(builder, x):
        return builder.conv(layer, x)

    found = costs_of(lower, (2, channels, 8, 8), winograd=True)["conv3x3"]
    assert found.flops == 2 * 64 * conv3x3(channels)
    assert found.done == pytest.approx(share * found.flops, abs=1)
    [task] = tasks_of(lower, (2, channels, 8, 8))
    task.layers["by_kernels"] = False
    assert cost.of(task, HALF, winograd=True).done == found.flops


def test_a_dau():
    unit, c, p = on_meta(mirnet_fast.DAU, n_feat=32), 32, 8 * 16
    tasks = tasks_of(lambda builder, x: unit.lower(builder, x), (3, c, 8, 16))
    assert [task.kind for task in tasks] == ["conv3x3", "conv3x3", "dau_attention"]
    found = cost.of(tasks[-1], HALF)
    gates = 3 * 2 * (c * c // 8 + c // 8 * c)
    assert found.flops == 3 * p * (2 * 25 * 2 + 2 * 2 * c * c) + gates
    weights = 50 + 2 * c * c // 8 + 2 * c * c
    # r, x and the result; maximum and mean of a pixel; sums in float64.
    assert found.nbytes == HALF * (3 * (3 * c + 2) * p + weights) + 8 * 3 * c
    # The second convolution leaves the statistics.
    written = HALF * 3 * 2 * p + 8 * 3 * c
    assert cost.of(tasks[1], HALF).nbytes == HALF * (2 * 3 * c * p + 9 * c * c) + written


def test_statistics_that_nobody_left_are_a_second_pass():
    select, unit = on_meta(mirnet_fast.SKFF, in_channels=32, height=3), on_meta(mirnet_fast.DAU, n_feat=32)
    shape, one = (1, 32, 8, 8), HALF * 32 * 64
    found = costs_of(lambda builder, *x: select.lower(builder, x), shape, shape, shape)["skff_select"]
    assert found.nbytes == (2 * 3 + 1) * one + HALF * (4 * 32 * 4 + 1)
    assert found.flops == 2 * 4 * 32 * 4

    def attend(builder, r, x):
        squeeze, _, excite, _ = unit.CA.conv_du
        layers = {"spatial": unit.SA.spatial.conv, "squeeze": squeeze, "excite": excite}
        return builder.dau_attention(r, x, **layers, fuse=unit.conv1x1)

    found = costs_of(attend, shape, shape)["dau_attention"]
    assert found.nbytes == 4 * one + HALF * (50 + 2 * 32 * 4 + 2 * 32 * 32)


def test_a_residual_down():
    down, c, p = on_meta(mirnet_fast.ResidualDownSample, in_channels=16), 16, 12 * 8
    found = costs_of(lambda builder, x: down.lower(builder, x), (1, c, 12, 8))
    assert found["conv1x1"].flops == p * 2 * c * c and found["conv3x3"].flops == p * conv3x3(c)
    tail = found["residual_down_tail"]
    assert tail.flops == p // 4 * (2 * (2 * c) * (2 * c) + 2 * 2 * 9 * c)
    # Both maps, and half of one.
    assert tail.nbytes == HALF * (2 * c * p + c * p // 2 + 2 * 2 * c * c + 1)


@pytest.mark.parametrize("winograd", [False, True])
def test_a_residual_up(winograd):
    up, c, p = on_meta(mirnet_fast.ResidualUpSample, in_channels=16), 16, 12 * 8
    found = costs_of(lambda builder, x: up.lower(builder, x), (1, c, 12, 8), winograd=winograd)
    tail = found["residual_up_tail"]
    transposed, products = p * conv3x3(c), 4 * p * 2 * c * c // 2 + p * 2 * c * c // 2
    assert tail.flops == transposed + products
    assert tail.done == (round(81 / 144 * transposed) if winograd else transposed) + products
    # The map of the transposed convolution is nowhere.
    assert tail.nbytes == HALF * (2 * c * p + 4 * p * c // 2 + 9 * c * c + c * c + 1)


def test_bands_cost_what_they_do(monkeypatch):
    first, second = (nn.Conv2d(8, 8, 3, padding=1, bias=False, device="meta") for _ in range(2))
    monkeypatch.setattr(schedule, "BAND_BYTES", HALF * 8 * 16 * 16)  # 16 rows of 64

    def lower(builder, x):
        return builder.conv(second, builder.conv(first, x))

    tasks = tasks_of(lower, (1, 8, 64, 16), in_bands=True)
    assert len(tasks) == 8 and len(tasks_of(lower, (1, 8, 64, 16))) == 2
    made = [cost.of(task, HALF) for task in tasks]
    row = 16 * conv3x3(8)
    # The first makes the rows beside a band as well, and reads those beside these.
    assert [c.flops for c in made[::2]] == [17 * row, 18 * row, 18 * row, 17 * row]
    assert [c.flops for c in made[1::2]] == [16 * row] * 4
    assert [c.nbytes for c in made[2:4]] == [
        HALF * (8 * 16 * rows + 9 * 8 * 8) for rows in (20 + 18, 18 + 16)
    ]


def test_the_published_network_by_hand():
    """Each part counted from the paper's figures, with what is shared computed once."""
    dau = [p * (2 * conv3x3(c) + 2 * 25 * 2 + 4 * c * c) + 2 * 2 * c * c // 8 for c, p in STREAMS]
    skff = [2 * (1 + 3) * c * max(c // 8, 4) for c, _ in STREAMS]
    # 1x1, 3x3, then at a quarter of the pixels two blurs and two 1x1 to twice the channels.
    down = [p * (2 * c * c + conv3x3(c)) + p // 4 * (2 * 2 * 9 * c + 8 * c * c) for c, p in STREAMS[:2]]
    # 1x1 and 3x3 of each pixel; to half the channels 1x1 of four times as many, and 1x1 before the bilinear.
    up = [p * (2 * c * c + conv3x3(c)) + (4 + 1) * p * c * c for c, p in STREAMS[1:]]
    # From stream 0 once to stream 1 and, by weights of its own, to stream 2, from stream 1 once.
    downs = down[0] + (down[0] + down[1]) + down[1]
    # Up: 1 to 0 and 2 to 1, in the column; 2 to 0; and at the end 1 and 2 to 0.
    ups = up[0] + up[1] + (up[1] + up[0]) + up[0] + (up[1] + up[0])
    last = STREAMS[0][1] * conv3x3(64)
    block = 2 * sum(dau) + sum(skff) + skff[0] + downs + ups + last
    expected = BLOCKS * block + 3 * last + 2 * STREAMS[0][1] * 2 * 9 * 3 * 64

    tasks, peak_bytes = cost.tasks_of_gpu(on_meta(), (1, 3, 256, 256), HALF)
    costs = [cost.of(task, HALF) for task in tasks]
    assert sum(c.flops for c in costs) == expected
    # Twice the 426.6 G multiply-adds of the design, and of these the two blurs, the gates and the like.
    assert expected == pytest.approx(2 * 426.6e9, rel=0.01)
    # A block's steps: DAUs 3 each, SKFFs, downs 3 each, ups 2 each, the last convolution.
    steps = BLOCKS * (2 * 3 * 3 + 4 + 3 * 4 + 2 * 7 + 1) + 3 + 2
    assert len(tasks) == steps == 299
    largest = HALF * 64 * 65536
    assert 4 * largest < peak_bytes < 8 * largest


# (shape, launches at most, GB for a million pixels, ms of an H200), in float16.
@pytest.mark.parametrize(
    ("shape", "launches", "memory", "time"),
    [
        ((1, 3, 256, 256), 300, 0.833, 2.76),
        ((1, 3, 512, 512), 300, 0.833, 9.36),
        ((8, 3, 256, 256), 300, 0.833, 18.23),
        ((1, 3, 1024, 1024), 585, 0.745, 37.2),
        ((1, 3, 1036, 1036), 585, 0.745, 40),
        ((1, 3, 2048, 2048), 585, 0.745, 145),
    ],
)
def test_what_the_published_network_takes_on_a_gpu(shape, launches, memory, time):
    """Whole maps, one launch a step; of large ones not all are whole, as launches are little there."""
    tasks, peak_bytes = cost.tasks_of_gpu(on_meta(), shape, HALF)
    assert 1 + len(tasks) <= launches
    assert peak_bytes / (1000 * shape[0] * shape[2] * shape[3]) < memory
    gpu = devices.published("H200", torch.float16)
    seconds = [cost.predicted(task.kind, cost.of(task, HALF), gpu) for task in tasks]
    seconds.append(cost.predicted("gather", cost.of_gathering(tasks, HALF), gpu))
    assert 1e3 * sum(seconds) < time


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_weights_that_are_brought_to_order(layout):
    """Those of 3x3 convolutions, and of the residual up-samplings all but the last, in any layout."""
    network, shape = on_meta().to(memory_format=layout), (1, 3, 256, 256)
    tasks, _ = cost.tasks_of_gpu(network, shape, HALF)
    # As `test_the_published_network_by_hand` has them: four of 128 channels and three of 256.
    ups = sum(count * (9 * c * c + c * c + c * c // 2) for count, c in ((4, 128), (3, 256)))
    conv = 2 * (2 * 64**2 + 2 * 128**2) // 2 + 64**2 + 2 * sum(c * c for c, _ in STREAMS)
    others = BLOCKS * 9 * conv + 9 * (3 * 64**2 + 2 * 3 * 64)
    values = BLOCKS * ups + (others if layout == torch.contiguous_format else 0)
    found = cost.of_gathering(tasks, HALF)
    sums = 8 * sum(
        math.prod(v.shape) for v in {w.value for t in tasks for w in t.windows()} if v.kind == SUMS
    )
    assert found.nbytes == 2 * HALF * values + sums
    assert found.flops == 0 and sums > 8 * BLOCKS * 6 * 64


@pytest.mark.parametrize("shape", [(1, 3, 32, 48), (2, 3, 16, 16)])
def test_torch_counts_the_same_but_for_what_is_computed_once(shape):
    """Convolutions and products of the reference, less what rewriting saves of them."""
    arguments = {"n_feat": 16, "n_RRG": 2, "n_MSRB": 1}
    with FlopCounterMode(display=False) as counter:
        on_meta(reference.MIRNet, **arguments)(torch.empty(shape, device="meta"))
    tasks, _ = cost.tasks_of_gpu(on_meta(**arguments), shape, 4)
    n, pixels = shape[0], shape[2] * shape[3]
    streams = [(16, n * pixels), (32, n * pixels // 4), (64, n * pixels // 16)]
    # What the second column asks for again: the halves of streams 0 and 1.
    again = sum(p * (2 * c * c + conv3x3(c)) + p // 4 * (2 * 2 * 9 * c + 8 * c * c) for c, p in streams[:2])
    # The 1x1 after the bilinear enlargement, moved before it: of four times the pixels, three.
    moved = [3 * p * c * c for c, p in streams[1:]]
    saved = again + 4 * moved[0] + 3 * moved[1]
    assert sum(cost.of(task, 4).flops for task in tasks) == counter.get_total_flops() - 2 * saved


def test_a_module_that_is_called_is_what_it_reads_and_writes():
    layer = nn.Conv2d(8, 8, 3, padding=1, device="meta")
    builder = Builder(lambda module: False)
    _, x = builder.input((1, 8, 4, 4), channels_last=True)
    y = builder.apply(layer, x)
    [task] = Scheduler(builder.steps, y, 4, lambda step: True).tasks()
    found = cost.of(task, 4)
    assert found.flops == 0 and found.nbytes == 4 * (2 * 8 * 16 + 9 * 64 + 8)


@needs_kernels
def test_a_plan_of_the_cpu_has_costs_and_times(network):
    plan = planned(network, image_of(32))
    costs = [cost.of(task, 4, winograd=True) for task in plan.tasks]
    assert sum(c.done for c in costs) < sum(c.flops for c in costs)
    tasks, _ = cost.tasks_of_gpu(network, (1, 3, 32, 32), 4)
    assert sum(c.flops for c in costs) == sum(cost.of(task, 4).flops for task in tasks)
    expected = forward(network, image_of(32))
    with torch.no_grad():
        seconds = plan.timed([image_of(32)])
        assert torch.equal(plan.run([image_of(32)]), expected)
    assert len(seconds) == len(plan.tasks) and all(second > 0 for second in seconds)


CPU = devices.Device("a CPU", rate=1e9, bandwidth=1e8, launch=0.5)


def test_prediction_on_a_cpu():
    products, bytes_ = cost.Cost(4 * 10**9, 2 * 10**9, 1, 64, 64), cost.Cost(1, 1, 3 * 10**8, 64, 64)
    assert products.floor(CPU) == 2 and bytes_.floor(CPU) == 3
    assert cost.predicted("conv3x3", products, CPU) == 2.5
    assert cost.predicted("skff_select", bytes_, CPU) == 3.5


def test_prediction_on_a_gpu():
    gpu = devices.Device("a GPU", rate=1e12, bandwidth=1e12, launch=0, processors=100)

    def of_rate(kind, pixels, channels):
        """The share of the rate that products reach."""
        return 1 / cost.predicted(kind, cost.Cost(10**12, 10**12, 0, pixels, channels), gpu)

    whole, wide = 128 * 100 * 50, 0.75
    assert of_rate("conv3x3", whole, 128) == pytest.approx(wide)
    assert of_rate("conv3x3", whole, 64) == pytest.approx(0.62 * 0.85)  # of narrow tiles
    assert of_rate("residual_up_tail", whole, 128) == pytest.approx(0.60)
    # One tile more than there are multiprocessors takes nearly twice the time; few leave most idle.
    assert of_rate("conv3x3", 128 * 101, 128) < 0.6 * wide
    assert of_rate("conv3x3", 64 * 10, 64) == pytest.approx(0.62 * 0.7 * 0.1)
    moved = cost.Cost(0, 0, 10**12, whole, 64)
    assert cost.predicted("skff_select", moved, gpu) == pytest.approx(1 / 0.9)
    assert cost.predicted("aten_add", moved, gpu) > moved.floor(gpu) == 1


def test_figures_of_data_sheets():
    hopper = devices.published("H200", torch.float16)
    assert hopper == devices.published("H200", torch.bfloat16)
    assert hopper.rate == pytest.approx(0.8 * 989.5e12) and hopper.bandwidth == pytest.approx(0.9 * 4.8e12)
    for name in devices.GPUS:
        halves, singles = (devices.published(name, dtype) for dtype in (torch.float16, torch.float32))
        assert 1.9 < halves.rate / singles.rate < 2.1 and halves.bandwidth == singles.bandwidth
        assert 50 < halves.rate / halves.bandwidth < 500 and halves.processors > 100
    with pytest.raises(ValueError, match="no figures for 'abacus'; there are for H200, H100"):
        devices.published("abacus", torch.float16)
    with pytest.raises(ValueError, match=r"no figures for torch.float64; there are for torch.float16"):
        devices.published("H200", torch.float64)


@pytest.mark.parametrize(
    ("dtype", "has", "computed"),
    [
        (torch.float32, True, torch.float32),
        (torch.bfloat16, True, torch.bfloat16),
        (torch.bfloat16, False, torch.float32),
        (torch.float16, True, torch.float32),
    ],
)
def test_this_cpu_is_measured(monkeypatch, dtype, has, computed):
    asked = set()

    def product_rate(side, device, dtype, rounds):
        asked.add(dtype)
        return next(rates)

    rates = iter([3.0, 7.0, 5.0, 1.0, 2.0, 4.0, 6.0])
    monkeypatch.setattr(measure, "product_rate", product_rate)
    monkeypatch.setattr(measure, "copy_bandwidth", lambda nbytes, device, rounds: 5.0)
    monkeypatch.setattr(devices.backends, "cpu_computes", lambda dtype: has)
    found = devices.measured(torch.device("cpu"), dtype)
    assert asked == {computed}
    assert (found.rate, found.bandwidth, found.processors) == (7.0, 5.0, 0)
    assert 0 < found.launch < 1e-2 and math.isfinite(found.launch)
