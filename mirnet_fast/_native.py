"""The compiled parts: loads the kernel library once and tells how it was built.

Importing this module loads `libmirnet_fast_cpu.so`, which adds kernels to the torch namespace
`mirnet_fast_cpu`. A library that is absent or broken is no error here: `cpu_library_error()`
says why, and `cpu_library_exception` is the original exception, if there was one.

Raises:
    ValueError: the environment variable MIRNET_FAST_CPU_ISA has an unknown value.
"""

import os
from pathlib import Path

import torch

ISA_VARIABLE = "MIRNET_FAST_CPU_ISA"
ISAS = ("base", "avx2", "avx512")

CPU_LIBRARY = Path(__file__).with_name("libmirnet_fast_cpu.so")

cpu_library_exception = None
_cpu_library_error = None


def cpu_library_error():
    """None if the C++ kernels for the CPU are loaded, else one sentence with the reason."""
    return _cpu_library_error


def build_info():
    """How the compiled parts were built and what they run with, as a dict.

    Always there: `compiled` (whether the bindings could be imported), `torch` (the version that
    runs now), `threads`. With the bindings also `build` (the value of MIRNET_FAST_BUILD),
    `built_with_torch`, `compiler`, `cxx_flags`, `isa_compiled`, `isa_detected`, `isa_active`,
    `cuda_architectures`; without them `reason`.
    """
    info = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    try:
        from . import _C
    except ImportError as error:
        return {"compiled": False, "reason": f"no bindings: {error}", **info}
    return {"compiled": True, **_C.build_info(), **info}


def _check_isa(value):
    if value and value not in ISAS:
        raise ValueError(f"{ISA_VARIABLE} must be one of {', '.join(ISAS)}; got {value!r}")


_check_isa(os.environ.get(ISA_VARIABLE))

if not CPU_LIBRARY.exists():
    _cpu_library_error = (
        f"the C++ kernels were not built: there is no {CPU_LIBRARY.name} in {CPU_LIBRARY.parent} "
        "(install again with MIRNET_FAST_BUILD=cpu to see what is missing)"
    )
else:
    try:
        torch.ops.load_library(CPU_LIBRARY)
    except Exception as error:  # whatever a library built for another torch or machine may raise
        cpu_library_exception = error
        _cpu_library_error = f"{CPU_LIBRARY.name} could not be loaded: {error}"
