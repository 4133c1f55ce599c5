"""What setup.py decides, what the built parts tell of themselves, and what must not leak into them."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from itertools import pairwise
from pathlib import Path

import pytest

from mirnet_fast import _native

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / f"build/ninja-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"


@pytest.fixture
def setup():
    spec = importlib.util.spec_from_file_location("mirnet_fast_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def python(*arguments, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def build_ext(out, root=ROOT, **environment):
    return python("setup.py", "-q", "build_ext", "--build-lib", out, cwd=root, **environment)


# Decisions


def test_auto_without_a_compiler_says_so_in_one_line_and_succeeds(tmp_path):
    result = build_ext(tmp_path, MIRNET_FAST_BUILD="auto", CXX="/nonexistent")
    assert result.returncode == 0, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("mirnet_fast: no C++ kernels, pure Python only: ")
    assert "named by CXX, '/nonexistent', cannot be run" in line
    assert not list(tmp_path.rglob("*.so"))


def test_no_compiler_on_the_path(tmp_path):
    environment = {"MIRNET_FAST_BUILD": "auto", "PATH": str(tmp_path), "CXX": ""}
    result = build_ext(tmp_path, **environment)
    assert result.returncode == 0
    assert "no C++ compiler (g++ or clang++)" in result.stderr


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("cpu", "MIRNET_FAST_BUILD=cpu cannot be met: the C++ compiler named by CXX, '/nonexistent'"),
        ("cuda", "MIRNET_FAST_BUILD=cuda cannot be met: this version has no CUDA kernels"),
        ("gpu", "MIRNET_FAST_BUILD must be one of auto, none, cpu, cuda; got 'gpu'"),
    ],
)
def test_a_choice_that_cannot_be_met_fails_and_says_why(tmp_path, choice, message):
    result = build_ext(tmp_path, MIRNET_FAST_BUILD=choice, CXX="/nonexistent")
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_none_builds_nothing_and_removes_what_an_earlier_build_left(tmp_path):
    leftover = tmp_path / "mirnet_fast" / "libmirnet_fast_cpu.so"
    leftover.parent.mkdir()
    leftover.touch()
    result = build_ext(tmp_path, MIRNET_FAST_BUILD="none")
    assert result.returncode == 0, result.stderr
    assert result.stderr == "mirnet_fast: pure Python, as MIRNET_FAST_BUILD=none asks\n"
    assert not leftover.exists()


def test_code_that_does_not_compile_is_an_error_in_auto_too(tmp_path):
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "csrc/cpu").mkdir(parents=True)
    for name in ("csrc/bindings.cpp", "csrc/cpu/isa.cpp", "csrc/cpu/isa.h"):
        shutil.copy(ROOT / name, tmp_path / name)
    compiler = script(tmp_path / "c++", '[ "$1" = -dumpmachine ] && echo x86_64-linux-gnu')
    result = build_ext(tmp_path / "out", root=tmp_path, MIRNET_FAST_BUILD="auto", CXX=compiler)
    if "no C++ kernels" in result.stderr:
        pytest.skip(f"nothing to compile with: {result.stderr.strip()}")
    assert result.returncode != 0
    assert "do not compile" in result.stderr


def test_torch_is_looked_for_outside_of_the_isolated_build(setup, tmp_path, monkeypatch):
    answer = '[ -z "$PYTHONPATH" ] && echo \'["2.13.0+cpu", "/t"]\' || echo null'
    monkeypatch.setattr(sys, "executable", script(tmp_path / "python", answer))
    monkeypatch.setenv("PYTHONPATH", "/isolated")
    assert setup.find_torch() == ("2.13.0+cpu", "/t")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("echo null", "no torch in the environment of"),
        ('echo \'["2.9.1", "/t"]\'', "torch is 2.9.1, the C++ kernels need 2.10 or newer"),
    ],
)
def test_no_usable_torch(setup, tmp_path, monkeypatch, answer, message):
    monkeypatch.setattr(sys, "executable", script(tmp_path / "python", answer))
    plan = setup.Plan("auto")
    assert not plan.extensions
    assert plan.failure is None
    assert message in plan.notes[0]
    assert message in setup.Plan("cpu").failure


@pytest.mark.parametrize(("machine", "isas"), [("x86_64", ["base", "avx2", "avx512"]), ("aarch64", ["base"])])
def test_loops_are_compiled_for_every_instruction_set_of_the_machine(
    setup, tmp_path, monkeypatch, machine, isas
):
    (tmp_path / "csrc/cpu/simd").mkdir(parents=True)
    (tmp_path / "csrc/cpu/isa.cpp").touch()
    (tmp_path / "csrc/cpu/simd/op.cpp").touch()
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    plan = setup.Plan("none")
    plan.compiler, plan.torch, plan.extensions = ("g++", machine), ("2.13.0", "/t"), [setup.LIBRARY]
    setup.write_ninja(plan, "b")
    lines = (tmp_path / "b/build.ninja").read_text().splitlines()
    flags = {a.split(":")[0].removeprefix("build b/"): b for a, b in pairwise(lines)}
    assert [isa for isa in setup.ISA_FLAGS if f"csrc/cpu/simd/op.cpp.{isa}.o" in flags] == isas
    for isa in isas:
        loop = flags[f"csrc/cpu/simd/op.cpp.{isa}.o"].split()
        assert f"-DMIRNET_ISA={isa}" in loop
        assert ("-mavx2" in loop, "-mavx512f" in loop) == (isa == "avx2", isa == "avx512")
        assert "-ffast-math" not in loop
    assert "-mavx2" not in flags["csrc/cpu/isa.cpp.o"]


# What was built


def test_native_parts_are_there_where_they_can_be_built(setup):
    plan = setup.Plan(os.environ.get("MIRNET_FAST_BUILD") or "auto")
    if setup.LIBRARY in plan.extensions:
        assert _native.cpu_library_error() is None
    else:
        assert "install again with MIRNET_FAST_BUILD=cpu" in _native.cpu_library_error()
    assert _native.build_info()["compiled"] == (setup.BINDINGS in plan.extensions)


def bindings():
    if not _native.build_info()["compiled"]:
        pytest.skip(f"mirnet_fast._C: {_native.build_info()['reason']}")
    return importlib.import_module("mirnet_fast._C")


def test_build_info():
    bindings()
    info = _native.build_info()
    assert re.match(r"(GCC|Clang) \d+\.", info["compiler"])
    assert info["build"] in ("auto", "cpu")
    assert info["isa_compiled"][0] == "base"
    assert info["isa_active"] in info["isa_compiled"]
    assert info["isa_detected"] in info["isa_compiled"]
    assert info["cuda_architectures"] == ()
    assert info["threads"] >= 1
    assert re.match(r"2\.\d+", info["built_with_torch"])


def isa_active(cap):
    # Loaded by its path, so that torch need not be imported.
    load = (
        "import importlib.util as u, sys; s = u.spec_from_file_location('_C', sys.argv[1]);"
        "m = u.module_from_spec(s); s.loader.exec_module(m); print(m.build_info()['isa_active'])"
    )
    return python("-c", load, bindings().__file__, MIRNET_FAST_CPU_ISA=cap)


@pytest.mark.parametrize("cap", _native.ISAS)
def test_instruction_set_is_capped_by_the_environment(cap):
    best = bindings().build_info()["isa_detected"]
    result = isa_active(cap)
    assert result.stdout.strip() == min(cap, best, key=_native.ISAS.index), result.stderr


def test_unknown_instruction_set_is_refused_by_the_bindings():
    assert "ValueError: MIRNET_FAST_CPU_ISA must be one of base, avx2, avx512; got 'sse9'" in (
        isa_active("sse9").stderr
    )


def test_unknown_instruction_set_is_refused_at_import():
    result = python("-c", "import mirnet_fast", MIRNET_FAST_CPU_ISA="sse9")
    assert result.returncode != 0
    assert "ValueError: MIRNET_FAST_CPU_ISA must be one of base, avx2, avx512; got 'sse9'" in result.stderr


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
    objects = sorted((BUILD / "csrc/cpu/simd").glob(f"*.{isa}.o"))
    if not objects and isa not in bindings().build_info()["isa_compiled"]:
        pytest.skip(f"{isa} is not compiled on this machine")
    assert objects
    own = re.compile(rf"_Z(GV|T[VISTC])?Z*NK?11mirnet_fast3cpu{len(isa)}{isa}")
    for path in objects:
        symbols = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
        shared = re.findall(r"^[0-9a-f ]+ [VvWwu] (\S+)$", symbols, re.MULTILINE)
        foreign = [name for name in shared if not own.match(name)]
        assert not foreign, f"{path.name}: {foreign}"
