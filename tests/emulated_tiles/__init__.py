"""The matrix unit of a processor that has none: csrc/cpu/simd/matrix on tiles that are arrays.

What a tile's product adds up in which order is as Intel's manual has it, so that results are a real unit's
bit for bit.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
COMPILER = shlex.split(os.environ.get("CXX") or "g++")
FLAGS = "-std=c++17 -O2 -fPIC -shared -fvisibility=hidden -Wall -Wextra -Werror -Wno-psabi -ffp-contract=off"
DEFINITIONS = "-DMIRNET_ISA=emulated -DMIRNET_EMULATED_TILES"
PROBE = Path(__file__).with_name("probe.cpp")


def missing():
    """Why the emulation cannot be built here, or None."""
    return None if shutil.which(COMPILER[0]) else f"no {COMPILER[0]}"


@functools.cache
def _kernels():
    """The address of the emulation's table of kernels."""
    sources = [PROBE, *sorted((ROOT / "csrc" / "cpu" / "simd").rglob("*.h"))]
    sources.append(ROOT / "csrc" / "cpu" / "simd" / "matrix" / "convolution.cpp")
    content = b"".join(path.read_bytes() for path in sources) + " ".join([*COMPILER, FLAGS]).encode()
    library = ROOT / "build" / "emulated" / f"tiles-{hashlib.sha256(content).hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        made = library.with_suffix(f".{os.getpid()}")
        command = [*COMPILER, *shlex.split(FLAGS), *shlex.split(DEFINITIONS), PROBE, "-o", made]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the emulated matrix unit does not compile:\n{done.stderr}")
        made.replace(library)
    table = ctypes.CDLL(str(library)).emulated_matrix_kernels
    table.restype = ctypes.c_void_p
    return table()


@contextlib.contextmanager
def emulated_matrix_unit():
    """Inside, convolutions in bfloat16 run on the emulated unit."""
    torch.ops.mirnet_fast_cpu.lend_matrix_kernels(_kernels())
    try:
        yield
    finally:
        torch.ops.mirnet_fast_cpu.lend_matrix_kernels(0)
