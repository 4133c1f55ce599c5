"""What the benchmarks share: the cases, the variants and their interleaved timing."""

import functools
import itertools
import math
import time
from dataclasses import dataclass

import pytest
import torch
import yardsticks
from rows import COPY, FAST, GEMM, SGEMM, dtype_name, make_row, medians, milliseconds, shape
from settings import COMPILE, DEVICE, QUICK, ROUNDS, TINY
from torch.utils._pytree import tree_flatten, tree_map

from mirnet_fast import _native, backends, measure, ops, reference

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
    elif QUICK:
        dtype = torch.float32 if DEVICE == "cpu" else torch.float16
        kinds = [((1, 64, 128, 128), dtype, CHANNELS_LAST)]
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

    beside = {COPY: yardsticks.copy()}
    if gemms and case.direction == FORWARD:
        beside[GEMM] = yardsticks.gemm(gemms, case.dtype)
        if DEVICE == "cpu":
            beside[SGEMM] = yardsticks.sgemm()
    times = timed(benchmark, variants, beside, budget=1.5)
    if times is None:
        return
    taken, wall = times, {}
    if DEVICE == "cuda":
        # What a user waits for stands beside what the kernels take: small maps wait for Python.
        wall = {"wall_ms": milliseconds(times)}
        taken = measure.gpu_times(variants | beside, max(len(times[FAST]), 7))
    row = make_row(name, case.size, case.dtype, case.direction, taken)
    row |= {"rounds": len(times[FAST])} | wall | {"layout": case.layout, "backend": fast_backends[0]}
    row |= {"missing": missing} if missing else {}
    if case.direction == FORWARD:
        row |= yardsticks.bandwidth(medians(taken), moved * case.dtype.itemsize, gemms)
    record(row, times)


def streams(sizes):
    """The parameters of a convolution's rows: (1, channels, side, side) of these (channels, side)."""
    sizes = [(16, 16)] if TINY else [(64, 128)] if QUICK else sizes
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
    times = timed(benchmark, variants, {COPY: yardsticks.copy(), SGEMM: yardsticks.sgemm()}, budget=1.5)
    if times is None:
        return
    row = make_row(name, size, torch.float32, FORWARD, times) | {"layout": CHANNELS_LAST}
    row |= yardsticks.bandwidth(medians(times), 4 * math.prod(size) * (1 + outputs), ())
    flops = 2 * taps**2 * channels * math.prod(size)
    record(row | yardsticks.arithmetic(medians(times), flops, share * flops), times)


def compiled_modes():
    """{variant: mode of torch.compile} that the ops are compared with."""
    if COMPILE == "0":
        return {}
    modes = {"torch.compile": "default"}
    if DEVICE == "cuda" and COMPILE != "default":
        modes["torch.compile max-autotune"] = "max-autotune"
    return modes


def timed(benchmark, variants, beside, budget, pause=0):
    """{name: [seconds of a round]}, all of them interleaved; None under --benchmark-disable.

    pytest-benchmark times mirnet_fast; before each of its rounds, in its set-up, all others have
    their turn, in rotated order, so that nobody always follows the same one.

    Args:
        budget: about so many seconds go into the rounds, but there are at least 5 and at most 50;
            where a round takes more than a minute and a half, 3 are enough. With QUICK it is a fifth, and
            at least 3.
        pause: seconds before every timed call, untimed: the threads of some runtimes go on spinning for a
            while, and the next variant would pay for it.
    """
    calls = variants | beside
    synchronize = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
    # The variants have run once, when their answers were compared; this is the last warm-up.
    one_round = sum(t for [t] in measure.interleave(calls, 1, 0, synchronize).values())
    fewest = 3 if QUICK or one_round > 90 else 5
    rounds = ROUNDS or min(50, max(fewest, round((budget / 5 if QUICK else budget) / one_round)))
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


def error_of(output, expected):
    """The root mean square of the difference over that of what is expected."""
    expected = expected.double()
    return ((output.double() - expected).norm() / expected.norm()).item()


def check_agreement(variants, dtype):
    """Fail if a variant computes something else than the first one."""
    expected = None
    for name, run in variants.items():
        output = run().detach()
        expected = output if expected is None else expected
        error = error_of(output, expected)
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
