"""What setup.py decides, and what a build tells of itself."""

import json
import re
import shutil
import sys
import sysconfig
from itertools import pairwise

import pytest
from setuptools import Distribution, Extension

from build_support import commands, ninja_file
from build_support.flags import ISA_FLAGS
from build_support.plan import CUDA_LIBRARY, LIBRARY, Plan
from build_support.toolchain import compiler_version, find_torch
from mirnet_fast import _native

from .building import ROOT, python, script
from .cases import exhaustive


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


def test_it_builds_from_any_folder_and_imports_no_torch(tmp_path):
    code = f"""
import runpy, sys
sys.argv = ["setup.py", "-q", "build_ext", "--build-lib", {str(tmp_path)!r}]
runpy.run_path({str(ROOT / "setup.py")!r}, run_name="__main__")
print(sorted({{"torch", "numpy", "mirnet_fast"}} & set(sys.modules)))
"""
    result = python("-c", code, cwd=tmp_path, MIRNET_FAST_BUILD="auto", CXX="/nonexistent")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
    assert json.loads((tmp_path / "mirnet_fast/build.json").read_text())["build"] == "auto"


@exhaustive
def test_a_source_distribution_has_all_that_its_build_needs(tmp_path):
    made = python("setup.py", "-q", "egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path)
    assert made.returncode == 0, made.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path)
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    # A compiler that knows all flags and makes nothing: ninja is asked for all, and that is looked at.
    answers = 'case "$*" in -dumpmachine) echo x86_64-linux-gnu;; *" -E "*) ;; *) exit 1;; esac'
    compiler = script(tmp_path / "c++", answers)
    result = build_ext(tmp_path / "out", unpacked, MIRNET_FAST_BUILD="auto", CXX=compiler)
    if "no C++ kernels" in result.stderr:
        pytest.skip(f"nothing to compile with: {result.stderr.strip()}")
    told = {entry["file"] for entry in json.loads((unpacked / "build/compile_commands.json").read_text())}
    assert told == {str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/cpu/**/*.cpp")}


def test_what_is_no_code_goes_along(tmp_path):
    result = python("setup.py", "-q", "build_py", "--build-lib", tmp_path, MIRNET_FAST_BUILD="none")
    assert result.returncode == 0, result.stderr
    missing = [
        path
        for path in ("py.typed", "pretrained/denoise.safetensors", "pretrained/denoise.md")
        if not (tmp_path / "mirnet_fast" / path).is_file()
    ]
    assert missing == []


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
    shutil.copytree(ROOT / "build_support", tmp_path / "build_support")
    (tmp_path / "csrc/cpu").mkdir(parents=True)
    for name in ("csrc/cpu/isa.cpp", "csrc/cpu/isa.h"):
        shutil.copy(ROOT / name, tmp_path / name)
    compiler = script(tmp_path / "c++", '[ "$1" = -dumpmachine ] && echo x86_64-linux-gnu')
    result = build_ext(tmp_path / "out", root=tmp_path, MIRNET_FAST_BUILD="auto", CXX=compiler)
    if "no C++ kernels" in result.stderr:
        pytest.skip(f"nothing to compile with: {result.stderr.strip()}")
    assert result.returncode != 0
    assert "do not compile" in result.stderr
    # It is there all the same, as an editor is to help with such code.
    (entry,) = json.loads((tmp_path / "build/compile_commands.json").read_text())
    assert (entry["directory"], entry["file"]) == (str(tmp_path), "csrc/cpu/isa.cpp")
    assert "-std=c++17" in entry["command"]


def test_torch_is_looked_for_outside_of_the_isolated_build(tmp_path, monkeypatch):
    answer = '[ -z "$PYTHONPATH" ] && echo \'["2.13.0+cpu", "/t"]\' || echo null'
    monkeypatch.setattr(sys, "executable", script(tmp_path / "python", answer))
    monkeypatch.setenv("PYTHONPATH", "/isolated")
    assert find_torch() == ("2.13.0+cpu", "/t")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("echo null", "no torch in the environment of"),
        ('echo \'["2.9.1", "/t"]\'', "torch is 2.9.1, the C++ kernels need 2.10 or newer"),
    ],
)
def test_no_usable_torch(tmp_path, monkeypatch, answer, message):
    monkeypatch.setattr(sys, "executable", script(tmp_path / "python", answer))
    plan = Plan("auto")
    assert not plan.extensions
    assert plan.failure is None
    assert message in plan.notes[0]
    assert message in Plan("cpu").failure


