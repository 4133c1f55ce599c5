"""Measure better launch options for the GPU at hand: python -m mirnet_fast.kernels.tune

For every op and convolution, dtype and number of channels of the published network, forward and backward,
or with what is fused behind a convolution, the kernels that run are taken in turn: a handful of variants
of the present options of one, the others as they are, the whole call timed. What is clearly faster goes
to a table in the user's cache, which later processes read. The options do not depend on the image size.
"""

import argparse
import importlib
import json
from functools import partial
from pathlib import Path

import torch
import triton

from mirnet_fast._files import replaced

from . import _configs
from ._convolution import packed
from .conv1x1 import conv1x1
from .conv3x3 import conv3x3
from .conv_transpose3x3 import conv_transpose3x3, residual_up_tail_of_conv

CONVOLUTIONS = ("conv1x1", "conv3x3", "conv_transpose3x3")
CHANNELS = (64, 128, 256)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
OPS = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem != "tune")
GAIN = 0.97  # of the time so far: less is noise


def variants(options):
    """A short list of neighbours of these options, themselves first."""
    result = [options]

    def add(**changes):
        changed = options | changes
        if changed not in result and 1 <= changed["num_warps"] <= 8:
            result.append(changed)

    warps = options["num_warps"]
    add(num_warps=2 * warps)
    add(num_warps=warps // 2)
    if "TH" in options:
        for height in (options["TH"] // 2, 2 * options["TH"]):
            if 2 <= height <= 16:
                add(TH=height)
                add(TH=height, num_warps=warps * height // options["TH"])
    for stages in (2, 3, 4):
        if "num_stages" in options:
            add(num_stages=stages)
    return result


class Draw:
    """Random arguments of so many channels: maps of side x side pixels, or of `size` x `size`."""

    def __init__(self, channels, dtype, side, device):
        self.channels, self.dtype, self.side, self.device = channels, dtype, side, device
        self.generator = torch.Generator(device).manual_seed(0)

    def tensor(self, *shape):
        return torch.randn(shape, generator=self.generator, device=self.device).to(self.dtype)

    def image(self, channels=None, size=None):
        size = size or self.side
        drawn = self.tensor(1, channels or self.channels, size, size)
        return drawn.contiguous(memory_format=torch.channels_last)

    def weight(self, rows, columns, taps=1):
        return self.tensor(rows, columns, taps, taps) / (columns * taps**2) ** 0.5


def _draw(channels, dtype, side, device):
    return Draw(channels, dtype, side or 512 * 64 // channels, device)


def arguments(op, channels, dtype, side=None, device="cuda"):
    """What the op gets in the stream with so many channels of a 512 x 512 image, or of `side` x `side`."""
    draw = _draw(channels, dtype, side, device)
    image, weight = draw.image, draw.weight
    c, d, slope = channels, max(channels // 8, 4), draw.tensor(1)
    if op == "blur_pool":
        return image(), 3, "reflect", 2, 0
    if op == "skff_select":
        branches = [image() for _ in range(3)]
        return branches, weight(d, c), None, slope, [weight(c, d) for _ in range(3)], []
    if op == "dau_attention":
        gates = weight(1, 2, 5), weight(c // 8, c), None, weight(c, c // 8), None
        return image(), image(), *gates, weight(c, 2 * c), None
    if op == "residual_down_tail":
        return image(), image(), slope, weight(2 * c, c), None, weight(2 * c, c), None
    half = weight(c // 2, c), None, weight(c // 2, c), None
    return image(), image(size=draw.side // 2), slope, *half


def calls(op, channels, dtype, side=None, device="cuda"):
    """{direction: call without arguments}, as in `arguments`; of a convolution {what is fused: call}."""
    if op in CONVOLUTIONS:
        return _of_convolution(op, _draw(channels, dtype, side, device))
    return calls_with(op, arguments(op, channels, dtype, side, device))


def calls_with(op, args):
    """{direction: call without arguments} of an op that is none of the convolutions."""
    module = importlib.import_module(f"mirnet_fast.kernels.{op}")
    forward, backward = getattr(module, op), getattr(module, f"{op}_backward")
    grad = torch.randn_like(forward(*args))
    kept = [args[0], *args[2:]] if op == "dau_attention" else args  # x is only added
    return {"forward": partial(forward, *args), "backward": partial(backward, grad, *kept)}


def _of_convolution(op, draw):
    c, x, slope = draw.channels, draw.image(), draw.tensor(1)
    if op == "conv1x1":
        return {"slope": partial(conv1x1, draw.image(), x, packed(draw.weight(c, c)), None, slope)}
    taps = packed(draw.weight(c, c, 3)), None
    if op == "conv3x3":
        pooled = torch.empty((1, 2, draw.side, draw.side), device=draw.device)
        first, last = packed(draw.weight(c, 3, 3)), packed(draw.weight(3, c, 3))
        return {
            "slope": partial(conv3x3, draw.image(), x, *taps, slope),
            "residual": partial(conv3x3, draw.image(), x, *taps, None, draw.image()),
            "statistics": partial(conv3x3, draw.image(), x, *taps, None, None, pooled, _sums(x)),
            "from_image": partial(conv3x3, draw.image(), draw.image(3), first),
            "to_image": partial(conv3x3, draw.image(3), x, last, None, None, draw.image(3)),
        }
    out, small, tail = draw.image(c // 2, 2 * draw.side), draw.image(c // 2), draw.weight(c // 2, c)
    whole = draw.image(size=2 * draw.side)
    return {
        "slope": partial(conv_transpose3x3, whole, x, *taps, slope),
        "tail": partial(residual_up_tail_of_conv, out, x, *taps, small, slope, tail, None, 0, _sums(small)),
    }


def _sums(x):
    return torch.zeros(x.shape[:2], dtype=torch.float64, device=x.device)


def input_of(op, direction, call):
    """The map by whose dtype and channels the kernels of a call have their options."""
    first, second, *_ = call.args
    if op in CONVOLUTIONS or direction == "backward":
        first = second
    return first[0] if isinstance(first, list) else first


def tune_call(call, x, time=None):
    """{entry: options} for the kernels of one call that can be improved."""
    time = time or (lambda function: triton.testing.do_bench(function, return_mode="median"))
    _configs.asked.clear()
    call()
    kernels = sorted(_configs.asked)
    better = {}
    best = time(call)
    for kernel in kernels:
        start = _configs.config(kernel, x)
        chosen = start
        for options in variants(start)[1:]:
            _configs.trial[kernel] = options
            try:
                seconds = time(call)
            except (triton.CompilationError, triton.runtime.OutOfResources):
                continue
            if seconds < GAIN * best:
                best, chosen = seconds, options
        _configs.trial[kernel] = chosen
        if chosen != start:
            better[_configs.entry(kernel, x.dtype, x.shape[1])] = chosen
    _configs.trial.clear()
    return better


def tune(ops, dtypes=DTYPES, channels=CHANNELS):
    """{entry: options} for this GPU."""
    table = {}
    for op in ops:
        for dtype in dtypes:
            for c in channels:
                for direction, call in calls(op, c, dtype).items():
                    table |= tune_call(call, input_of(op, direction, call))
                print(f"{op} {dtype} {c}: {len(table)} entries so far", flush=True)
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("ops", nargs="*", default=OPS, metavar="OP", help=f"of {', '.join(OPS)}; all if none")
    parser.add_argument("--table", type=Path, help="file to write instead of the user's cache")
    parser.add_argument("--dtype", action="append", choices=[str(d).split(".")[1] for d in DTYPES])
    chosen = parser.parse_args()
    unknown = set(chosen.ops) - set(OPS)
    if unknown:
        parser.error(f"no such op: {', '.join(sorted(unknown))}")
    if not torch.cuda.is_available():
        parser.error("torch finds no GPU to measure on")
    dtypes = [getattr(torch, name) for name in chosen.dtype] if chosen.dtype else DTYPES
    path = chosen.table or _configs.cache_file()
    name = torch.cuda.get_device_name()
    table = _configs.load(path)
    table[name] = table.get(name, {}) | tune(chosen.ops, dtypes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as new:
        new.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    print(f"{name}: {len(table[name])} entries in {path}")


if __name__ == "__main__":
    main()
