"""The parts of gpu.py, each a process of its own: python benches/gpu_steps.py STEP ARGUMENTS.

    environment           versions, the GPU, what is available for each op and why: JSON
    once BACKEND          every op, and of Triton every kind of plan, against the reference, in float16
    network BACKEND DTYPE the whole network, forward and backward, and its plan
    times                 the network by us and eager, and what memory it takes: a row for each size and dtype
    compiled MODE SIZE    the same beside torch.compile
    profile               kernels of a forward, and where its steps lose time
    convolutions          what the network gains or loses by cuDNN for one kind of its convolutions
    rows OP               the benchmark rows of an op
    precision             PSNR of the shipped network in half precision
    training [compiled]   a training step
    check OP              contract of outputs and gradients against the reference, without pytest
    small BACKEND         every op once, forward and backward, on odd little maps (for compute-sanitizer)

A step is a list of cases, told as they begin and end. Each stands alone: what one raises is printed, with
where it was raised, and the next has its turn; one that hangs, or breaks the context of the GPU, ends the
process, and gpu.py goes on in a new one with the next. Of a step that measures each case is made ready, and
run once, before the process asks for the GPU. Rows and facts are lines of JSON.

Without a GPU Triton's interpreter and the emulated GPU of the tests take its place, so that the steps
themselves can be tried.
"""

import contextlib
import dataclasses
import faulthandler
import functools
import importlib
import importlib.util
import itertools
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import traceback
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

import torch  # noqa: E402
from gpu import BROKEN, SIZES, SKIP  # noqa: E402

ON_GPU = torch.cuda.is_available()
if ON_GPU:
    os.environ.pop("TRITON_INTERPRET", None)
else:
    os.environ["TRITON_INTERPRET"] = "1"
DEVICE = "cuda" if ON_GPU else "cpu"

from mirnet_fast import measure  # noqa: E402 (after the interpreter was chosen)

# What takes longer hangs; the whole network's kernels, and torch.compile, take minutes to compile.
CASE_SECONDS, LONG_CASE_SECONDS = 90, 280


@dataclasses.dataclass
class Case:
    """Part of a step; what it measures is made ready before, when the GPU is not its own."""

    name: str
    call: Callable[[], object]
    prepare: Callable[[], object] | None = None


class Skipped(Exception):
    """A case does not apply here; the message says why."""


def run_cases(cases, seconds=CASE_SECONDS):
    """Each by itself, in so many seconds; the end of the process tells whether all passed."""
    told = os.environ.get(SKIP)
    done = set(json.loads(told or "[]"))
    left = [case for case in cases if case.name not in done]
    failed = set()
    if any(case.prepare for case in left):
        left = [case for case in left if _attempt(case.name, case.prepare, failed, LONG_CASE_SECONDS)]
        print("READY", flush=True)
        if told is not None:  # gpu.py's answer
            sys.stdin.readline()
    for case in left:
        if _attempt(case.name, case.call, failed, seconds):
            print(f"PASSED {case.name}", flush=True)
    sys.exit(bool(failed))


def _attempt(name, call, failed, seconds):
    """Whether call(), if there is one, went through; else `failed` has the name, or it does not apply."""
    print(f"BEGAN {name}", flush=True)
    faulthandler.dump_traceback_later(seconds, exit=True)
    begin, passed = time.perf_counter(), False
    try:
        if call:
            call()
        passed = True
    except _skips() as reason:
        print(f"SKIPPED {name} - {reason}")
    except Exception as error:  # the others are to be seen too
        failed.add(name)
        traceback.print_exc(file=sys.stdout)
        print(f"FAILED {name} - {_brief(error)}")
    finally:
        faulthandler.cancel_dump_traceback_later()
    print(f"ENDED {name}", f"took {time.perf_counter() - begin:.1f} s", sep="\n", flush=True)
    if not passed and not _context_works():
        print("the context of the GPU is broken: the rest goes on in another process", flush=True)
        os._exit(BROKEN)  # what is left of torch may only be in the way
    return passed


