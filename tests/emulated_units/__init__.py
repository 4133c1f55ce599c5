"""The units for products of bfloat16 of a processor that has none: csrc/cpu/simd/matrix on plain arithmetic.

What an instruction adds up in which order is as Intel's manual has it, so that convolutions are a real
unit's bit for bit.
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

import pytest
import torch

from mirnet_fast import _native

ROOT = Path(__file__).parents[2]
COMPILER = shlex.split(os.environ.get("CXX") or "g++")
FLAGS = "-std=c++17 -O2 -fPIC -shared -fvisibility=hidden -Wall -Wextra -Werror -Wno-psabi -ffp-contract=off"
UNITS = {"dots": "avx512_bf16", "tiles": "amx"}  # the instruction set that has each
PROBE = Path(__file__).with_name("probe.cpp")


def missing():
    """Why the emulation cannot be built here, or None."""
    return None if shutil.which(COMPILER[0]) else f"no {COMPILER[0]}"


def is_real(unit):
    """Whether the kernels here run on this unit of the machine's own."""
    return _native.build_info().get("isa_active") == UNITS[unit]


def only_where_real(unit):
    """Skips a test that compares the emulation with the machine."""
    if not is_real(unit):
        pytest.skip(f"no {UNITS[unit]} here, or not asked for by MIRNET_FAST_CPU_ISA")


def has_unit():
    """Whether the kernels here run on either."""
    return any(map(is_real, UNITS))


@functools.cache
def _kernels(unit):
    """The address of the emulation's table of kernels."""
    sources = [PROBE, *sorted((ROOT / "csrc" / "cpu" / "simd").rglob("*.h"))]
    sources += sorted((ROOT / "csrc" / "cpu" / "simd" / "matrix").glob("*.cpp"))
    flags = f"{FLAGS} -DMIRNET_ISA=emulated -DMIRNET_EMULATED_{unit.upper()}"
    content = b"".join(path.read_bytes() for path in sources) + " ".join([*COMPILER, flags]).encode()
    library = ROOT / "build" / "emulated" / f"{unit}-{hashlib.sha256(content).hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        made = library.with_suffix(f".{os.getpid()}")
        command = [*COMPILER, *shlex.split(flags), PROBE, "-o", made]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the emulated unit does not compile:\n{done.stderr}")
        made.replace(library)
    table = ctypes.CDLL(str(library)).emulated_matrix_kernels
    table.restype = ctypes.c_void_p
    return table()


@contextlib.contextmanager
def emulated(unit):
    """Inside, products of maps in bfloat16 run on the emulated unit: "dots" (vdpbf16ps) or "tiles" (AMX)."""
    torch.ops.mirnet_fast_cpu.lend_matrix_kernels(_kernels(unit))
    try:
        yield
    finally:
        torch.ops.mirnet_fast_cpu.lend_matrix_kernels(0)
