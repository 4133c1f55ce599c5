"""What was built: what it tells of itself, and what must not leak into it."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig

import pytest
import torch

from build_support.flags import MATRIX_FLAGS
from build_support.plan import CUDA_LIBRARY, LIBRARY, Plan
from mirnet_fast import _native

from .audit.cuda import foreign_symbols
from .building import ROOT, python
from .cases import first_of

BUILD = ROOT / f"build/ninja-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"


def test_native_parts_are_there_where_they_can_be_built():
    plan = Plan(os.environ.get("MIRNET_FAST_BUILD") or "auto")
    if LIBRARY in plan.extensions:
        assert _native.cpu_library_error() is None
    else:
        assert "install again with MIRNET_FAST_BUILD=cpu" in _native.cpu_library_error()
    assert _native.build_info()["compiled"] == (LIBRARY in plan.extensions)
    if not torch.version.cuda:
        assert _native.cuda_library_error() == f"torch {torch.__version__} has no CUDA"
    elif CUDA_LIBRARY in plan.extensions:
        assert _native.cuda_library_error() is None
    else:
        assert "install again with MIRNET_FAST_BUILD=cuda" in _native.cuda_library_error()


def test_a_library_that_cannot_be_loaded_is_no_error_of_the_import(tmp_path):
    (tmp_path / "broken.so").write_text("no library")
    told, exception = _native._load(tmp_path / "broken.so", "CUDA kernels", "cuda")
    assert told.startswith("broken.so could not be loaded: ")
    assert isinstance(exception, OSError)
    told, exception = _native._load(tmp_path / "none.so", "CUDA kernels", "cuda")
    assert told.startswith(f"the CUDA kernels were not built: there is no none.so in {tmp_path}")
    assert "MIRNET_FAST_BUILD=cuda" in told
    assert exception is None


@pytest.mark.skipif(_native.cpu_library_error() is not None, reason="the C++ kernels were not built")
def test_the_cpu_library_has_only_symbols_of_the_stable_abi():
    assert foreign_symbols(_native.CPU_LIBRARY) == []


def build_info():
    info = _native.build_info()
    if not info["compiled"]:
        pytest.skip(info["reason"])
    return info


def test_build_info():
    info = build_info()
    assert re.match(r"(GCC|Clang) \d+\.", info["compiler"])
    assert info["build"] in ("auto", "cpu", "cuda")
    assert info["isa_compiled"][0] == "base"
    assert info["isa_active"] in info["isa_compiled"]
    assert info["isa_detected"] in info["isa_compiled"]
    assert bool(info["nvcc"]) == bool(info["cuda_architectures"]) == _native.CUDA_LIBRARY.exists()
    assert info["threads"] >= 1
    assert re.match(r"2\.\d+", info["built_with_torch"])


def isa_active(cap):
    load = "import sys, torch; torch.ops.load_library(sys.argv[1])"
    ask = f"{load}; print(torch.ops.mirnet_fast_cpu.isa_active())"
    return python("-c", ask, _native.CPU_LIBRARY, MIRNET_FAST_CPU_ISA=cap)


@pytest.mark.parametrize("cap", first_of(_native.ISAS))
def test_instruction_set_is_capped_by_the_environment(cap):
    best = build_info()["isa_detected"]
    result = isa_active(cap)
    assert result.stdout.strip() == str(min(map(_native.ISAS.index, (cap, best)))), result.stderr


def test_unknown_instruction_set_is_refused_by_the_library():
    build_info()
    assert (
        "MIRNET_FAST_CPU_ISA must be one of base, avx2, avx512, avx512_bf16, amx; got 'sse9'"
        in isa_active("sse9").stderr
    )


def test_kernels_are_part_of_the_package():
    spec = importlib.util.find_spec("mirnet_fast.kernels")
    assert spec is not None
    assert "Triton" in importlib.import_module("mirnet_fast.kernels").__doc__


@pytest.mark.parametrize("isa", _native.ISAS)
def test_loop_objects_share_no_inline_code_with_the_rest(isa):
    # The linker keeps one copy of a weak symbol: if that is the AVX-512 one of a function that
    # other files use too, older processors crash. So each must lie in its own namespace.
    if not BUILD.exists():
        pytest.skip(f"no build directory {BUILD.relative_to(ROOT)}")
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    folder = "matrix/" if isa in MATRIX_FLAGS else ""
    objects = sorted((BUILD / "csrc/cpu/simd").glob(f"{folder}*.{isa}.o"))
    if not objects and isa not in build_info()["isa_compiled"]:
        pytest.skip(f"{isa} is not compiled on this machine")
    assert objects
    own = re.compile(rf"_Z(GV|T[VISTC])?Z*NK?11mirnet_fast3cpu{len(isa)}{isa}")
    for path in objects:
        symbols = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
        shared = re.findall(r"^[0-9a-f ]+ [VvWwu] (\S+)$", symbols, re.MULTILINE)
        # A pointer to the C++ library's handler of exceptions, the same in all: a buffer may be too large.
        shared = [name for name in shared if name != "DW.ref.__gxx_personality_v0"]
        foreign = [name for name in shared if not own.match(name)]
        assert not foreign, f"{path.name}: {foreign}"