def _skips():
    import pytest

    return Skipped, pytest.skip.Exception


def _context_works():
    if not ON_GPU:
        return True
    try:
        torch.cuda.synchronize()
        return bool((torch.ones(1, device="cuda") + 1).item() == 2)
    except Exception:  # whatever CUDA says then
        return False


def tell(fact, **values):
    """A line for the report; `text` is what is shown of it."""
    print(json.dumps({"fact": fact} | values), flush=True)


def candidates():
    """{backend: context manager that runs it here} of what is to be judged."""
    from mirnet_fast import backends, use_backend
    from tests import emulation

    found = {
        b: functools.partial(use_backend, b) for b in ("triton", "cuda") if b not in backends._UNAVAILABLE
    }
    if not ON_GPU and emulation.missing() is None:
        found["cuda"] = emulation.emulated_gpu
    return found


def environment():
    from mirnet_fast import backends
    from mirnet_fast.ops import OPS

    result = measure.machine() | {"platform": platform.platform(), "cuda of torch": torch.version.cuda}
    names = ("pytest", "pytest_benchmark", "numpy", "ninja")
    result["missing packages"] = [name for name in names if importlib.util.find_spec(name) is None]
    result["interpreter"] = sys.executable
    if ON_GPU:
        p = torch.cuda.get_device_properties(0)
        names = [name for name in dir(p) if not name.startswith("_")]
        result |= {
            "GPUs": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "properties": {name: str(getattr(p, name)) for name in names},
            "cudnn": torch.backends.cudnn.version(),
            "compute capability": f"{p.major}.{p.minor}",
            "multiprocessors": p.multi_processor_count,
            "GPU memory in MB": p.total_memory // 10**6,
            "L2 in MB": getattr(p, "L2_cache_size", 0) / 1e6,
            "driver": _first_line(
                "nvidia-smi", "--query-gpu=driver_version,clocks.sm,power.limit", "--format=csv"
            ),
        }
    result["compute-sanitizer"] = sanitizer()
    result["nvcc"] = shutil.which("nvcc")
    runs = {op: backends.explain(op, DEVICE, torch.float16) for op in OPS}
    result["runs"] = {op: next(b for b, why in reasons if why is None) for op, reasons in runs.items()}
    result["why not"] = {b: why for b, why in runs[OPS[0]] if why}
    print(json.dumps(result))


def sanitizer():
    """Path of compute-sanitizer, None where there is none."""
    places = [shutil.which("compute-sanitizer"), "/usr/local/cuda/bin/compute-sanitizer"]
    return next((place for place in places if place and Path(place).exists()), None)


def _first_line(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.splitlines() or [None])[-1]


def _arguments(op, channels, dtype, side):
    from mirnet_fast.kernels import tune

    args = tune.arguments(op, channels, dtype, side=side, device=DEVICE)
    return [tuple(a) if isinstance(a, list) else a for a in args]


def _run(function, args, grad):
    """[output, gradient of every tensor]."""
    from torch.utils._pytree import tree_leaves

    args = _on_tensors(lambda t: t.detach().requires_grad_(), args)
    leaves = [v for v in tree_leaves(args) if isinstance(v, torch.Tensor)]
    output = function(*args)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(output.dtype))]


def _on_tensors(function, values):
    from torch.utils._pytree import tree_map

    return tree_map(lambda v: function(v) if isinstance(v, torch.Tensor) else v, values)


