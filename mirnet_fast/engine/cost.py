"""The cost model: what a task computes and moves at least, and how long it should take.

FLOPs are those of convolutions and matrix products, a multiplication and its addition two, as PyTorch's
FlopCounterMode counts them; what goes value by value is not the limit anywhere. Bytes are the floor: every
input and output once, weights once; an input that is needed for statistics first is read twice. Nothing
here is measured: times are predictions.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import cuda, eligibility, memory
from .devices import Device
from .graph import SUMS, Builder
from .schedule import Scheduler, Task, Window

# Products that Winograd's method makes of a plain convolution's, F(4x6, 3x3) up to 128 channels, else
# F(4x4, 3x3); and of a transposed one's, F(4, 2) on the axes with two taps.
_FEW_CHANNELS, _FEW, _MANY, _TRANSPOSED = 128, 48 / 216, 36 / 144, 81 / 144

# Layers that are applied to every pixel of the result, or to every fourth; the others are to one an image.
_PIXELS = {
    "conv1x1": {"conv": 1, "also": 1},
    "conv3x3": {"conv": 1},
    "convolution": {"conv": 1},
    "conv_transpose3x3": {"conv": 1 / 4},
    "dau_attention": {"spatial": 1, "fuse": 1},
    "residual_down_tail": {"top": 1, "bottom": 1},
    "residual_up_tail": {"conv": 1 / 4, "top": 1, "bottom": 1 / 4},
}
_BLUR = 3 * 3  # taps for each value of both maps that a residual_down_tail blurs

# Of a GPU: (share of the rate of a bare product, share of a copy's bandwidth) that a kernel reaches. Assumed,
# from what such kernels are known to reach; with as many channels as _WIDE a convolution reaches more.
_REACHED = {
    "conv1x1": (0.62, 0.85),
    "conv3x3": (0.62, 0.85),
    "residual_up_tail": (0.60, 0.85),
    "dau_attention": (0.50, 0.85),
    "residual_down_tail": (0.50, 0.80),
    "skff_select": (0.50, 0.90),
}
_OTHERS, _WIDE, _REACHED_WIDE = (0.5, 0.85), 128, 0.75
# Of a GPU: tiles (pixels, channels) that a multiprocessor multiplies at a time, and how well each does.
# Assumed.
_TILES = (((128, 256), 1.05), ((128, 128), 1.0), ((128, 64), 0.85), ((64, 64), 0.7))


@dataclass(frozen=True)
class Cost:
    """What a task costs at least.

    Attributes:
        flops: of the plain op.
        done: of these, what its kernel makes (Winograd's method makes fewer).
        nbytes: read and written.
        pixels, channels: the result's, over which a GPU spreads its work.
    """

    flops: int
    done: int
    nbytes: int
    pixels: int
    channels: int

    def floor(self, device: Device) -> float:
        """Seconds that no kernel of this method can undercut on a device."""
        return device.floor(self.done, self.nbytes)


def of(task: Task, itemsize: int, winograd: bool = False) -> Cost:
    """The Cost of a Task.

    Args:
        itemsize: bytes of a map's or weight's element.
        winograd: whether the device's own kernels for 3x3 convolutions go by Winograd's method.

    A module that is called counts as what it reads and writes: what it computes is not known.
    """
    out = task.writes["out"]
    pixels, channels = _pixels(out), out.value.shape[-1 if out.value.kind == SUMS else 1]
    known = {} if task.kind == "call" else task.layers
    weights = [(name, tuple(tensor.shape)) for name, tensor in _weights(known)]
    parts = products(task.kind, out.value.shape[0], pixels, weights)
    flops = sum(parts.values())
    done = dict(parts)
    if winograd and task.layers.get("by_kernels") and "conv" in parts and task.kind != "conv1x1":
        narrow = _FEW if task.reads["x"].value.shape[1] <= _FEW_CHANNELS else _MANY
        done["conv"] = round(parts["conv"] * (narrow if task.kind == "conv3x3" else _TRANSPOSED))
    nbytes = itemsize * sum(tensor.numel() for tensor in _parameters(task.layers))
    nbytes += sum(_nbytes(window, itemsize) for window in _windows(task.writes))
    for name, windows in task.reads.items():
        for window in _windows({name: windows}):
            nbytes += _passes(task, name) * _nbytes(_needed(task, window, out), itemsize)
    return Cost(flops, sum(done.values()), nbytes, pixels, channels)


def of_gathering(tasks: Sequence[Task], itemsize: int) -> Cost:
    """The Cost of a GPU's launch before Tasks: brings weights to the kernels' order, and clears sums.

    Args:
        itemsize: bytes of a weight's element.
    """
    gathered = {
        weight
        for task in tasks
        for name, weight in _weights(task.layers)
        if "also" in task.layers
        or (task.kind == "residual_up_tail" and name == "conv")
        or (task.kind == "conv3x3" and not weight.is_contiguous(memory_format=torch.channels_last))
    }
    values = sum(weight.numel() for weight in gathered)
    sums = {w.value: _nbytes(w, itemsize) for task in tasks for w in task.windows() if w.value.kind == SUMS}
    return Cost(0, 0, 2 * itemsize * values + sum(sums.values()), values, 1)


def products(
    kind: str, images: int, pixels: int, weights: Sequence[tuple[str, tuple[int, ...]]]
) -> dict[str, int]:
    """{layer: FLOPs} of an op.

    Args:
        kind: the op's name.
        images, pixels: of its result; the pixels of all images.
        weights: (layer, shape of its weight), the layer named as an argument of the graph's or of the op's.
    """
    parts: dict[str, int] = {}
    for argument, shape in weights:
        name = argument.removesuffix("_conv").removesuffix("_weight")
        name = "conv" if name == "weight" else name
        share = _PIXELS.get(kind, {}).get(name)
        applied = images if share is None else round(share * pixels)
        parts[name] = parts.get(name, 0) + 2 * applied * math.prod(shape)
        if kind == "residual_down_tail":
            parts[name] += 2 * applied * _BLUR * shape[1]
    return parts


def predicted(kind: str, cost: Cost, device: Device) -> float:
    """Seconds that a kernel of this kind should take: for its products or its bytes, and for its launch.

    On a GPU these take their assumed share of what the device reaches, and products fill its multiprocessors
    in whole tiles; on a CPU a kernel reaches what a bare product and a copy do.
    """
    of_rate = of_bandwidth = 1.0
    if device.processors:
        of_rate, of_bandwidth = _REACHED.get(kind, _OTHERS)
        if kind in ("conv1x1", "conv3x3") and cost.channels >= _WIDE:
            of_rate = _REACHED_WIDE
        of_rate *= _filled(cost, device.processors)
    return device.floor(cost.done / of_rate, cost.nbytes / of_bandwidth) + device.launch


def tasks_of_gpu(network: eligibility.Part, shape: Sequence[int], itemsize: int) -> tuple[list[Task], int]:
    """(the tasks of a forward, bytes of memory beyond weights, image and result) as a GPU should run it.

    Each task is one kernel: those that need gates or shares compute them. One more launch is before them
    all: `of_gathering`.

    Args:
        network: one that lowers itself; where its parameters are does not matter.
        shape: (N, C, H, W) of a channels_last image.

    Raises:
        ValueError: the shape is none for this network.
    """
    builder = Builder(eligibility.lowers)
    _, x = builder.input(shape, channels_last=True)
    result = network.lower(builder, x)
    result.outside = True
    scheduler = Scheduler(
        builder.steps, result, itemsize, lambda step: True, in_bands=cuda.IN_BANDS, joins=cuda.JOINS
    )
    tasks, layout = memory.arranged(scheduler)
    return tasks, layout.nbytes


def _filled(cost, processors):
    """The share of a GPU's rate that is left where the tiles of a result do not fill its multiprocessors."""
    best = 0.0
    for (rows, columns), quality in _TILES:
        if columns <= max(cost.channels, 64):
            tiles = math.ceil(cost.pixels / rows) * math.ceil(cost.channels / columns) / processors
            best = max(best, quality * tiles / math.ceil(tiles))
    return min(best, 1.0)


def _weights(layers: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in layers.items():
        for module in value if isinstance(value, tuple) else (value,):
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                yield name, module.weight


def _parameters(layers):
    for value in layers.values():
        for module in value if isinstance(value, tuple) else (value,):
            if isinstance(module, nn.Module):
                yield from module.parameters()


def _windows(arguments) -> Iterator[Window]:
    for value in arguments.values():
        yield from value if isinstance(value, tuple) else () if value is None else (value,)


def _passes(task, name):
    """How often an argument is read: twice where its statistics are not there yet."""
    wanted = {"dau_attention": ("r", "pooled"), "skff_select": ("branches", "sums")}.get(task.kind)
    return 2 if wanted and wanted[0] == name and not task.reads[wanted[1]] else 1


def _needed(task, window, out):
    """The rows of an argument that the rows of the result take; a Window may have more."""
    rows = out.end - out.begin
    if task.kind == "residual_up_tail":
        most = rows // 2 + 2
    elif "conv" in task.layers:
        most = rows + 2 * (task.layers["conv"].kernel_size[0] // 2)
    else:
        return window
    return Window(window.value, window.begin, min(window.end, window.begin + most))


def _pixels(window):
    if window.value.kind == SUMS:
        return 0
    n, _, _, width = window.value.shape
    return n * (window.end - window.begin) * width


def _nbytes(window, itemsize):
    if window.value.kind == SUMS:
        return 8 * (window.end - window.begin) * math.prod(window.value.shape[1:])
    return itemsize * window.value.shape[1] * _pixels(window)
