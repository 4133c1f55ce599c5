"""The parts of gpu.py, each a process of its own: python benches/gpu_steps.py STEP ARGUMENTS.

    environment           versions, the GPU, what is available for each op and why: JSON
    check [OP]            contract of outputs and gradients against the reference, without pytest
    network               the same of the whole network
    small [BACKEND]       every op once, forward and backward, on odd little maps (for compute-sanitizer)
    rows OP [--warm]      the benchmark rows of an op, or of "network", one JSON line each as soon as it is
                          there; --warm only compiles what they need

Without a GPU Triton's interpreter and the emulated GPU of the tests take its place, so that the steps
themselves can be tried.
"""

import functools
import importlib
import importlib.util
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

import torch  # noqa: E402

ON_GPU = torch.cuda.is_available()
if ON_GPU:
    os.environ.pop("TRITON_INTERPRET", None)
else:
    os.environ["TRITON_INTERPRET"] = "1"
DEVICE = "cuda" if ON_GPU else "cpu"


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
    from mirnet_fast import backends, measure
    from mirnet_fast.ops import OPS

    result = measure.machine() | {"platform": platform.platform(), "cuda of torch": torch.version.cuda}
    names = ("pytest", "pytest_benchmark", "numpy", "ninja")
    result["missing packages"] = [name for name in names if importlib.util.find_spec(name) is None]
    if ON_GPU:
        p = torch.cuda.get_device_properties(0)
        result |= {
            "GPUs": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
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


def _judge(calls):
    """Run {name: call}; the end of the process tells whether all passed."""
    failed = False
    for name, call in calls:
        try:
            call()
        except Exception as error:  # the others are to be seen too
            failed = True
            print(f"FAILED {name} - {_brief(error)}", flush=True)
        else:
            print(f"PASSED {name}", flush=True)
    sys.exit(failed)


def check(*chosen):
    """Needs no pytest, and gives an answer early."""
    from mirnet_fast import ops, reference

    torch.backends.cudnn.allow_tf32 = False  # the reference's own error is the yardstick
    sizes = ((24, 18), (64, 32), (256, 16)) if ON_GPU else ((24, 18),)
    dtypes = (torch.float32, torch.float16, torch.bfloat16)

    def calls():
        for op, (channels, side), dtype in itertools.product(chosen or ops.OPS, sizes, dtypes):
            args = _arguments(op, channels, dtype, side)
            for name, backend in candidates().items():
                held = functools.partial(
                    _hold_contract, backend, getattr(ops, op), getattr(reference, op), args
                )
                yield f"{name} {op} C={channels} {side}x{side} {dtype}", held

    _judge(calls())


def network():
    """The whole network, as a function of the image and of its parameters."""
    import mirnet_fast

    torch.backends.cudnn.allow_tf32 = False
    config, side = ({}, 64) if ON_GPU else ({"n_feat": 8, "n_RRG": 1, "n_MSRB": 1}, 8)
    torch.manual_seed(0)
    published, ours = (of(**config).to(DEVICE) for of in (mirnet_fast.reference.MIRNet, mirnet_fast.MIRNet))
    names, values = zip(*published.named_parameters(), strict=True)
    image = torch.rand(1, 3, side, side, device=DEVICE)

    def called(module, x, *parameters):
        filters = {name: filt.to(x.dtype) for name, filt in module.named_buffers()}
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)) | filters, (x,))

    functions = [functools.partial(called, module) for module in (ours, published)]

    def calls():
        for dtype, (name, backend) in itertools.product((torch.float32, torch.float16), candidates().items()):
            args = [v.detach().to(dtype) for v in (image, *values)]
            held = functools.partial(_hold_contract, backend, *functions, args)
            yield f"{name} network {side}x{side} {dtype}", held

    _judge(calls())


def _brief(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def small(*chosen):
    from mirnet_fast import ops

    for name, backend in candidates().items():
        if chosen and name not in chosen:
            continue
        for op in ops.OPS:
            args = _arguments(op, 24, torch.float16, 18)
            with backend():
                output = getattr(ops, op)(*args)
                _run(getattr(ops, op), args, torch.ones_like(output))
            if ON_GPU:
                torch.cuda.synchronize()
            print(f"PASSED {name} {op}", flush=True)


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


def rows(op, *options):
    if importlib.util.find_spec("pytest") is None:
        _stand_in_for_pytest()
    if op == "network":
        return _network_rows(Timer(enabled="--warm" not in options))
    import harness
    import pytest

    if not ON_GPU:
        import mirnet_fast

        mirnet_fast.use_backend("triton")  # interpreted, it is never picked by itself
    bench = getattr(importlib.import_module(f"bench_{op}"), f"test_{op}")
    cases = bench.pytestmark[0].args[1]
    # What the targets are about first, should the time end.
    order = [torch.float16, torch.bfloat16, torch.float32]
    cases = sorted(
        cases, key=lambda c: (c.layout == harness.NCHW, order.index(c.dtype), c.direction == harness.BACKWARD)
    )
    failed = False
    for case in cases:
        torch.manual_seed(0)
        start = time.perf_counter()
        timer = Timer(enabled="--warm" not in options)
        try:
            bench(timer, lambda row, times: print(json.dumps(row), flush=True), case)
        except pytest.skip.Exception as reason:
            print(f"SKIPPED {op} {case} - {reason}", flush=True)
        except Exception as error:  # the other rows are to be seen too
            failed = True
            print(f"FAILED {op} {case} - {_brief(error)}", flush=True)
        else:
            print(f"PASSED {op} {case} in {time.perf_counter() - start:.1f} s", flush=True)
        if ON_GPU:
            torch.cuda.empty_cache()
    sys.exit(failed)


def _network_rows(timer):
    """As benches/bench_network.py, its peaks of memory in this process."""
    import bench_network as bench
    import harness
    from rows import make_row, shape

    def row(size, dtype):
        arguments = size, dtype, torch.get_num_threads()
        variants = {name: bench.prepare(name, *arguments) for name in bench.VARIANTS}
        harness.check_agreement(variants, dtype)
        times = harness.timed(timer, variants, {}, budget=5)
        if times is None:
            return
        row = make_row("network", size, dtype, harness.FORWARD, times)
        if ON_GPU:
            row["peak_mb"] = {name: _peak_mb(call) for name, call in variants.items()}
        print(json.dumps(row), flush=True)

    cases = itertools.product([torch.float16, torch.float32] if ON_GPU else [torch.float32], bench.sizes())
    _judge((f"network {shape(size)} {dtype}", functools.partial(row, size, dtype)) for dtype, size in cases)


def _peak_mb(call):
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 1e6)


def table(rows):
    """That of the benchmarks."""
    from rows import table

    return table(rows)


if __name__ == "__main__":
    steps = {"environment": environment, "check": check, "network": network, "small": small, "rows": rows}
    steps[sys.argv[1]](*sys.argv[2:])