def _hold_contract(chosen, function, published, args):
    """Raise AssertionError where a backend doesn't: as tests/ops, on these arguments."""
    from tests.tolerance import assert_contract, distance, moved

    generator, dtype = torch.Generator().manual_seed(1), _first_tensor(args).dtype

    def double(values):
        return _on_tensors(torch.Tensor.double, values)

    with torch.no_grad():
        grad = torch.randn_like(published(*double(args))).to(dtype)
    expected = _run(published, double(args), grad)
    near = [_on_tensors(lambda t: moved(t, generator, 2).to(t.dtype), args) for _ in range(2)]
    pairs = [(_run(published, args, grad), expected)]
    pairs += [(_run(published, v, grad), _run(published, double(v), grad)) for v in near]
    shifted = [_run(published, _on_tensors(lambda t: moved(t, generator), args), grad) for _ in range(2)]
    with chosen():
        fast = _run(function, args, grad)
    for i, value in enumerate(fast):
        errors = [distance(low[i], exact[i]) for low, exact in pairs]
        assert_contract(
            f"gradient {i - 1}" if i else "output", value, expected[i], errors, [v[i] for v in shifted]
        )


def _first_tensor(args):
    return args[0][0] if isinstance(args[0], tuple) else args[0]


def _brief(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _with_backend(name):
    """The context manager of a backend.

    Raises:
        Skipped: it cannot run here.
    """
    from mirnet_fast import backends

    found = candidates()
    if name not in found:
        raise Skipped(backends._UNAVAILABLE.get(name, "it cannot run here"))
    return found[name]


def _held_op(backend, op, channels, side, dtype):
    from mirnet_fast import ops, reference

    chosen = _with_backend(backend)
    torch.backends.cudnn.allow_tf32 = False  # the reference's own error is the yardstick
    args = _arguments(op, channels, dtype, side)
    _hold_contract(chosen, getattr(ops, op), getattr(reference, op), args)


def once(backend):
    """The first thing to know: which op is wrong, if any, and which plan."""
    from mirnet_fast.ops import OPS

    channels, side = (64, 32) if ON_GPU else (16, 8)
    cases = [
        Case(f"{backend} {op}", functools.partial(_held_op, backend, op, channels, side, torch.float16))
        for op in OPS
    ]
    parts = ("DAU", "ResidualDownSample", "ResidualUpSample") if backend == "triton" else ()
    cases += [
        Case(f"plan of {part}, convolutions by {convs}", functools.partial(_planned_part, part, convs))
        for part, convs in itertools.product(parts, ("triton", "cudnn"))
    ]
    run_cases(cases)


def _planned_part(part, convolutions):
    import mirnet_fast
    from mirnet_fast import reference

    torch.manual_seed(0)
    channels = 64 if ON_GPU else 16
    module, published = (getattr(of, part)(channels).to(DEVICE).eval() for of in (mirnet_fast, reference))
    published.load_state_dict(module.state_dict())
    size = (1, channels, 64, 96) if ON_GPU else (1, channels, 4, 8)
    _planned(module.half(), published, size, convolutions, 5e-3)


def _planned(module, published, size, convolutions, tolerance):
    """First run, recording and replays of a plan, each for another image, against the reference."""
    import mirnet_fast
    from mirnet_fast import engine

    dtype = next(module.parameters()).dtype
    torch.backends.cudnn.allow_tf32 = False
    with (
        torch.no_grad(),
        _as_on_a_gpu(),
        _convolutions_by(lambda *key: convolutions),
        mirnet_fast.use_backend("triton"),
    ):
        images = [torch.rand(size, device=DEVICE).to(dtype) for _ in range(3)]
        plan = engine.plan_of(module, images[0])
        assert not isinstance(plan, str), plan
        results = [plan.run([image]) for image in images]
        for image, result in zip(images, results, strict=True):
            _near(result, published(image.float()), tolerance)


def _near(result, expected, tolerance):
    error = ((result.double() - expected.double()).norm() / expected.double().norm()).item()
    assert error < tolerance, f"{error:.1e} away from the reference"


@contextlib.contextmanager
def _convolutions_by(choose):
    """Inside, choose(op, inputs, outputs, pixels) says of new plans' convolutions "triton" or "cudnn"."""
    from mirnet_fast import backends

    before = backends.convolution
    backends.convolution = lambda op, dtype, inputs, outputs, pixels: choose(op, inputs, outputs, pixels)
    try:
        yield
    finally:
        backends.convolution = before


def check(op):
    """Needs no pytest, and gives an answer early."""
    sizes = ((24, 18), (64, 32), (256, 16)) if ON_GPU else ((24, 18),)
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    run_cases(
        Case(
            f"{backend} {op} C={channels} {side}x{side} {dtype}",
            functools.partial(_held_op, backend, op, channels, side, dtype),
        )
        for (channels, side), dtype, backend in itertools.product(sizes, dtypes, ("triton", "cuda"))
    )


# Without a GPU a program of Triton's interpreter, and a thread block of the emulated GPU, take milliseconds.
SMALLEST = {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1, "height": 2}


def network(backend, dtype):
    """The whole network, as a function of the image and of its parameters, and without gradients."""
    name = f"{backend} network {dtype}"
    dtype = getattr(torch, dtype)
    cases = [Case(f"{name}, with gradients", functools.partial(_held_network, backend, dtype))]
    if backend == "triton":  # what is compiled for these, that needs too
        cases[:0] = [
            Case(f"{name}, plan, convolutions by {convs}", functools.partial(_planned_network, dtype, convs))
            for convs in ("triton", "cudnn")
        ]
    run_cases(cases, LONG_CASE_SECONDS)


def _networks(**config):
    """(reference, ours) with the same weights, in eval mode."""
    import mirnet_fast

    torch.manual_seed(0)
    published, ours = (of(**config).to(DEVICE) for of in (mirnet_fast.reference.MIRNet, mirnet_fast.MIRNet))
    ours.load_state_dict(published.state_dict())
    return published.eval(), ours.eval()


def _held_network(backend, dtype):
    chosen = _with_backend(backend)
    torch.backends.cudnn.allow_tf32 = False
    config, side = ({}, 64) if ON_GPU else (SMALLEST, 4)
    published, ours = _networks(**config)
    names, values = zip(*published.named_parameters(), strict=True)
    image = torch.rand(1, 3, side, side, device=DEVICE)

    def called(module, x, *parameters):
        filters = {name: filt.to(x.dtype) for name, filt in module.named_buffers()}
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)) | filters, (x,))

    functions = [functools.partial(called, module) for module in (ours, published)]
    _hold_contract(chosen, *functions, [v.detach().to(dtype) for v in (image, *values)])


