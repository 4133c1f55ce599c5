"""What setup.py decides, what the built parts tell of themselves, and what must not leak into them."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from setuptools import Distribution, Extension

from mirnet_fast import _native

from .audit.cuda import foreign_symbols
from .cases import exhaustive, first_of

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
        ("cuda", "MIRNET_FAST_BUILD=cuda cannot be met: the C++ compiler named by CXX, '/nonexistent'"),
        ("gpu", "MIRNET_FAST_BUILD must be one of auto, none, cpu, cuda; got 'gpu'"),
    ],
)
def test_a_choice_that_cannot_be_met_fails_and_says_why(tmp_path, choice, message):
    result = build_ext(tmp_path, MIRNET_FAST_BUILD=choice, CXX="/nonexistent")
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_none_builds_nothing_and_removes_what_an_earlier_build_left(tmp_path):
    leftovers = [tmp_path / "mirnet_fast" / f"libmirnet_fast_{kind}.so" for kind in ("cpu", "cuda")]
    leftovers[0].parent.mkdir()
    for leftover in leftovers:
        leftover.touch()
    result = build_ext(tmp_path, MIRNET_FAST_BUILD="none")
    assert result.returncode == 0, result.stderr
    assert result.stderr == "mirnet_fast: pure Python, as MIRNET_FAST_BUILD=none asks\n"
    assert not any(leftover.exists() for leftover in leftovers)


def test_code_that_does_not_compile_is_an_error_in_auto_too(tmp_path):
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "csrc/cpu").mkdir(parents=True)
    for name in ("csrc/cpu/isa.cpp", "csrc/cpu/isa.h"):
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


# What a build tells of itself


def wheel(setup, monkeypatch, extensions):
    """The command that makes the wheel, for a plan with these extensions."""
    plan = setup.Plan("none")
    plan.extensions = extensions
    monkeypatch.setattr(setup, "plan", plan, raising=False)
    described = Distribution({"name": "some", "ext_modules": [Extension(name, []) for name in extensions]})
    command = setup.Wheel(described)
    command.ensure_finalized()
    return command


def test_a_wheel_is_for_a_machine_and_any_python(setup, monkeypatch):
    machine = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel(setup, monkeypatch, [setup.LIBRARY]).get_tag() == ("py3", "none", machine)
    assert wheel(setup, monkeypatch, []).get_tag() == ("py3", "none", "any")


def test_no_library_has_a_name_for_one_python(setup):
    command = setup.BuildExt(Distribution())
    for name in (setup.LIBRARY, setup.CUDA_LIBRARY):
        assert command.get_ext_filename(name) == f"{name.replace('.', '/')}.so"


def test_what_is_left_out_is_the_last_that_a_wheel_prints(setup, monkeypatch, capsys):
    command = wheel(setup, monkeypatch, [])
    monkeypatch.setattr(setup.bdist_wheel, "run", lambda self: print("adding 'some/file'", file=sys.stderr))
    setup.plan.notes = ["no C++ kernels, pure Python only: no ninja"]
    command.run()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["adding 'some/file'", "mirnet_fast: no C++ kernels, pure Python only: no ninja"]


def test_the_reason_is_installed_with_the_package(tmp_path):
    for choice in ("auto", "none"):
        result = build_ext(tmp_path / choice, MIRNET_FAST_BUILD=choice, CXX="/nonexistent")
        assert result.returncode == 0, result.stderr
    files = (tmp_path / choice / "mirnet_fast/build.json" for choice in ("auto", "none"))
    told, wanted = (json.loads(path.read_text()) for path in files)
    assert told["build"] == "auto" and list(told["left_out"]) == ["cpu"]
    assert "CXX, '/nonexistent', cannot be run" in told["left_out"]["cpu"]
    assert wanted == {"build": "none", "left_out": {}}


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_the_compiler_is_named(setup, tmp_path):
    assert re.fullmatch(r"GCC \d+\.\d+\.\d+", setup.compiler_version("g++"))
    clang = script(tmp_path / "c++", """exec g++ -D__clang__ '-D__clang_version__="14.0.6 "' "$@" """)
    assert setup.compiler_version(clang) == "Clang 14.0.6"


def imported_without_kernels(folder, build):
    """What `import mirnet_fast` prints to stderr where build.json has this and there is no library."""
    package = folder / "mirnet_fast"
    shutil.copytree(ROOT / "mirnet_fast", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (folder / "mirnet_fast" / "build.json").write_text(json.dumps(build))
    # A worker process imports all that the main one does.
    (folder / "user.py").write_text(
        "import mirnet_fast\nimport multiprocessing\nif __name__ == '__main__':\n"
        "    worker = multiprocessing.get_context('spawn').Process(target=print)\n"
        "    worker.start()\n    worker.join()\n"
    )
    result = python("user.py", cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stderr


def test_a_pure_install_that_nobody_chose_warns_once_at_import(tmp_path):
    told = imported_without_kernels(tmp_path, {"build": "auto", "left_out": {"cpu": "no ninja"}})
    assert told.count("UserWarning: the C++ kernels for the CPU were not built") == told.count("Warning") == 1
    for part in ("at the build: no ninja; install again with MIRNET_FAST_BUILD=cpu", "slower"):
        assert part in told


@exhaustive
def test_a_pure_install_that_was_chosen_does_not_warn(tmp_path):
    assert imported_without_kernels(tmp_path, {"build": "none", "left_out": {}}) == ""


@pytest.mark.parametrize(
    ("library", "build", "warns"),
    [
        ("loaded", {"build": "auto"}, False),
        ("absent", {"build": "auto"}, True),
        ("absent", {}, True),  # a source tree where nothing was built
        ("broken", {"build": "cpu"}, True),
        ("absent", {"build": "none"}, False),
    ],
)
def test_who_is_warned(monkeypatch, tmp_path, library, build, warns):
    path = tmp_path / "libmirnet_fast_cpu.so"
    if library != "absent":
        path.touch()
    exception = OSError("too short") if library == "broken" else None
    for name, value in (("CPU_LIBRARY", path), ("cpu_library_exception", exception), ("_built", build)):
        monkeypatch.setattr(_native, name, value)
    monkeypatch.setattr(_native, "_cpu_library_error", f"it is {library}")
    told = _native.unwanted_pure_install()
    assert told.startswith(f"it is {library}; so all runs in plain PyTorch") if warns else told is None


# Decisions about CUDA


@pytest.fixture
def torch_with_cuda(tmp_path):
    """The folder of a torch that says so."""
    folder = tmp_path / "site-packages" / "torch"
    folder.mkdir(parents=True)
    (folder / "version.py").write_text("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\nhip = None\n")
    return folder


def toolkit(home, knows="80 86 89 90 100 120", works=True):
    """A folder that passes for a CUDA toolkit."""
    (home / "bin").mkdir(parents=True)
    (home / "lib64").mkdir()
    (home / "lib64" / "libcudart_static.a").touch()
    names = " ".join(f"sm_{name}" for name in knows.split())
    answers = f"""
    case "$*" in
      *--list-gpu-code*) printf '%s\\n' {names} ;;
      *--version*) echo 'Cuda compilation tools, release 13.0, V13.0.88' ;;
      *--dryrun*) echo '#$ TOP={home}/bin/..' >&2 ;;
      *-E*) {"cat > /dev/null" if works else "echo 'error: unsupported GNU version!' >&2; exit 1"} ;;
    esac"""
    return script(home / "bin" / "nvcc", answers)


def planned(setup, monkeypatch, torch, choice="auto", **environment):
    """The plan where C++ can be compiled, for a torch in this folder."""
    monkeypatch.setattr(setup, "find_compiler", lambda: ("g++", "x86_64"))
    monkeypatch.setattr(setup, "find_torch", lambda: ("2.13.0", str(torch)))
    monkeypatch.setattr(setup, "find_ninja", lambda: ["ninja"])
    for name in ("CUDA_HOME", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    return setup.Plan(choice)


def test_auto_builds_the_cuda_kernels_where_torch_has_cuda(setup, tmp_path, monkeypatch, torch_with_cuda):
    toolkit(tmp_path / "cuda")
    plan = planned(setup, monkeypatch, torch_with_cuda, CUDA_HOME=tmp_path / "cuda")
    assert plan.extensions == [setup.LIBRARY, setup.CUDA_LIBRARY]
    names = "sm_80, sm_86, sm_89, sm_90a, sm_100, sm_120, compute_100"
    assert f"CUDA kernels with nvcc 13.0.88 for {names}" in plan.notes
    assert setup.cuda_of(torch_with_cuda) == "13.0"


def test_auto_leaves_the_cuda_kernels_out_where_torch_has_no_cuda(
    setup, tmp_path, monkeypatch, torch_with_cuda
):
    (torch_with_cuda / "version.py").write_text("cuda: Optional[str] = None\n")
    home = toolkit(tmp_path / "cuda") and tmp_path / "cuda"
    plan = planned(setup, monkeypatch, torch_with_cuda, CUDA_HOME=home)
    assert plan.extensions == [setup.LIBRARY]
    assert (len(plan.notes), plan.left_out) == (1, {})
    plan = planned(setup, monkeypatch, torch_with_cuda, "cuda", CUDA_HOME=home)
    assert setup.CUDA_LIBRARY in plan.extensions
    assert plan.failure is None


@pytest.mark.parametrize("choice", ["auto", "cuda"])
def test_without_nvcc(setup, tmp_path, monkeypatch, torch_with_cuda, choice):
    plan = planned(setup, monkeypatch, torch_with_cuda, choice, CUDA_HOME=tmp_path)
    assert setup.CUDA_LIBRARY not in plan.extensions
    why = f"no bin/nvcc in {tmp_path}, which CUDA_HOME names"
    assert f"no CUDA kernels: {why}" in plan.notes
    assert plan.told()["left_out"] == {"cuda": why}
    expected = None if choice == "auto" else f"MIRNET_FAST_BUILD=cuda cannot be met: {why}"
    assert plan.failure == expected


def test_an_nvcc_that_does_not_suit_the_compiler(setup, tmp_path, monkeypatch, torch_with_cuda):
    path = toolkit(tmp_path / "cuda", works=False)
    plan = planned(setup, monkeypatch, torch_with_cuda, "cuda", CUDA_HOME=tmp_path / "cuda")
    assert f"{path} does not work: error: unsupported GNU version!" in plan.failure


def test_nvcc_is_looked_for_on_the_path_and_beside_torch(setup, tmp_path, monkeypatch, torch_with_cuda):
    path = toolkit(torch_with_cuda.parent / "nvidia" / "cu13")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)
    if not Path("/usr/local/cuda/bin/nvcc").exists():
        assert setup.find_nvcc("g++", torch_with_cuda).command == f"{path} -ccbin g++"
    path = toolkit(tmp_path / "on the path")
    monkeypatch.setattr(setup.shutil, "which", lambda name: path)
    found = setup.find_nvcc("ccache g++", torch_with_cuda)
    assert found.command == f"'{path}'"
    assert found.libraries == str(tmp_path / "on the path" / "lib64")


KNOWN = {"75", "80", "86", "89", "90", "100", "120"}


@pytest.mark.parametrize(
    ("wanted", "knows", "expected"),
    [
        ("", KNOWN, "sm_80 sm_86 sm_89 sm_90a sm_100 sm_120 compute_100"),
        ("", KNOWN - {"100", "120"}, "sm_80 sm_86 sm_89 sm_90a compute_90"),
        ("8.0;9.0a;12.0+PTX", KNOWN, "sm_80 sm_90a sm_120 compute_120"),
        ("8.6 10.0f", KNOWN, "sm_86 sm_100f"),
        (" 9.0a+PTX ; 9.0a ", KNOWN, "sm_90a compute_90a"),
        ("7.5;8.0", KNOWN, "sm_80"),
    ],
)
def test_architectures(setup, wanted, knows, expected):
    names, note = setup.cuda_architectures(wanted, knows)
    assert " ".join(names) == expected
    assert (note == "not for 7.5: the kernels need 8.0 or newer") == ("7.5" in wanted)


@pytest.mark.parametrize(
    ("wanted", "entry"), [("9,0", "9,0"), ("Hopper", "Hopper"), ("8.0;13.0", "13.0"), ("8.0+ptx", "8.0+ptx")]
)
@pytest.mark.parametrize("choice", ["auto", "cuda"])
def test_a_wrong_list_of_architectures_is_named(
    setup, tmp_path, monkeypatch, torch_with_cuda, wanted, entry, choice
):
    toolkit(tmp_path / "cuda")
    given = {"CUDA_HOME": tmp_path / "cuda", "TORCH_CUDA_ARCH_LIST": wanted}
    plan = planned(setup, monkeypatch, torch_with_cuda, choice, **given)
    assert plan.failure.startswith(
        f"TORCH_CUDA_ARCH_LIST={wanted!r}: {entry!r} is none of what nvcc knows (8.0 "
    )


def test_architectures_that_are_all_too_old(setup):
    with pytest.raises(setup.Wrong, match=r"TORCH_CUDA_ARCH_LIST='7.5': the CUDA kernels need 8.0"):
        setup.cuda_architectures("7.5", KNOWN)


def test_the_cuda_library_is_linked_against_torch_or_a_stub_of_its_name(
    setup, tmp_path, monkeypatch, torch_with_cuda
):
    toolkit(tmp_path / "cuda")
    given = {"CUDA_HOME": tmp_path / "cuda", "TORCH_CUDA_ARCH_LIST": "8.0;12.0+PTX"}
    (tmp_path / "csrc/cuda").mkdir(parents=True)
    (tmp_path / "csrc/cuda/op.cu").touch()
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    for cuda in ("'13.0'", "None"):
        (torch_with_cuda / "version.py").write_text(f"cuda: Optional[str] = {cuda}\n")
        plan = planned(setup, monkeypatch, torch_with_cuda, "cuda", **given)
        assert setup.write_ninja(plan, "b")[setup.CUDA_LIBRARY] == "b/libmirnet_fast_cuda.so"
        lines = (tmp_path / "b/build.ninja").read_text().splitlines()
        flags = {a.split(":")[0].removeprefix("build b/"): b for a, b in pairwise(lines)}
        compiled = flags["sm_80-sm_120-compute_120/csrc/cuda/op.cu.o"]
        assert "arch=compute_80,code=sm_80" in compiled
        assert "arch=compute_100,code=sm_120" in compiled
        assert "arch=compute_120,code=compute_120" in compiled
        assert " -ltorch_cuda " in flags["libmirnet_fast_cuda.so"]
        assert ("stub/libtorch_cuda.so" in flags) == (cuda == "None")
        assert "-Lb/stub" in flags["libmirnet_fast_cuda.so"] or cuda != "None"


# What was built


def test_native_parts_are_there_where_they_can_be_built(setup):
    plan = setup.Plan(os.environ.get("MIRNET_FAST_BUILD") or "auto")
    if setup.LIBRARY in plan.extensions:
        assert _native.cpu_library_error() is None
    else:
        assert "install again with MIRNET_FAST_BUILD=cpu" in _native.cpu_library_error()
    assert _native.build_info()["compiled"] == (setup.LIBRARY in plan.extensions)
    if not torch.version.cuda:
        assert _native.cuda_library_error() == f"torch {torch.__version__} has no CUDA"
    elif setup.CUDA_LIBRARY in plan.extensions:
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
    assert "MIRNET_FAST_CPU_ISA must be one of base, avx2, avx512; got 'sse9'" in isa_active("sse9").stderr


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
