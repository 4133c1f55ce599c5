"""The CUDA kernels on the CPU: csrc/cuda/*.cu compiled by g++ with emulator.h in place of a GPU.

The library registers them for CPU tensors under `mirnet_fast_cuda`, so that the tests of the ops run
them as they are, index arithmetic, barriers, copies and matrix fragments included.
"""

import contextlib
import ctypes
import fcntl
import functools
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import mirnet_fast
from mirnet_fast import backends

ROOT = Path(__file__).parents[2]
BUILD = Path(
    "build", "emulated"
)  # below ROOT, like all paths of the build, so that a copy of the tree keeps it
COMPILER = os.environ.get("CXX") or "g++"
FLAGS = (
    "-std=c++17 -O1 -g1 -fPIC -fvisibility=hidden -Wall -Wextra -Werror -Wno-psabi -Wno-unknown-pragmas "
    "-Wno-unused-function -ffp-contract=off -DMIRNET_EMULATED -DTORCH_TARGET_VERSION=0x020a000000000000"
)


def cuda_include():
    """The folder of cuda_fp16.h, or None."""
    homes = [os.environ.get("CUDA_HOME")]
    homes += [Path(nvcc).resolve().parents[1] for nvcc in [shutil.which("nvcc")] if nvcc]
    homes += [Path(path) / "nvidia" / "cu13" for path in sys.path] + ["/usr/local/cuda"]
    for home in filter(None, homes):
        if (Path(home) / "include" / "cuda_fp16.h").exists():
            return Path(home) / "include"
    return None


@functools.cache
def missing():
    """Why the emulated kernels cannot be built here, or None."""
    if os.uname().machine != "x86_64":
        return "the emulated GPU switches fibers on x86-64 only"
    if shutil.which(shlex.split(COMPILER)[0]) is None:
        return f"no {COMPILER}"
    if cuda_include() is None:
        return "no CUDA headers: neither a CUDA toolkit nor the package nvidia-cuda-runtime"
    return None


def build(sources=None, name="libmirnet_fast_cuda_emulated.so", folder=BUILD):
    """The library of these sources, csrc/cuda/*.cu unless told: its path, once all is up to date."""
    torch_folder = Path(torch.__file__).parent
    includes = f"-isystem {torch_folder}/include -isystem {cuda_include()} -Itests/emulation"
    libraries = f"-L{torch_folder}/lib -Wl,-z,defs,--as-needed -ltorch_cpu -lc10"
    lines = [
        f"builddir = {folder}",
        "rule compile",
        f"  command = {COMPILER} {FLAGS} {includes} -MMD -MF $out.d -x c++ -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {COMPILER} -shared $in -o $out {libraries}",
    ]
    objects = []
    for source in sources or sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        objects.append(f"{folder}/{source.name}.o")
        lines.append(f"build {objects[-1]}: compile {source.relative_to(ROOT)}")
    lines.append(f"build {folder / name}: link {' '.join(objects)}")
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    with (ROOT / folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ninja = folder / f"{name}.ninja"
        (ROOT / ninja).write_text("\n".join(lines) + "\n")
        command = [sys.executable, "-m", "ninja", "-f", ninja]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the emulated CUDA kernels do not compile:\n{done.stdout}{done.stderr}")
    return ROOT / folder / name


@functools.cache
def _load():
    library = build()
    torch.ops.load_library(library)
    return ctypes.CDLL(str(library))


def bank_conflicts():
    """How often ldmatrix has had to wait for banks so far."""
    function = _load().mirnet_emulation_bank_conflicts
    function.restype = ctypes.c_long
    return function()


@contextlib.contextmanager
def emulated_gpu():
    """Inside, the backend "cuda" is the emulated one, takes CPU tensors, and is chosen."""
    _load()
    saved = [(d, dict(d)) for d in (backends._UNAVAILABLE, backends._DEVICES, backends._DTYPES)]
    backends._UNAVAILABLE.pop("cuda", None)
    backends._DEVICES["cuda"] = ("cuda", "cpu")
    backends._DTYPES["cuda"] = (torch.float32, torch.float16, torch.bfloat16)
    try:
        with mirnet_fast.use_backend("cuda"):
            yield
    finally:
        for now, before in saved:
            now.clear()
            now.update(before)