def _planned_network(dtype, convolutions):
    published, ours = _networks(**({} if ON_GPU else SMALLEST))
    size = (1, 3, 64, 96) if ON_GPU else (1, 3, 4, 8)
    _planned(ours.to(dtype), published, size, convolutions, 2e-5 if dtype == torch.float32 else 1e-2)


def small(backend):
    from mirnet_fast import ops

    def run(op):
        chosen = _with_backend(backend)
        args = _arguments(op, 24, torch.float16, 18)
        with chosen():
            output = getattr(ops, op)(*args)
            _run(getattr(ops, op), args, torch.ones_like(output))
        if ON_GPU:
            torch.cuda.synchronize()

    run_cases(Case(f"{backend} {op}", functools.partial(run, op)) for op in ops.OPS)


class Timer:
    """What harness.py needs of pytest-benchmark's fixture, so that no row waits for the whole run."""

    def __init__(self, enabled=True):
        self.enabled, self.stats = enabled, {}

    def pedantic(self, function, setup, rounds):
        times = []
        for _ in range(rounds if self.enabled else 1):
            setup()
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        self.stats = {"data": times}


def _stand_in_for_pytest():
    """The little of pytest that the benchmarks use, where it is not installed."""

    class Skipped(Exception):
        pass

    def skip(reason):
        raise Skipped(reason)

    skip.Exception = Skipped

    def parametrize(names, values, ids=None):
        def mark(function):
            function.pytestmark = [types.SimpleNamespace(args=(names, values))]
            return function

        return mark

    module = types.ModuleType("pytest")

    def skipif(condition, reason):
        return lambda function: function

    module.mark, module.skip = types.SimpleNamespace(parametrize=parametrize, skipif=skipif), skip
    sys.modules["pytest"] = module