@pytest.mark.parametrize(("machine", "isas"), [("x86_64", ["base", "avx2", "avx512"]), ("aarch64", ["base"])])
def test_loops_are_compiled_for_every_instruction_set_of_the_machine(tmp_path, monkeypatch, machine, isas):
    (tmp_path / "csrc/cpu/simd/matrix").mkdir(parents=True)
    (tmp_path / "csrc/cpu/isa.cpp").touch()
    (tmp_path / "csrc/cpu/simd/matrix/op.cpp").touch()
    (tmp_path / "csrc/cpu/simd/op.cpp").touch()
    monkeypatch.setattr(ninja_file, "ROOT", tmp_path)
    plan = Plan("none")
    plan.compiler, plan.torch, plan.extensions = ("g++", machine), ("2.13.0", "/t"), [LIBRARY]
    ninja_file.write_ninja(plan, "b")
    lines = (tmp_path / "b/build.ninja").read_text().splitlines()
    flags = {a.split(":")[0].removeprefix("build b/"): b for a, b in pairwise(lines)}
    assert [isa for isa in ISA_FLAGS if f"csrc/cpu/simd/op.cpp.{isa}.o" in flags] == isas
    for isa in isas:
        loop = flags[f"csrc/cpu/simd/op.cpp.{isa}.o"].split()
        assert f"-DMIRNET_ISA={isa}" in loop
        assert ("-mavx2" in loop, "-mavx512f" in loop) == (isa == "avx2", isa == "avx512")
        assert "-ffast-math" not in loop
    assert "-mavx2" not in flags["csrc/cpu/isa.cpp.o"]
    # Where the compiler knows them.
    for unit, own in (("avx512_bf16", "-mavx512bf16"), ("amx", "-mamx-bf16")):
        known = unit in plan.matrix
        assert (own in flags.get(f"csrc/cpu/simd/matrix/op.cpp.{unit}.o", "")) == known
        assert (f"-DMIRNET_WITH_{unit.upper()}" in flags["csrc/cpu/isa.cpp.o"]) == known
    assert machine == "x86_64" or not plan.matrix


# What a build tells of itself


def wheel(extensions):
    """The command that makes the wheel, for a plan with these extensions."""
    plan = Plan("none")
    plan.extensions = extensions
    described = Distribution({"name": "some", "ext_modules": [Extension(name, []) for name in extensions]})
    command = commands.commands(plan)["bdist_wheel"](described)
    command.ensure_finalized()
    return command


def test_a_wheel_is_for_a_machine_and_any_python():
    machine = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel([LIBRARY]).get_tag() == ("py3", "none", machine)
    assert wheel([]).get_tag() == ("py3", "none", "any")


def test_no_library_has_a_name_for_one_python():
    command = commands.BuildExt(Distribution())
    for name in (LIBRARY, CUDA_LIBRARY):
        assert command.get_ext_filename(name) == f"{name.replace('.', '/')}.so"


def test_what_is_left_out_is_the_last_that_a_wheel_prints(monkeypatch, capsys):
    command = wheel([])
    monkeypatch.setattr(
        commands.bdist_wheel, "run", lambda self: print("adding 'some/file'", file=sys.stderr)
    )
    command.plan.notes = ["no C++ kernels, pure Python only: no ninja"]
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
def test_the_compiler_is_named(tmp_path):
    assert re.fullmatch(r"GCC \d+\.\d+\.\d+", compiler_version("g++"))
    clang = script(tmp_path / "c++", """exec g++ -D__clang__ '-D__clang_version__="14.0.6 "' "$@" """)
    assert compiler_version(clang) == "Clang 14.0.6"


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
