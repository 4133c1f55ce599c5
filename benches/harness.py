"""What the benchmarks share: the cases, the variants, interleaved timing, the rows and their table.

Environment variables, each optional:
    MIRNET_BENCH_DEVICE   cpu or cuda; cuda where there is one
    MIRNET_BENCH_ROUNDS   timed rounds of every row; otherwise as many as a few seconds hold
    MIRNET_BENCH_COMPILE  0: no torch.compile anywhere; 1: also of the network, which takes minutes;
                          default: only its default mode
    MIRNET_BENCH_TINY     1: tiny maps and networks, to try the harness itself
"""

import functools
import itertools
import json
import math
import os
import statistics
import time
from dataclasses import dataclass

import pytest
import torch
from torch.utils._pytree import tree_flatten, tree_map

from mirnet_fast import _native, backends, measure, ops, reference

DEVICE = os.environ.get("MIRNET_BENCH_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS = int(os.environ.get("MIRNET_BENCH_ROUNDS") or 0)
COMPILE = os.environ.get("MIRNET_BENCH_COMPILE", "")
TINY = os.environ.get("MIRNET_BENCH_TINY") == "1"

FAST = "mirnet_fast"
# Timed in the same rounds as the variants, as yardsticks; they compute something else.
COPY, GEMM, SGEMM = "copy", "gemm", "sgemm"

SGEMM_SIDE = 64 if TINY else 1024

# Times of different answers can't be compared: outputs further apart than this fail the row.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}

FORWARD, BACKWARD = "forward", "forward+backward"
NCHW, CHANNELS_LAST = "NCHW", "channels_last"
FORMATS = {NCHW: torch.contiguous_format, CHANNELS_LAST: torch.channels_last}


@dataclass(frozen=True)
class Case:
    """One row of an op: the full-resolution feature map it works on, and how."""

    size: tuple
    dtype: torch.dtype
    layout: str
    direction: str

    def __str__(self):
        return f"{shape(self.size)}-{dtype_name(self.dtype)}-{self.layout}-{self.direction}"

    def random(self, *size, scale=1.0):
        """A feature map, slope or bias with normally distributed values."""
        return scale * torch.randn(size, device=DEVICE).to(self.dtype)

    def weight(self, outputs, inputs, kernel_size=1):
        """A convolution weight that keeps the scale of its input."""
        fan_in = inputs * kernel_size**2
        return self.random(outputs, inputs, kernel_size, kernel_size, scale=fan_in**-0.5)


def _cases():
    if TINY:
        kinds = [((1, 16, 16, 16), torch.float32, CHANNELS_LAST)]
    elif DEVICE == "cpu":
        # The three streams of the published network at 1x3x256x256.
        sizes = [(1, 64, 256, 256), (1, 128, 128, 128), (1, 256, 64, 64)]
        kinds = [(size, torch.float32, CHANNELS_LAST) for size in sizes]
        kinds += [(sizes[0], torch.bfloat16, CHANNELS_LAST), (sizes[0], torch.float32, NCHW)]
    else:
        # The three streams at 1x3x256x256, and the first one at 1x3x512x512 and 8x3x256x256.
        sizes = [
            (1, 64, 256, 256),
            (1, 128, 128, 128),
            (1, 256, 64, 64),
            (1, 64, 512, 512),
            (8, 64, 256, 256),
        ]
        kinds = [(size, torch.float16, CHANNELS_LAST) for size in sizes]
        kinds += [(size, torch.bfloat16, CHANNELS_LAST) for size in (sizes[0], sizes[-1])]
        kinds += [(sizes[0], torch.float16, NCHW)]
    return [Case(*kind, direction) for kind in kinds for direction in (FORWARD, BACKWARD)]


every_case = pytest.mark.parametrize("case", _cases(), ids=str)


def compare_op(benchmark, record, case, name, arguments, moved, gemms=()):
    """Time one fused op against the reference's own sequence of operators, and record the row.

    Args:
        benchmark, record: the fixtures.
        arguments: of the op; made once, every variant works on the same values.
        moved: elements that a perfect implementation of the forward reads and writes (the floor).
        gemms: [(rows, inner, columns)] of the matrix products inside the forward.
    """
    fast_backends = [b for b, why in backends.explain(name, DEVICE, case.dtype) if why is None]
    fast_backends = [b for b in fast_backends if b != "reference"]
    if not fast_backends:
        reasons = "; ".join(f"{b}: {why}" for b, why in backends.explain(name, DEVICE, case.dtype) if why)
        pytest.skip(f"no kernel runs {name}: {reasons}")

    published, fused = getattr(reference, name), getattr(ops, name)
    laid_out = {layout: _laid_out(arguments, layout) for layout in FORMATS}
    runner = functools.partial(_runner, backward=case.direction == BACKWARD)
    variants = {f"eager {layout}": runner(published, laid_out[layout]) for layout in FORMATS}
    variants |= {
        variant: runner(compiled, laid_out[case.layout]) for variant, compiled in _compiled(published).items()
    }
    for backend in fast_backends:
        label = FAST if backend == fast_backends[0] else f"{FAST} {backend}"
        variants[label] = runner(_on(backend, fused), laid_out[case.layout])
    missing = drop_failing_compilation(variants)
    check_agreement(variants, case.dtype)

    yardsticks = {COPY: _copy()}
    if gemms and case.direction == FORWARD:
        yardsticks[GEMM] = _gemm(gemms, case.dtype)
        if DEVICE == "cpu":
            yardsticks[SGEMM] = _sgemm()
    times = timed(benchmark, variants, yardsticks, budget=1.5)
    if times is None:
        return
    taken, wall = times, {}
    if DEVICE == "cuda":
        # What a user waits for stands beside what the kernels take: small maps wait for Python.
        wall = {"wall_ms": _milliseconds(times)}
        taken = measure.gpu_times(variants | yardsticks, max(len(times[FAST]), 7))
    row = make_row(name, case.size, case.dtype, case.direction, taken)
    row |= {"rounds": len(times[FAST])} | wall | {"layout": case.layout, "backend": fast_backends[0]}
    row |= {"missing": missing} if missing else {}
    if case.direction == FORWARD:
        row |= _bandwidth(_medians(taken), moved * case.dtype.itemsize, gemms)
    record(row, times)


def streams(sizes):
    """The parameters of a convolution's rows: (1, channels, side, side) of these (channels, side)."""
    sizes = [(16, 16)] if TINY else sizes
    return {"argvalues": [(1, channels, side, side) for channels, side in sizes], "ids": shape}


def compare_convolution(benchmark, record, name, size, published, run, taps=3, outputs=1, share=1):
    """Time a convolution of the CPU engine against PyTorch's, and record the row.

    Its GFLOP/s are effective: the arithmetic of the plain convolution over the time taken; `done` ones
    are those of the products that are left of it.

    Args:
        published: function of a map and a weight with as many output channels as inputs.
        run: the same by the op.
        taps: of the weight, one axis.
        outputs: output pixels for one of the map.
        share: of the plain convolution's multiplications that the op does.
    """
    if DEVICE != "cpu" or _native.cpu_library_error() is not None:
        pytest.skip(f"{name} is of the C++ kernels for the CPU alone")
    channels = size[1]
    weight = torch.randn(channels, channels, taps, taps) * (taps**2 * channels) ** -0.5
    image = torch.randn(size)
    laid_out = {layout: _laid_out((image, weight), layout) for layout in FORMATS}
    variants = {f"eager {layout}": _runner(published, laid_out[layout], False) for layout in FORMATS}
    variants[FAST] = lambda: run(laid_out[CHANNELS_LAST][0], weight)
    check_agreement(variants, torch.float32)
    times = timed(benchmark, variants, {COPY: _copy(), SGEMM: _sgemm()}, budget=1.5)
    if times is None:
        return
    row = make_row(name, size, torch.float32, FORWARD, times) | {"layout": CHANNELS_LAST}
    row |= _bandwidth(_medians(times), 4 * math.prod(size) * (1 + outputs), ())
    flops = 2 * taps**2 * channels * math.prod(size)
    record(row | _arithmetic(_medians(times), flops, share * flops), times)


def compiled_modes():
    """{variant: mode of torch.compile} that the ops are compared with."""
    if COMPILE == "0":
        return {}
    modes = {"torch.compile": "default"}
    if DEVICE == "cuda" and COMPILE != "default":
        modes["torch.compile max-autotune"] = "max-autotune"
    return modes


def timed(benchmark, variants, yardsticks, budget, pause=0):
    """{name: [seconds of a round]}, all of them interleaved; None under --benchmark-disable.

    pytest-benchmark times mirnet_fast; before each of its rounds, in its set-up, all others have
    their turn, in rotated order, so that nobody always follows the same one.

    Args:
        budget: about so many seconds go into the rounds, but there are at least 5 and at most 50;
            where a round takes more than a minute and a half, 3 are enough.
        pause: seconds before every timed call, untimed: the threads of some runtimes go on spinning for a
            while, and the next variant would pay for it.
    """
    calls = variants | yardsticks
    synchronize = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
    # The variants have run once, when their answers were compared; this is the last warm-up.
    one_round = sum(t for [t] in measure.interleave(calls, 1, 0, synchronize).values())
    rounds = ROUNDS or min(50, max(3 if one_round > 90 else 5, round(budget / one_round)))
    others = [name for name in calls if name != FAST]
    times = {name: [] for name in others}
    turns = itertools.count()

    def time_the_others():
        first = next(turns) % len(others)
        for name in others[first:] + others[:first]:
            time.sleep(pause)
            times[name] += measure.interleave({name: calls[name]}, 1, 0, synchronize)[name]
        time.sleep(pause)

    def fast():
        calls[FAST]()
        synchronize()

    benchmark.pedantic(fast, setup=time_the_others, rounds=rounds)
    if not benchmark.enabled:
        return None
    return {FAST: benchmark.stats["data"]} | times


def _medians(times):
    return {name: statistics.median(values) for name, values in times.items()}


def _milliseconds(times):
    """{variant: median}, without the yardsticks."""
    medians = _medians(times).items()
    return {name: _digits(1e3 * value) for name, value in medians if name not in (COPY, GEMM, SGEMM)}


def _spread(values):
    """Interquartile range over the median; 0 of a single value."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return _digits((high - low) / middle)


def make_row(op, size, dtype, direction, times):
    """A result: the times, and how many times longer each variant takes than mirnet_fast.

    times: {name: [seconds of a round]} of the variants and the yardsticks.
    """
    medians, ms = _medians(times), _milliseconds(times)
    return {
        "op": op,
        "size": list(size),
        "dtype": dtype_name(dtype),
        "direction": direction,
        "rounds": len(times[FAST]),
        "ms": ms,
        "ratio": {name: _digits(medians[name] / medians[FAST]) for name in ms if name != FAST},
        "spread": _spread(times[FAST]),  # tells a quiet machine
    }


def _bandwidth(seconds, nbytes, gemms):
    fast, copied = seconds[FAST], 2 * _copy_bytes() / seconds[COPY]
    result = {
        "floor_mb": _digits(nbytes / 1e6),
        "gb_per_s": _digits(nbytes / fast / 1e9),
        "copy_gb_per_s": _digits(copied / 1e9),
        "of_copy": _digits(nbytes / fast / copied),
    }
    if gemms:
        flops = sum(2 * math.prod(sizes) for sizes in gemms)
        result |= _arithmetic(seconds, flops, flops) | {"gemm_ms": _digits(1e3 * seconds[GEMM])}
        outside = fast - seconds[GEMM]
        # None where the whole op takes less than the bare product: no time is left to divide by.
        result["of_copy_outside_gemm"] = _digits(nbytes / outside / copied) if outside > 0 else None
    return result


def _arithmetic(seconds, flops, done):
    result = {
        "gflop": _digits(flops / 1e9),
        "gflop_per_s": _digits(flops / seconds[FAST] / 1e9),
        "done_gflop_per_s": _digits(done / seconds[FAST] / 1e9),
    }
    if SGEMM in seconds:
        result["sgemm_gflop_per_s"] = _digits(2 * SGEMM_SIDE**3 / seconds[SGEMM] / 1e9)
        result["of_sgemm"] = _digits(result["done_gflop_per_s"] / result["sgemm_gflop_per_s"])
    return result


def drop_failing_compilation(variants):
    """Compile what is to be compiled; remove what can't be, and return {variant: why}."""
    failed = {}
    for name in [name for name in variants if name.startswith("torch.compile")]:
        try:
            variants[name]()
        except Exception as error:  # the compiler of another project: it raises what it likes
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            del variants[name]
    return failed


def check_agreement(variants, dtype):
    """Fail if a variant computes something else than the first one."""
    expected = None
    for name, run in variants.items():
        output = run().detach().double()
        expected = output if expected is None else expected
        error = ((output - expected).norm() / expected.norm()).item()
        assert error < TOLERANCE[dtype], f"{name} is {error:.1e} away from the reference"


def _runner(function, arguments, backward):
    if not backward:

        def forward():
            with torch.no_grad():
                return function(*arguments)

        return forward

    # Leaves of this variant alone: the layout of a gradient follows that of its leaf.
    arguments = tree_map(_leaf, arguments)
    leaves = [value for value in tree_flatten(arguments)[0] if isinstance(value, torch.Tensor)]
    output_gradient = None

    def forward_and_backward():
        nonlocal output_gradient
        output = function(*arguments)
        if output_gradient is None:
            output_gradient = torch.randn_like(output)
        torch.autograd.grad(output, leaves, output_gradient)
        return output

    return forward_and_backward


def _leaf(value):
    return value.detach().requires_grad_() if isinstance(value, torch.Tensor) else value


def _laid_out(arguments, layout):
    def lay_out(value):
        four = isinstance(value, torch.Tensor) and value.dim() == 4
        return value.contiguous(memory_format=FORMATS[layout]) if four else value

    return tree_map(lay_out, arguments)


def _compiled(function):
    # Without a reset the rows would share one cache, whose limit sends the later ones to eager mode.
    torch.compiler.reset()
    return {
        variant: torch.compile(function, mode=mode, fullgraph=True, dynamic=False)
        for variant, mode in compiled_modes().items()
    }


def _on(backend, function):
    def run(*arguments):
        with backends.use_backend(backend):
            return function(*arguments)

    return run


def _copy_bytes():
    return 2**16 if TINY else 2**26 if DEVICE == "cpu" else 2**28  # otherwise beyond any cache


@functools.cache
def _copy():
    source = torch.ones(_copy_bytes(), dtype=torch.uint8, device=DEVICE)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def _gemm(gemms, dtype):
    """The bare matrix products, into memory that is there already."""
    factors = [
        (
            torch.randn(rows, inner, device=DEVICE).to(dtype),
            torch.randn(inner, columns, device=DEVICE).to(dtype),
            torch.empty(rows, columns, device=DEVICE, dtype=dtype),
        )
        for rows, inner, columns in gemms
    ]

    def multiply():
        for left, right, product in factors:
            torch.mm(left, right, out=product)

    return multiply


@functools.cache
def _sgemm():
    """A product of large float32 matrices, the measure of the arithmetic unit."""
    left, right = torch.randn(2, SGEMM_SIDE, SGEMM_SIDE)
    product = torch.empty(SGEMM_SIDE, SGEMM_SIDE)
    return lambda: torch.mm(left, right, out=product)


def shape(size):
    return "x".join(str(n) for n in size)


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


def _digits(value, digits=4):
    return float(f"{value:.{digits}g}")


def results_text(machine, rows):
    """The result file: what it was measured on, then one row a line, so that a diff shows rows."""
    lines = ",\n".join(f"  {json.dumps(row)}" for row in sorted(rows, key=_order))
    return f'{{\n"machine": {json.dumps(machine, indent=1)},\n"rows": [\n{lines}\n]\n}}\n'


def table(rows):
    """The rows as lines of text. `x NAME` is NAME's time over mirnet_fast's."""
    rows = sorted(rows, key=_order)
    rivals = list(dict.fromkeys(name for row in rows for name in row["ratio"]))
    # With a GPU `ms` is the GPU's time, `wall` the whole call's.
    wall = ["wall"] if any("wall_ms" in row for row in rows) else []
    header = ["op", "size", "dtype", "layout", "direction", "ms", *wall, *(f"x {name}" for name in rivals)]
    header += ["GB/s", "% copy", "% outside GEMM", "GFLOP/s", "done", "% sgemm", "spread", ""]
    lines = [header, *([*_cells(row, rivals, wall)] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [
        "  ".join(_align(cell, w, i) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    for row in rows:
        label = f"{row['op']} {shape(row['size'])} {row['direction']}"
        for name, why in row.get("missing", {}).items():
            text.append(f"{label}: no {name}: {why}")
        if "peak_mb" in row:
            peaks = ", ".join(
                f"{name} {'killed' if mb is None else mb}" for name, mb in row["peak_mb"].items()
            )
            text.append(f"{label}: peak MB above the weights: {peaks}")
    return [line.rstrip() for line in text]


def _cells(row, rivals, wall):
    yield row["op"]
    yield shape(row["size"])
    yield row["dtype"]
    yield row.get("layout", "")
    yield row["direction"]
    yield f"{row['ms'][FAST]:.3g}"
    if wall:
        yield f"{row['wall_ms'][FAST]:.3g}" if "wall_ms" in row else "-"
    for name in rivals:
        yield f"{row['ratio'][name]:.2f}" if name in row["ratio"] else "-"
    yield f"{row['gb_per_s']:.1f}" if "gb_per_s" in row else "-"
    yield f"{100 * row['of_copy']:.0f}" if "of_copy" in row else "-"
    outside = row.get("of_copy_outside_gemm", "-")
    yield "< GEMM" if outside is None else outside if outside == "-" else f"{100 * outside:.0f}"
    for name in ("gflop_per_s", "done_gflop_per_s"):
        yield f"{row[name]:.0f}" if name in row else "-"
    yield f"{100 * row['of_sgemm']:.0f}" if "of_sgemm" in row else "-"
    yield f"{100 * row['spread']:.0f}%"
    yield "LOSES" if min(row["ratio"].values()) < 1 else ""


def _align(cell, width, column):
    return cell.ljust(width) if column < 5 else cell.rjust(width)


def _order(row):
    # By op, then the larger map first.
    return row["op"], -math.prod(row["size"]), row["dtype"], row.get("layout", ""), row["direction"]