def rows(op):
    import harness

    if not ON_GPU:
        import mirnet_fast

        mirnet_fast.use_backend("triton")  # interpreted, it is never picked by itself
    bench = getattr(importlib.import_module(f"bench_{op}"), f"test_{op}")
    cases = bench.pytestmark[0].args[1]
    # What the targets are about first, should the time end: the forward of the largest maps.
    order = [torch.float16, torch.bfloat16, torch.float32]
    cases = sorted(
        cases,
        key=lambda c: (
            c.layout == harness.NCHW,
            order.index(c.dtype),
            c.direction == harness.BACKWARD,
            -math.prod(c.size),
        ),
    )

    def run(case, timer):
        torch.manual_seed(0)
        bench(timer, lambda row, times: print(json.dumps(row), flush=True), case)
        if ON_GPU:
            torch.cuda.empty_cache()

    run_cases(
        Case(
            f"{op} {case}",
            functools.partial(run, case, Timer()),
            functools.partial(run, case, Timer(enabled=False)),
        )
        for case in (_largest(cases) if ON_GPU else cases)
    )


def _largest(cases):
    """Of the first dtype and layout, the two sizes that the targets are about: a large image, and many."""
    first = [case for case in cases if (case.layout, case.dtype) == (cases[0].layout, cases[0].dtype)]
    sizes = sorted({case.size for case in first}, key=math.prod)[-2:]
    return [case for case in first if case.size in sizes]


def times():
    """Largest value first: what the network's targets are about."""
    import bench_network as bench

    names = {
        "eager channels_last": bench.eager_channels_last,
        "eager NCHW": bench.eager,
        "mirnet_fast": bench.fast,
        bench.OP_BY_OP: bench.op_by_op,
    }
    small, *others = bench.sizes()
    cases = [(small, torch.float32)]
    if ON_GPU:
        names[bench.BY_TRITON] = bench.by_triton
        cases = [(size, torch.float16) for size in (small, *others)]
        cases += [(others[0], torch.bfloat16), (small, torch.float32)]
    run_cases(_of_network(names, size, dtype) for size, dtype in cases)


def compiled(mode, size):
    import bench_network as bench

    size, dtype = tuple(map(int, size.split("x"))), torch.float16
    if not ON_GPU:
        size, dtype = bench.sizes()[0], torch.float32
    names = {
        "eager channels_last": bench.eager_channels_last,
        "mirnet_fast": bench.fast,
        f"torch.compile {mode}": functools.partial(bench.compiled, mode),
    }
    if ON_GPU:
        names[bench.BY_TRITON] = bench.by_triton
    run_cases([_of_network(names, size, dtype)])


def _of_network(names, size, dtype):
    """The Case of a row of the network, of {name: variant of bench_network}."""
    import bench_network as bench
    import harness
    from rows import shape

    bench.VARIANTS |= names
    described = "network", size, dtype, harness.FORWARD
    makes = {name: _made(bench.prepare, name, size, dtype) for name in names}
    return _row_of(f"network {shape(size)} {dtype}", makes, described)


def _made(prepare, *arguments):
    return functools.partial(prepare, *arguments, torch.get_num_threads())


def training(*which):
    import bench_training as bench

    names = {"eager channels_last": bench.eager_channels_last, "mirnet_fast": bench.fast}
    names |= {"torch.compile": bench.compiled} if which else {"eager NCHW": bench.eager}
    bench.VARIANTS |= names
    makes = {name: _made(bench.prepare, name, bench.SIZE) for name in names}
    run_cases([_row_of("training step", makes, ("training", bench.SIZE, bench.DTYPE, "step"))])


