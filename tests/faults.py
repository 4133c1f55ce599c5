"""Do the tests see what they are there for? Plants faults, one at a time, in a copy of the tree.

    python -m tests.faults               # which of `make test` and `make test-all` catches which fault
    python -m tests.faults wait stride   # of these only

Tests at which a fault aims are tried first; where they miss it, all of the suite are. A fault that neither
suite catches ends this with status 1. Takes about a minute a fault, most of it to compile.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPY = ROOT / "build" / "faults" / "tree"
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "faults", "sanitized", "demo", "photos", "*.egg-info", "__pycache__"
)
SUITES = {"make test": ["-m", "not exhaustive"], "make test-all": []}


@dataclass
class Fault:
    name: str
    what: str
    file: str
    good: str
    bad: str
    aims_at: str  # arguments of pytest


FAULTS = [
    Fault(
        "barrier",
        "a chunk's buffer is refilled while other threads still read it",
        "csrc/cuda/tile.cuh",
        "    use(i % 2);\n    sync_threads();\n",
        "    use(i % 2);\n",
        "tests/ops -k 'Cuda and chunks'",
    ),
    Fault(
        "barrier before use",
        "the spatial gate reads the halo before all of it is there",
        "csrc/cuda/dau_attention.cuh",
        "  }\n  sync_threads();\n  // The rows of taps",
        "  }\n  // The rows of taps",
        "tests/ops -k 'dau_attention and Cuda and order'",
    ),
    Fault(
        "wait",
        "a chunk is used before its copies have landed",
        "csrc/cuda/tile.cuh",
        "wait_for_copies<1>();",
        "wait_for_copies<2>();",
        "tests/ops -k 'Cuda and chunks'",
    ),
    Fault(
        "late copy",
        "the same in one channel count of many",
        "csrc/cuda/tile.cuh",
        "wait_for_copies<1>();",
        "if (chunks != 5 || i != 3) wait_for_copies<1>();",
        "tests/ops -k 'Cuda and chunks'",
    ),
    Fault(
        "index",
        "of equal maxima the last channel gets the gradient, not the first",
        "csrc/cuda/dau_attention.cuh",
        "tie ? other_index < index",
        "tie ? other_index > index",
        "tests/ops/test_dau_attention.py -k 'Cuda and tie'",
    ),
    Fault(
        "stride",
        "rows are taken to be as far apart as they are long",
        "csrc/cuda/launch.cuh",
        "x.stride(0), x.stride(2), x.stride(3)}",
        "x.stride(0), x.size(3) * x.stride(3), x.stride(3)}",
        "tests/ops -k 'Cuda and layouts'",
    ),
    Fault(
        "clamp",
        "the bilinear enlargement reads below the last row",
        "csrc/common/axes.h",
        "return i < 0 ? 0 : i >= inputs ? inputs - 1 : i;",
        "return i < 0 ? 0 : i;",
        "tests/test_common.py tests/ops -k 'bilinear or (residual_up_tail and Cuda)'",
    ),
    Fault(
        "image offset in CUDA",
        "the offset of an image is of 32 bits",
        "csrc/cuda/launch.cuh",
        "data + n * stride_n +",
        "data + int(n * stride_n) +",
        "tests/ops -k 'Cuda and far_apart'",
    ),
    Fault(
        "image offset in Triton",
        "the same in the Triton kernels",
        "kernels/_common.py",
        "n.to(tl.int64) * stride_n",
        "n * stride_n",
        "tests/ops -k 'Triton and far_apart'",
    ),
    Fault(
        "stream",
        "kernels are launched on the default stream, not the current one",
        "csrc/cuda/launch.cuh",
        "shared, stream_, nullptr, 0}",
        "shared, nullptr, nullptr, 0}",
        "tests/ops -k 'blur_pool and Cuda'",
    ),
    Fault(
        "TF32",
        "float32 is multiplied in TF32 whatever torch is told",
        "kernels/_common.py",
        'return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"',
        'return "tf32"',
        "tests/test_kernels_compile.py",
    ),
    Fault(
        "switch",
        "a kernel asks for a switch of torch that raises once a newer one was set",
        "kernels/_common.py",
        'torch.backends.cudnn.conv.fp32_precision == "tf32"',
        "torch.backends.cuda.matmul.allow_tf32",
        "tests/test_kernels_host.py",
    ),
    Fault(
        "new size",
        "every kernel is compiled anew for an image of another size",
        "kernels/_common.py",
        '"height", "width", "count"',
        '"height", "width"',
        "tests/test_kernels_host.py",
    ),
    Fault(
        "waiting",
        "a plan of a GPU waits for the slope of a PReLU, which no recording of a graph bears",
        "mirnet_fast/engine/cuda.py",
        "        result = activation(result)\n",
        "        result = F.leaky_relu(result, activation.weight[0].item())\n",
        "tests/engine/test_cuda.py -k nothing_waits",
    ),
    Fault(
        "torch of the machine",
        "`make gpu` installs a torch beside the one that knows the GPU",
        "Makefile",
        'if $(PYTHON) -c "import torch" 2> /dev/null; then',
        "if false; then",
        "tests/test_gpu_script.py -k make",
    ),
    Fault(
        "shares",
        "every image gets the shares of the first",
        "kernels/skff_select.py",
        "tl.load(sums[part] + n * C + every,",
        "tl.load(sums[part] + every,",
        "tests/ops/test_skff_select.py -k 'Triton and partial_sums'",
    ),
    Fault(
        "tiles of a program",
        "a program that has several tiles writes the first to all of them",
        "kernels/skff_select.py",
        "        if tile < count:\n            values",
        "        if tile < 0:\n            values",
        "tests/ops/test_skff_select.py -k 'Triton and partial_sums'",
    ),
    Fault(
        "channel gate",
        "the channels of every block get the gates of the first",
        "kernels/_dau_forward.py",
        "channel = tl.gather(gate, c, 0)",
        "channel = tl.gather(gate, c - first, 0)",
        "tests/ops/test_dau_attention.py -k 'Triton and more_channels'",
    ),
    Fault(
        "partial sums in CUDA",
        "the last round of partial sums is left out",
        "csrc/cuda/small_layers.cuh",
        "for (int p = place; p < programs; p += side) {",
        "for (int p = place; p + side < programs; p += side) {",
        "tests/ops -k 'Cuda and (skff_select or dau_attention) and contract'",
    ),
    Fault(
        "order of weights",
        "of a weight whose taps lie apart, rows of taps are exchanged with their columns",
        "kernels/_gather.py",
        "row // width % height * tl.load(part + 5) + row % width * tl.load(part + 6)",
        "row // width % height * tl.load(part + 6) + row % width * tl.load(part + 5)",
        "tests/test_kernels_gather.py",
    ),
    Fault(
        "sums of the run before",
        "the kernels add to the sums of the run before",
        "mirnet_fast/engine/cuda.py",
        "cleared = [self._sums.view(self.dtype)] if self._sums.numel() else []",
        "cleared = [self._sums.view(self.dtype)[:0]] if self._sums.numel() else []",
        "tests/engine/test_cuda.py -k replayed",
    ),
    Fault(
        "padding of tables",
        "a blur reads the first pixel with weight 0, where a NaN may be",
        "kernels/_resample.py",
        "mask = (share != 0)[:, None] & (c < C)[None, :]",
        "mask = inside[:, None] & (c < C)[None, :]",
        "tests/ops -k 'Triton and special'",
    ),
    Fault(
        "dtype",
        "sums over the pixels are kept in 16 bits, which they exceed",
        "kernels/skff_select.py",
        "sums = first.new_empty((n, programs, rows, channels), dtype=torch.float32)",
        "sums = first.new_empty((n, programs, rows, channels))",
        "tests/ops/test_skff_select.py -k 'Triton and large_means'",
    ),
    Fault(
        "padding of a convolution",
        "a tap beyond the last column reads the first of the next row",
        "kernels/_convolution.py",
        "inside = (row >= 0) & (row < rows) & (column >= 0) & (column < width)",
        "inside = (row >= 0) & (row < rows) & (column >= 0)",
        "tests/test_kernels_convolutions.py -k 'contract and addresses'",
    ),
    Fault(
        "tap",
        "an odd row of a transposed convolution takes its two rows of taps in the wrong order",
        "kernels/_convolution.py",
        "(1 + below - 2 * row) * SIZE",
        "(1 - below + 2 * row * below) * SIZE",
        "tests/test_kernels_convolutions.py -k 'Transposed and contract'",
    ),
    Fault(
        "bands of a convolution",
        "a band of rows is taken from the first row on",
        "kernels/_convolution.py",
        "first_row + h0,",
        "h0,",
        "tests/test_kernels_convolutions.py -k bands",
    ),
    Fault(
        "maximum over padding",
        "outputs that are not there count in a pixel's maximum",
        "kernels/_convolution.py",
        'channel_max(tl.where((o < K)[None, :], value, -float("inf")))',
        "channel_max(value)",
        "tests/test_kernels_convolutions.py -k statistics",
    ),
    Fault(
        "sums beyond the border",
        "pixels of a tile beyond the map count in the sums",
        "kernels/_common.py",
        "part = tl.sum(tl.where(inside[:, None], value, 0), 0).to(tl.float64)",
        "part = tl.sum(value, 0).to(tl.float64)",
        "tests/test_kernels_convolutions.py -k 'statistics or sums'",
    ),
    Fault(
        "rounded sums",
        "the sums over a program's pixels are rounded before they are added",
        "kernels/_common.py",
        "part = tl.sum(tl.where(inside[:, None], value, 0), 0).to(tl.float64)",
        "part = tl.sum(tl.where(inside[:, None], value, 0), 0).to(tl.float16).to(tl.float64)",
        "tests/test_kernels_convolutions.py -k sums",
    ),
    Fault(
        "channels of a box",
        "of a map whose channels no box ends at, one reads those of the next tap",
        "kernels/_convolution.py",
        'c["BK"] = math.gcd(c["BK"], x.shape[1]) if by_boxes else',
        'c["BK"] = power_of_two(x.shape[1]) if by_boxes else',
        "tests/test_kernels_convolutions.py -k 'contract and boxes'",
    ),
    Fault(
        "unaligned box",
        "a slice that starts between multiples of 16 bytes is read in boxes",
        "kernels/_convolution.py",
        "return x.shape[1] % 16 == 0 and aligned and",
        "return x.shape[1] % 16 == 0 and",
        "tests/test_kernels_convolutions.py -k slices",
    ),
    Fault(
        "infinities behind a convolution",
        "the NaNs of outputs that are not there reach those of the tail",
        "kernels/conv_transpose3x3.py",
        "total = tl.where((o < K)[None, :], total, 0)",
        "total = total",
        "tests/test_kernels_convolutions.py -k 'Transposed and special'",
    ),
    Fault(
        "border of the enlargement",
        "the bilinear branch of a phase leans to the wrong side",
        "kernels/conv_transpose3x3.py",
        "w + j * (2 * right - 1)",
        "w + j * (1 - 2 * right)",
        "tests/test_kernels_convolutions.py -k 'Transposed and contract'",
    ),
    Fault(
        "through registers",
        "a box goes through registers to the tensor cores: right, but slow",
        "kernels/_convolution.py",
        "            total = tl.dot(share, value.T, total, input_precision=PRECISION)\n    else:",
        "            total = tl.dot(value, share.T, total.T, input_precision=PRECISION).T\n    else:",
        "tests/test_kernels_compile.py -k few",
    ),
    Fault(
        "new size",
        "a new image size compiles a convolution anew",
        "kernels/_convolution.py",
        "@triton.jit(do_not_specialize=SIZES)",
        "@triton.jit",
        "tests/test_kernels_compile.py -k size",
    ),
    Fault(
        "row padding",
        "rows in shared memory lie in the same banks: right, but slow",
        "csrc/cuda/tile.cuh",
        "constexpr int kRow = K + 16 / int(sizeof(T));",
        "constexpr int kRow = K;",
        "tests/ops -k 'Cuda and bank'",
    ),
    Fault(
        "stale weight",
        "packed weights are used after the weight has changed",
        "csrc/cpu/packed_weights.cpp",
        "return found->second.print == print ? found->second.weights : nullptr;",
        "return found->second.print.size() == print.size() ? found->second.weights : nullptr;",
        "tests/test_packed_weights.py",
    ),
    Fault(
        "remainder of threads",
        "rows that the number of threads does not divide are left out",
        "csrc/cpu/run.h",
        "end = count * (share + 1) / threads;",
        "end = begin + count / threads;",
        "tests/ops -k 'skff_select and (number_of_threads or float64)'",
    ),
    Fault(
        "NaN",
        "PReLU of the C++ kernels swallows a NaN",
        "csrc/cpu/simd/tile_io.h",
        "return x > V{} ? x : x * slope;",
        "return x > V{} ? x : (x <= V{} ? x * slope : V{});",
        "tests/ops -k 'residual_up_tail and special'",
    ),
    Fault(
        "residual",
        "without gradients the DAU adds no input",
        "mirnet_fast/engine/bound.py",
        'maps = task.writes["out"], task.reads["r"], task.reads["x"]',
        'maps = task.writes["out"], task.reads["r"], None',
        "tests/test_modules.py",
    ),
    Fault(
        "fake strides",
        "torch.compile is promised another memory format than comes",
        "mirnet_fast/ops/_registration.py",
        "channels_last = x.dim() == 4 and x.stride(1) == 1 and x.stride(3) != 1",
        "channels_last = x.dim() == 4 and x.stride(1) == 1",
        "tests/ops -k 'opcheck or strides'",
    ),
    Fault(
        "stale module",
        "a replaced parameter is not seen by a plan",
        "mirnet_fast/engine/eligibility.py",
        "                and _are_same([*_values(self._holders)], self._held)\n",
        "",
        "tests/engine/test_staleness.py",
    ),
    Fault(
        "lifetime",
        "a value's place is given away one call too early",
        "mirnet_fast/engine/memory.py",
        "(spans[others, 1] >= spans[i, 0])",
        "(spans[others, 1] > spans[i, 0])",
        "tests/engine",
    ),
    Fault(
        "overwritten",
        "a map that is read later is overwritten by what replaces it",
        "mirnet_fast/engine/memory.py",
        "                and last[window.value] <= written[out.value]\n",
        "",
        "tests/engine",
    ),
    Fault(
        "kept by a hook",
        "what a called module gets lies in the plan's own memory",
        "mirnet_fast/engine/graph.py",
        "            value.outside = True\n",
        "",
        "tests/engine",
    ),
    Fault(
        "distance 0",
        "a map's pixels that all lie at one place are taken for packed weights",
        "csrc/cpu/simd/gemm.h",
        "piece<A>(take, rows, a + i, 1, sk, tile.data + column, tile.ld, k,",
        "piece<A>(take, rows, a + i, 1, sk, tile.data + column, tile.ld ? tile.ld : take * kLanes<A>, k,",
        "tests/ops -k one_place",
    ),
    Fault(
        "special values",
        "a NaN reaches the outputs of the whole tile of a convolution",
        "csrc/cpu/simd/winograd/epilogue.h",
        "return has_nan(sum - sum);",
        "return false && has_nan(sum - sum);",
        "tests/ops/test_conv3x3.py tests/ops/test_conv_transpose3x3.py -k special",
    ),
    Fault(
        "hook",
        "a hook on a layer that is not called is not looked for",
        "mirnet_fast/engine/eligibility.py",
        'HOOKS = ("_forward_hooks", ',
        "HOOKS = (",
        "tests/test_layers.py",
    ),
    Fault(
        "casts",
        "under autocast tensors are cast together although their gradients are wanted",
        "mirnet_fast/ops/_registration.py",
        "        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))\n",
        "",
        "tests/ops -k autocast",
    ),
    Fault(
        "held maps",
        "a block holds its streams while what they become is made",
        "mirnet_fast/modules/network.py",
        "            streams.clear()\n",
        "            held = [*streams]\n",
        "tests/test_memory.py",
    ),
    Fault(
        "settings",
        "a forward sees settings that change while it runs",
        "mirnet_fast/modules/_fused.py",
        "with backends.settings_kept():",
        "with contextlib.nullcontext():",
        "tests/test_layers.py -k settings",
    ),
    Fault(
        "colours",
        "pictures are written with red and blue exchanged",
        "mirnet_fast/images/write.py",
        "values.permute(1, 2, 0).numpy()",
        "values.flip(0).permute(1, 2, 0).numpy()",
        "tests/cli tests/test_images.py",
    ),
    Fault(
        "proof",
        "accelerate() does not look at the gradients of parameters",
        "mirnet_fast/accelerate/prove.py",
        '        compared |= {f"the gradient of {name}": p.grad for name, p in module.named_parameters()}\n',
        "",
        "tests/test_accelerate_proofs.py",
    ),
    Fault(
        "resumed training",
        "a training that goes on does so with new moments of the optimiser",
        "mirnet_fast/training/loop.py",
        '        load_whole_state(state["optimizer"], self.network, self.optimizer)\n',
        "",
        "tests/test_training.py",
    ),
]


def run(*command, **options):
    return subprocess.run(command, cwd=COPY, capture_output=True, text=True, **options)


def copy_tree():
    """The tree with what is built in it, so that a fault compiles no more than it changes."""
    if COPY.exists():
        shutil.rmtree(COPY)
    shutil.copytree(ROOT, COPY, symlinks=True, ignore=LEFT_OUT)


def build():
    """Why the copy does not compile, or None."""
    emulated = "from tests import emulation; emulation.missing() or emulation.build()"
    for command in (["setup.py", "-q", "build_ext", "--inplace"], ["-c", emulated]):
        done = run(sys.executable, *command)
        if done.returncode:
            return done.stdout + done.stderr
    return None


def failing(suite, where=""):
    """The first test of a suite, or of a part of it, that fails; None where none does."""
    words = shlex.split(where) or ["-n", "auto", "--maxprocesses", "8", "--dist", "loadgroup"]
    options = ["-x", "-q", "-p", "no:cacheprovider", "--ignore=tests/test_faults.py"]  # which sees them all
    command = [sys.executable, "-m", "pytest", *options, *SUITES[suite], *words]
    done = run(*command, env={**os.environ, "OMP_NUM_THREADS": "1"})  # as in the processes of `make test`
    if done.returncode in (0, 5):  # 5: no test of the suite is there
        return None
    if done.returncode > 1:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    found = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return found.group(1) if found else "the process ended"


def caught(fault):
    """{suite: the test that catches the fault, or None}."""
    path = COPY / fault.file
    before = path.read_text()
    if before.count(fault.good) != 1:
        raise RuntimeError(f"{fault.name}: {fault.file} has {before.count(fault.good)} times {fault.good!r}")
    path.write_text(before.replace(fault.good, fault.bad))
    try:
        if why := build():
            raise RuntimeError(f"{fault.name}: the fault does not compile:\n{why}")
        result, test = {}, None
        for suite in SUITES:  # what the first catches, the second does, which has all its tests
            test = test or failing(suite, fault.aims_at) or failing(suite)
            result[suite] = test
        return result
    finally:
        path.write_text(before)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="FAULT", help=", ".join(fault.name for fault in FAULTS))
    chosen = parser.parse_args().names
    unknown = set(chosen) - {fault.name for fault in FAULTS}
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    faults = [fault for fault in FAULTS if not chosen or fault.name in chosen]
    copy_tree()
    if why := build():
        raise SystemExit(why)
    counts = dict.fromkeys(SUITES, 0)
    for fault in faults:
        start = time.monotonic()
        tests = caught(fault)
        for suite, test in tests.items():
            counts[suite] += test is not None
        suite, test = next(((s, t) for s, t in tests.items() if t), ("nothing", ""))
        told = f"{fault.name:22} {suite:14} {time.monotonic() - start:4.0f} s  {test}"
        print(f"{told}\n    {fault.what}", flush=True)
    print(", ".join(f"{suite}: {count} of {len(faults)}" for suite, count in counts.items()))
    sys.exit(counts["make test-all"] < len(faults))


if __name__ == "__main__":
    main()
