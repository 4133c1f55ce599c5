"""The steps, in the order of what they are worth."""

import itertools
import sys

from .step import ROOT, Step

OPS = ("blur_pool", "skff_select", "dau_attention", "residual_down_tail", "residual_up_tail")
DTYPES = ("float16", "float32", "bfloat16")
KERNELS = ("triton", "cuda")
SIZES = ("1x3x256x256", "1x3x512x512", "8x3x256x256")  # of bench_network on a GPU
MODES = ("reduce-overhead", "max-autotune")  # of torch.compile


def child(*arguments):
    return [sys.executable, "-W", "ignore", ROOT / "benches" / "gpu_steps.py", *arguments]


def pytest(*arguments):
    return [sys.executable, "-m", "pytest", "-v", "-rfEs", "--tb=short", "-p", "no:cacheprovider", *arguments]


def check_steps(limit):
    """Whether it is right: every op once, then the whole network."""
    for backend in KERNELS:
        yield Step(f"once {backend}", child("once", backend), limit)
    for dtype, backend in itertools.product(("float16", "float32"), KERNELS):
        yield Step(f"network {backend} {dtype}", child("network", backend, dtype), limit)


def network_steps(environments, limit, sizes):
    """The times of the network. environments(step's name, compile threads): where torch.compile works."""
    yield Step("times", child("times"), limit, alone=60)
    for mode, size in itertools.product(MODES, sizes):
        name = f"compiled {mode} {size}"
        yield Step(name, child("compiled", mode, size), limit, environments(name, 2), alone=17)
    yield Step("profile", child("profile"), limit, alone=30)
    yield Step("convolutions", child("convolutions"), limit, alone=60)


def other_timed_steps(environments, limit):
    for op in OPS:
        name = f"rows {op}"
        yield Step(name, child("rows", op), limit, environments(name, 2), alone=14)
    yield Step("precision", child("precision"), limit, alone=12)
    yield Step("training", child("training"), limit, alone=12)
    name = "training compiled"
    yield Step(name, child("training", "compiled"), limit, environments(name, 2), alone=12)


def test_steps(on_gpu, missing, limit):
    """The tests, in groups that run side by side: a broken context costs a group."""
    why = "pytest is not installed; `check` stands in for it" if "pytest" in missing else None
    gpu_only = why or (None if on_gpu else "no GPU")
    others = " and ".join(f"not {op}" for op in OPS)
    for words in (*OPS, others):
        name = f"tests of the GPU, {'others' if words == others else words}"
        yield Step(name, pytest("tests/test_gpu.py", "-k", words), limit, why_not=gpu_only)
    ops = OPS if on_gpu else OPS[:1]
    for op in ops:
        yield Step(f"check {op}", child("check", op), limit)

    def step(op, kernels, words="", more="", env=None):
        command = pytest("tests/ops", "-k", f"{op} and {kernels}{words}")
        return Step(f"tests {op} {kernels}{more}", command, limit, env, why)

    for op, kernels in itertools.product(reversed(ops), ("Triton", "Cuda")):
        if not on_gpu:
            words = " and tiny and test_contract"
            yield step(op, kernels, words, env={"TRITON_INTERPRET": "1"})
        elif kernels == "Cuda":  # compiled already
            yield step(op, kernels)
        else:
            for dtype in DTYPES:
                words = f" and test_contract and {dtype}" + (" and not bfloat16" * (dtype == "float16"))
                yield step(op, kernels, words, f" {dtype}")
            yield step(op, kernels, " and not test_contract", " others")


def sanitizer_steps(on_gpu, path, limit):
    env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # otherwise a neighbour's memory looks like one's own
    why = None if path else "compute-sanitizer is not there"
    for tool, backend in (("memcheck", "triton"), ("memcheck", "cuda"), ("racecheck", "cuda")):
        options = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
        command = [path or "compute-sanitizer", *options, *child("small", backend)]
        yield Step(f"compute-sanitizer {tool} {backend}", command, limit, env, why if on_gpu else "no GPU")


def build_step(on_gpu, environment):
    """The CUDA kernels for this GPU, where they are not there and can be made; else for the emulated one."""
    library = ROOT / "mirnet_fast" / "libmirnet_fast_cuda.so"
    if not on_gpu:
        code = "from tests import emulation; emulation.missing() or emulation.build()"
        return Step("build", [sys.executable, "-c", code], 1200)
    why = f"{library.name} is there" if library.exists() else None if environment.get("nvcc") else "no nvcc"
    arch = environment.get("compute capability", "")
    env = {"MIRNET_FAST_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": arch + ("a" if arch == "9.0" else "")}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return Step("build", command, 150, env, why)


def steps(run, tests=True, benchmarks=True):
    """The steps after the first ones, in their order."""
    on_gpu = bool(run.environment.get("gpu"))
    bench = {"MIRNET_BENCH_COMPILE": "default", "MIRNET_BENCH_ROUNDS": "25"}
    if not on_gpu:
        bench = {"MIRNET_BENCH_COMPILE": "0", "MIRNET_BENCH_ROUNDS": "3", "MIRNET_BENCH_TINY": "1"}
    run.base |= bench

    def environments(name, threads):
        # A folder of its own: who is stopped may hold the lock of a shared one.
        folder = run.scratch / "inductor" / name.replace(" ", "-")
        return {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TORCHINDUCTOR_COMPILE_THREADS": str(threads)}

    sizes = SIZES if on_gpu else SIZES[:1]
    result = []
    if tests:
        result += check_steps(240)
    if benchmarks:
        result += [*network_steps(environments, 300, sizes), *other_timed_steps(environments, 300)]
    if tests:
        result += test_steps(on_gpu, run.environment.get("missing packages", []), 200)
        result += sanitizer_steps(on_gpu, run.environment.get("compute-sanitizer"), 60)
    for step in result:
        if step.limit_alone and not on_gpu:
            step.limit_alone *= 5  # the interpreter takes seconds for what a GPU does at once
    return result