def _row_of(name, makes, described):
    """The Case of a row of calls, {name: function that makes it}; described: op, size, dtype, direction."""
    import harness
    from rows import make_row, milliseconds

    calls, peaks = {}, {}

    def prepare():
        torch.backends.cudnn.allow_tf32 = True  # PyTorch's default
        for variant, make in makes.items():
            # cuDNN's search for the fastest takes memory of its own, and time, which has to be quiet; what
            # is compiled keeps what was found first.
            torch.backends.cudnn.benchmark = variant.startswith("torch.compile")
            calls[variant] = make()
            peaks[variant] = _peak_mb(calls[variant])
        harness.check_agreement(calls, described[2])

    def call():
        torch.backends.cudnn.benchmark = True
        _release()
        for variant in calls.values():
            for _ in range(3):  # run, recorded, replayed
                variant()
        row = make_row(*described, harness.timed(Timer(), calls, {}, budget=5))
        if ON_GPU:
            row["gpu_ms"] = milliseconds(measure.gpu_times(calls, 7))
            row["peak_mb"] = peaks
        print(json.dumps(row), flush=True)
        calls.clear()
        _release()

    return Case(name, call, prepare)


def _release():
    import mirnet_fast

    mirnet_fast.release_workspace()
    if ON_GPU:
        torch.cuda.empty_cache()


def _peak_mb(call):
    """The most MB that three calls take, the recording of graphs among them; what stays with them counts."""
    if not ON_GPU:
        call()
        return None
    _release()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before[0]
    torch.cuda.empty_cache()
    # Of a graph that torch.compile recorded only the pool tells.
    return round(max(peak, torch.cuda.memory_reserved() - before[1]) / 1e6)


def profile():
    import bench_network as bench
    from rows import shape

    sizes = bench.sizes()[:2] if ON_GPU else bench.sizes()
    dtype = torch.float16 if ON_GPU else torch.float32
    variants = {"eager channels_last": bench.eager_channels_last, "mirnet_fast": bench.fast}
    if ON_GPU:
        variants[bench.BY_TRITON] = bench.by_triton
    bench.VARIANTS |= variants
    cases = []
    for size, variant in itertools.product(sizes, variants):
        make = functools.cache(_made(bench.prepare, variant, size, dtype))
        name = f"{variant} {shape(size)}"
        listed = functools.partial(_list_kernels, name, make)
        cases.append(Case(f"kernels of {name}", listed, functools.partial(_thrice, make)))
    backend_choices = ("triton", None) if ON_GPU else (None,)
    for size, backend in itertools.product(sizes, backend_choices):
        steps = functools.partial(_profile_steps, size, dtype, backend)
        cases.append(Case(f"steps {shape(size)}, backend {backend}", steps))
    run_cases(cases)


def _thrice(make):
    for _ in range(3):
        make()()


