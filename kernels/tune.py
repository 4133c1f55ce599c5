"""Measure better launch options for the GPU at hand: python -m mirnet_fast.kernels.tune

For every op, dtype and number of channels of the published network, forward and backward, the
kernels that run are taken in turn: a handful of variants of the present options of one, the others
as they are, the whole op timed. What is clearly faster goes to a table in the user's cache, which
later processes read. The options do not depend on the image size.
"""

import argparse
import importlib
import json
from pathlib import Path

import torch
import triton

from mirnet_fast._files import replaced

from . import _configs

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


def arguments(op, channels, dtype, side=None, device="cuda"):
    """What the op gets in the stream with so many channels of a 512 x 512 image, or of `side` x `side`."""
    side = side or 512 * 64 // channels
    draw = torch.Generator(device).manual_seed(0)

    def tensor(*shape):
        return torch.randn(shape, generator=draw, device=device).to(dtype)

    def image(c=channels, size=side):
        return tensor(1, c, size, size).contiguous(memory_format=torch.channels_last)

    def weight(rows, columns, taps=1):
        return tensor(rows, columns, taps, taps) / (columns * taps**2) ** 0.5

    c, d, slope = channels, max(channels // 8, 4), tensor(1)
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
    return image(), image(size=side // 2), slope, *half


def calls(op, args):
    """The forward and the backward on these arguments, as functions without arguments."""
    module = importlib.import_module(f"mirnet_fast.kernels.{op}")
    forward, backward = getattr(module, op), getattr(module, f"{op}_backward")
    grad = torch.randn_like(forward(*args))
    kept = [args[0], *args[2:]] if op == "dau_attention" else args  # x is only added
    return (lambda: forward(*args)), (lambda: backward(grad, *kept))


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
                args = arguments(op, c, dtype)
                x = args[0][0] if op == "skff_select" else args[0]
                for call in calls(op, args):
                    table |= tune_call(call, x)
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
