"""The compiled parts: loads the kernel libraries once and tells how they were built.

Importing this module loads `libmirnet_fast_cpu.so`, which adds kernels to the torch namespace
`mirnet_fast_cpu`, and where torch has CUDA `libmirnet_fast_cuda.so`, likewise. A library that is
absent or broken is no error here: `cpu_library_error()` and `cuda_library_error()` say why, and
`cpu_library_exception` and `cuda_library_exception` are the original exceptions, if there were any.
Neither is a wrong value of an environment variable that the kernels read: PROBLEMS says what is wrong, and
so does `cpu_library_error()`.
"""

import json
import multiprocessing
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch

ISA_VARIABLE = "MIRNET_FAST_CPU_ISA"
ISAS = ("base", "avx2", "avx512", "avx512_bf16", "amx")
PACKED_VARIABLE = "MIRNET_FAST_PACKED_MB"
PACKED_LIMIT = 2**30  # megabytes; the kernels take fewer

CPU_LIBRARY = Path(__file__).with_name("libmirnet_fast_cpu.so")
CUDA_LIBRARY = Path(__file__).with_name("libmirnet_fast_cuda.so")
_BUILD_INFO = Path(__file__).with_name("build.json")  # of setup.py
_built = json.loads(_BUILD_INFO.read_text()) if _BUILD_INFO.exists() else {}


def cpu_library_error() -> str | None:
    """None if the C++ kernels for the CPU are loaded, else one sentence with the reason."""
    return _cpu_library_error


def cuda_library_error() -> str | None:
    """None if the CUDA kernels are loaded, else one sentence with the reason."""
    return _cuda_library_error


def unwanted_pure_install() -> str | None:
    """None, or why all runs in plain PyTorch though nobody asked for that by MIRNET_FAST_BUILD=none."""
    if _loaded() or _built.get("build") == "none":
        return None
    return (
        f"{_cpu_library_error}; so all runs in plain PyTorch on the CPU, several times slower "
        "(if that is what you want, install with MIRNET_FAST_BUILD=none)"
    )


def _loaded():
    return CPU_LIBRARY.exists() and cpu_library_exception is None


def cuda_code_for(capability: tuple[int, int]) -> bool:
    """Whether the CUDA kernels were compiled for a GPU of this (major, minor) compute capability.

    True also where build_info() does not tell.
    """
    have = build_info().get("cuda_architectures")
    return not have or any(_runs_on(name, capability) for name in have)


def _runs_on(name, capability):
    """Whether code named like sm_86, sm_90a or compute_120 runs on a GPU of this compute capability."""
    [(kind, number, suffix)] = re.findall(r"^(sm|compute)_(\d+)([af]?)$", name)
    made_for = divmod(int(number), 10)
    if suffix == "a":
        return capability == made_for
    same_major = made_for[0] == capability[0]
    return capability >= made_for and (same_major or (kind == "compute" and not suffix))


def build_info() -> dict[str, Any]:
    """How the compiled parts were built and what they run with, as a dict.

    Always there: `compiled` (whether the C++ kernels are loaded), `torch` (the version that runs
    now), `threads`. If so also `build` (the value of MIRNET_FAST_BUILD), `built_with_torch`,
    `compiler`, `cxx_flags`, `isa_compiled`, and of the CUDA kernels `nvcc` (its version) and
    `cuda_architectures`, empty if they were not built. If they run also `isa_detected` and `isa_active`,
    otherwise `reason`.
    """
    info = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    built = {key: value for key, value in _built.items() if key != "left_out"} if _loaded() else {}
    if _cpu_library_error is None:
        built |= {"isa_detected": _isa("isa_detected"), "isa_active": isa_active()}
    else:
        built["reason"] = _cpu_library_error
    return {"compiled": _loaded(), **built, **info}


def isa_active() -> str | None:
    """The instruction set that the kernels for the CPU run with, None where these do not run."""
    return _isa("isa_active") if _cpu_library_error is None else None


def _isa(op):
    return ISAS[getattr(torch.ops.mirnet_fast_cpu, op)()]


def _problems(environment):
    """A sentence for each variable whose value the kernels for the CPU would refuse."""
    isa, megabytes = (environment.get(name, "") for name in (ISA_VARIABLE, PACKED_VARIABLE))
    found = []
    if isa and isa not in ISAS:
        found.append(f"environment variable {ISA_VARIABLE} must be one of {', '.join(ISAS)}; got {isa!r}")
    if megabytes and not (re.fullmatch("[0-9]{1,10}", megabytes) and int(megabytes) < PACKED_LIMIT):
        found.append(
            f"environment variable {PACKED_VARIABLE} must be a number of megabytes, 0 or more; "
            f"got {megabytes!r}"
        )
    return found


def _load(library, kernels, choice):
    """(None, None), or why the library is not there and the original exception, if there was one."""
    if not library.exists():
        why = _built.get("left_out", {}).get(choice)
        return (
            f"the {kernels} were not built: there is no {library.name} in {library.parent} "
            f"({f'at the build: {why}; ' if why else ''}install again with MIRNET_FAST_BUILD={choice} "
            "to see what is missing)"
        ), None
    try:
        torch.ops.load_library(library)
    except Exception as error:  # whatever a library built for another torch or machine may raise
        return f"{library.name} could not be loaded: {error.__cause__ or error}", error
    return None, None


PROBLEMS = _problems(os.environ)

_cpu_library_error, cpu_library_exception = _load(CPU_LIBRARY, "C++ kernels for the CPU", "cpu")
if PROBLEMS and _cpu_library_error is None:
    _cpu_library_error = PROBLEMS[0]
if torch.version.cuda:
    _cuda_library_error, cuda_library_exception = _load(CUDA_LIBRARY, "CUDA kernels", "cuda")
else:
    _cuda_library_error, cuda_library_exception = f"torch {torch.__version__} has no CUDA", None

# Once, not also by every worker of a data loader, which has its name before it knows its parent.
if (_why := unwanted_pure_install()) and multiprocessing.current_process().name == "MainProcess":
    warnings.warn(_why, stacklevel=1)