def _list_kernels(name, make):
    """The kernels of one forward, in their order, and what the GPU does otherwise."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity

    call = make()
    call()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * ON_GPU) as seen:
        call()
        if ON_GPU:
            torch.cuda.synchronize()
    wanted = DeviceType.CUDA if ON_GPU else DeviceType.CPU
    events = [event for event in seen.events() if event.device_type == wanted]
    events.sort(key=lambda event: event.time_range.start)
    order = [(event.name[:150], round(event.time_range.elapsed_us(), 1)) for event in events]
    total = Counter()
    for kernel, us in order:
        total[kernel] += us
    counts = Counter(kernel for kernel, _ in order)
    by_name = [(kernel, counts[kernel], round(us, 1)) for kernel, us in total.most_common()]
    span = events[-1].time_range.end - events[0].time_range.start if events else 0
    text = f"{len(order)} on the GPU, {sum(total.values()):.0f} us in {span:.0f}"
    order = order if len(order) < 1000 else "too many"
    tell(f"kernels of {name}", text=text, by_name=by_name, order=order)


def _profile_steps(size, dtype, backend):
    """As `mirnet-fast profile` has it."""
    import bench_network as bench
    from rows import shape

    import mirnet_fast
    from mirnet_fast import profiling
    from mirnet_fast.engine import devices

    published, ours = _networks(**bench.CONFIG)
    image = torch.rand(size, device=DEVICE).to(dtype).contiguous(memory_format=torch.channels_last)
    networks = {profiling.OURS: ours.to(dtype), profiling.REFERENCE: published.to(dtype)}
    with mirnet_fast.use_backend(backend) if backend else contextlib.nullcontext():
        device = devices.measured(image.device, dtype)
        found, missing = profiling.profiles(networks, image, device, rounds=3)
        for one in found:
            total, worst = one.total, [row for row in one.rows if row.lost is not None][:3]
            text = f"{1e3 * total.seconds:.2f} ms"
            if total.flops:
                text += f", {100 * total.flops / total.seconds / device.rate:.0f} % of the measured rate"
            text += "".join(f"; {row.name} loses {1e3 * row.lost:.2f} ms" for row in worst)
            tell(
                f"steps of {one.way} {shape(size)}, backend {backend}",
                text=text,
                device=dataclasses.asdict(device),
                rows=[dataclasses.asdict(row) for row in (*one.rows, total)],
                missing=missing,
                what=one.steps,
            )


def convolutions():
    """Of each kind of convolution at each size: the network with all by Triton, and with these by cuDNN."""
    from rows import shape

    dtype = torch.float16 if ON_GPU else torch.float32
    cases = []
    for size in [tuple(map(int, size.split("x"))) for size in SIZES] if ON_GPU else [(1, 8, 2, 4)]:
        whole = _Convolutions(size, dtype)
        for key in whole.keys:
            name = f"{key[0]} {key[1]} to {key[2]} of {shape(size)}"
            cases.append(Case(name, functools.partial(whole.measure, key), whole.base))
        cases.append(Case(f"choices of {shape(size)}", whole.choices, whole.base))
    run_cases(cases)


def _as_on_a_gpu():
    """Without a GPU, inside plans are made as if there was one."""
    if ON_GPU:
        return contextlib.nullcontext()
    from tests.engine.common import as_if_on_a_gpu

    return as_if_on_a_gpu()


class _Convolutions:
    """The network at one size, its plans by who runs which convolutions.

    Attributes:
        keys: {(op, inputs, outputs): number of pixels} of its convolutions.
    """

    def __init__(self, size, dtype):
        import mirnet_fast
        from mirnet_fast.engine.plan import Plan

        self.size, self.dtype, self.chosen, self.keys = size, dtype, {}, {}
        torch.manual_seed(0)
        network = mirnet_fast.MIRNet() if ON_GPU else mirnet_fast.ResidualUpSample(size[1])
        self._network = network.eval().to(DEVICE, dtype)
        image = torch.rand(size, device=DEVICE).to(dtype)
        self._image = image.contiguous(memory_format=torch.channels_last)
        with _as_on_a_gpu(), _convolutions_by(self._note):
            Plan(self._network, self._image)

    def _note(self, op, inputs, outputs, pixels):
        self.keys[op, inputs, outputs] = pixels
        return "cudnn"

    def _by(self, choose):
        """The call of a plan in which choose((op, inputs, outputs)) runs a convolution; recorded already."""
        import mirnet_fast
        from mirnet_fast.engine.plan import Plan

        with (
            _as_on_a_gpu(),
            _convolutions_by(lambda *key: choose(key[:3])),
            mirnet_fast.use_backend("triton"),
        ):
            plan = Plan(self._network, self._image)

        def call():
            with _as_on_a_gpu(), torch.inference_mode():
                return plan.run([self._image])

        for _ in range(3):
            call()
        return call

    @functools.cached_property
    def _all(self):
        return self._by(lambda key: "triton")

    def base(self):
        """Compiles."""
        self._all()

    def measure(self, key):
        """The row of one kind of convolution."""
        from rows import make_row

        torch.backends.cudnn.benchmark = True
        other = self._by(lambda k: "cudnn" if k == key else "triton")
        _near(self._all(), other(), 2e-2)
        times = _times_on_gpu({"mirnet_fast": self._all, "cudnn": other}, 15)
        op, inputs, outputs = key
        n, _, height, width = self.size
        share = (self.keys[key] / (n * height * width)) ** 0.5
        size = (n, inputs, round(height * share), round(width * share))
        row = make_row(op, size, self.dtype, "in the network", times) | {"outputs": outputs}
        medians = {name: statistics.median(values) for name, values in times.items()}
        self.chosen[key] = "triton" if medians["mirnet_fast"] <= medians["cudnn"] else "cudnn"
        print(json.dumps(row), flush=True)

    def choices(self):
        """The row of the network as the measurements would have it, beside those without a choice."""
        import bench_network as bench
        from rows import make_row

        torch.backends.cudnn.benchmark = True
        calls = {
            "mirnet_fast": self._by(lambda key: self.chosen.get(key, "triton")),
            "mirnet_fast triton": self._all,
            "mirnet_fast cudnn": self._by(lambda key: "cudnn"),
        }
        if ON_GPU:
            bench.VARIANTS["eager channels_last"] = bench.eager_channels_last
            arguments = self.size, self.dtype
            calls["eager channels_last"] = _made(bench.prepare, "eager channels_last", *arguments)()
        row = make_row("network", self.size, self.dtype, "forward, as chosen", _times_on_gpu(calls, 15))
        print(json.dumps(row), flush=True)


def _times_on_gpu(calls, rounds):
    return measure.gpu_times(calls, rounds) if ON_GPU else measure.interleave(calls, 1)


def precision():
    """PSNR of a photo that the shipped network restores, in half precision and in float32."""
    import skimage.data

    import mirnet_fast
    from mirnet_fast import demonstration, evaluation

    side = 512 if ON_GPU else 16
    clean = skimage.data.astronaut()[:side, :side].astype("float32") / 255
    noisy = demonstration.add_noise(clean, 25, 0)
    image = torch.from_numpy(noisy).permute(2, 0, 1)[None].to(DEVICE)

    @functools.cache
    def psnr(name, dtype, backend):
        torch.backends.cudnn.allow_tf32 = False
        network = mirnet_fast.load_pretrained(name).to(DEVICE, dtype)
        with _with_backend(backend)() if backend else contextlib.nullcontext():
            restored = mirnet_fast.restore(network, image.to(dtype))
        return evaluation.psnr(restored[0].float().clamp(0, 1).permute(1, 2, 0).cpu().numpy(), clean)

    def compare(name, dtype, backend):
        exact, half = psnr(name, torch.float32, None), psnr(name, dtype, backend)
        fact = f"PSNR of {name} in {str(dtype).removeprefix('torch.')}, backend {backend}"
        tell(fact, text=f"{half:.3f} dB, {half - exact:+.4f} from float32", psnr=half, float32=exact)

    cases = []
    for name, dtype, backend in itertools.product(
        mirnet_fast.pretrained.shipped(),
        (torch.float16, torch.bfloat16) if ON_GPU else (torch.bfloat16,),
        (None, "triton", "cuda") if ON_GPU else (None,),
    ):
        arguments = name, dtype, backend
        cases.append(
            Case(
                f"{name} {dtype} {backend}",
                functools.partial(compare, *arguments),
                functools.partial(psnr, *arguments),
            )
        )
    run_cases(cases)


STEPS = (environment, once, network, times, compiled, profile, convolutions, rows, precision, training)
STEPS += (check, small)


def main():
    if importlib.util.find_spec("pytest") is None:
        _stand_in_for_pytest()
    name, *arguments = sys.argv[1:]
    {step.__name__: step for step in STEPS}[name](*arguments)


if __name__ == "__main__":
    main()
