"""Build of the native parts: per-file flags that setuptools cannot express, run by ninja.

MIRNET_FAST_BUILD chooses what is compiled: `auto` (default: what can be built here), `none` (pure
Python), `cpu` (the C++ kernels, or an error that names what is missing), `cuda` (likewise, CUDA).
"""

import fcntl
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CHOICES = ("auto", "none", "cpu", "cuda")
LIBRARY, BINDINGS = "mirnet_fast.libmirnet_fast_cpu", "mirnet_fast._C"

TORCH_MINIMUM = (2, 10)  # the first with the stable ABI in full; TORCH_TARGET_VERSION names it again
COMMON_FLAGS = "-std=c++17 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-psabi"
GLUE_FLAGS = f"{COMMON_FLAGS} -O2 -DTORCH_TARGET_VERSION=0x020a000000000000"
# NaN and infinity must survive, so nothing that -ffast-math would add beyond these three.
LOOP_MATH = "-fno-math-errno -fno-trapping-math -ffp-contract=fast"
LOOP_FLAGS = f"{COMMON_FLAGS} -O3 -fopenmp-simd -fno-exceptions {LOOP_MATH}"
ISA_FLAGS = {
    "base": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c",
}


class Missing(Exception):
    """Something that the build needs is not here; the message says what."""


def find_compiler():
    """(command, machine it compiles for)."""
    if platform.system() != "Linux":
        raise Missing(f"the C++ kernels are built on Linux only, this is {platform.system()}")
    chosen = os.environ.get("CXX")
    for candidate in [chosen] if chosen else ["g++", "c++", "clang++"]:
        try:
            command = shlex.split(candidate)
            machine = subprocess.run([*command, "-dumpmachine"], capture_output=True, text=True, check=True)
            return shlex.join(command), machine.stdout.split("-")[0].strip()
        except (OSError, subprocess.CalledProcessError):
            continue
    if chosen:
        raise Missing(f"the C++ compiler named by CXX, {chosen!r}, cannot be run")
    raise Missing("no C++ compiler (g++ or clang++)")


def find_torch():
    """(version, folder) of the torch that the installed package will run with."""
    # pip's isolated build hides the environment through PYTHONPATH; asking the interpreter anew
    # without it shows what is really installed. Nothing is imported: find_spec is enough.
    question = (
        "import importlib.util as u, importlib.metadata as m, json\n"
        "s = u.find_spec('torch')\n"
        "print(json.dumps(s and [m.version('torch'), s.submodule_search_locations[0]]))"
    )
    bare = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for environment in (bare, dict(os.environ)):
        answer = subprocess.run(
            [sys.executable, "-c", question], env=environment, cwd=sys.prefix, stdout=subprocess.PIPE
        )
        found = json.loads(answer.stdout) if answer.returncode == 0 else None
        if found:
            version, folder = found
            if tuple(int(part) for part in version.split(".")[:2]) < TORCH_MINIMUM:
                raise Missing(f"torch is {version}, the C++ kernels need 2.10 or newer")
            return version, folder
    raise Missing(f"no torch in the environment of {sys.executable}")


def find_ninja():
    # The package first: ninja rebuilds everything when its version changes between builds.
    if importlib.util.find_spec("ninja"):
        return [sys.executable, "-m", "ninja"]
    if shutil.which("ninja"):
        return ["ninja"]
    raise Missing("no ninja")


def find_binding_headers():
    """Include folders of pybind11 and Python."""
    python = sysconfig.get_path("include")
    if not Path(python, "Python.h").exists():
        raise Missing(f"no Python headers in {python} (python3-dev)")
    try:
        import pybind11
    except ImportError:
        raise Missing("no pybind11") from None
    return [pybind11.get_include(), python]


class Plan:
    """What will be built, with what, and why the rest will not be.

    `extensions` are the names to build; `notes` the plain lines for the user. An explicit choice
    that cannot be met is in `failure`.
    """

    def __init__(self, choice):
        if choice not in CHOICES:
            raise SystemExit(f"MIRNET_FAST_BUILD must be one of {', '.join(CHOICES)}; got {choice!r}")
        self.choice, self.extensions, self.notes, self.failure = choice, [], [], None
        if choice == "none":
            self.notes.append("pure Python, as MIRNET_FAST_BUILD=none asks")
            return
        if choice == "cuda":
            self.failure = "this version has no CUDA kernels (no csrc/cuda/*.cu)"
            return
        lacking = []
        for part, find in (("compiler", find_compiler), ("torch", find_torch), ("ninja", find_ninja)):
            try:
                setattr(self, part, find())
            except Missing as error:
                lacking.append(str(error))
        if lacking:
            self.notes.append(f"no C++ kernels, pure Python only: {'; '.join(lacking)}")
        else:
            self.extensions.append(LIBRARY)
            self.notes.append(f"C++ kernels with {self.compiler[0]} for torch {self.torch[0]}")
        try:
            self.binding_headers = find_binding_headers()
            if not lacking:
                self.extensions.append(BINDINGS)
        except Missing as error:
            lacking.append(str(error))
            if self.extensions:
                self.notes.append(f"no build information (mirnet_fast._C): {error}")
        if choice == "cpu" and lacking:
            self.failure = "; ".join(lacking)


class NinjaFile:
    """Collects compile and link steps; paths are relative to the repository root."""

    def __init__(self, folder, compiler):
        self.folder = folder
        self.lines = [
            f"builddir = {folder}",
            f"cxx = {compiler}",
            "rule compile",
            "  description = compile $out",
            "  command = $cxx $flags -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            "  description = link $out",
            "  command = $cxx -shared $in -o $out $flags",
        ]

    def step(self, rule, inputs, output, flags):
        paths = [str(p).replace("$", "$$").replace(" ", "$ ").replace(":", "$:") for p in (output, *inputs)]
        self.lines.append(f"build {paths[0]}: {rule} {' '.join(paths[1:])}")
        self.lines.append(f"  flags = {flags.replace('$', '$$')}")
        return output

    def compile(self, source, flags, suffix=""):
        return self.step("compile", [source], f"{self.folder}/{source}{suffix}.o", flags)


def write_ninja(plan, folder):
    """The steps for every extension of the plan; returns {extension name: file it becomes}."""
    compiler, machine = plan.compiler
    version, torch = plan.torch
    isas = list(ISA_FLAGS) if machine == "x86_64" else ["base"]
    file, outputs = NinjaFile(folder, compiler), {}

    def sources(pattern):
        return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))

    glue = f"{GLUE_FLAGS} -isystem {shlex.quote(torch + '/include')}"
    objects = [file.compile(source, glue) for source in sources("csrc/cpu/*.cpp")]
    for isa in isas:
        flags = f"{LOOP_FLAGS} -DMIRNET_ISA={isa} {ISA_FLAGS[isa]}"
        objects += [file.compile(source, flags, f".{isa}") for source in sources("csrc/cpu/simd/*.cpp")]
    libraries = f"-L{shlex.quote(torch + '/lib')} -Wl,-z,defs,--as-needed -ltorch_cpu -lc10"
    outputs[LIBRARY] = file.step("link", objects, f"{folder}/libmirnet_fast_cpu.so", libraries)

    if BINDINGS in plan.extensions:
        told = {
            "BUILD": plan.choice,
            "TORCH": version,
            "CXX_FLAGS": LOOP_FLAGS,
            "ISAS": ",".join(isas),
            "CUDA_ARCHITECTURES": "",
        }
        flags = [f"{COMMON_FLAGS} -O2"]
        flags += [shlex.quote(f'-DMIRNET_FAST_{key}="{value}"') for key, value in told.items()]
        flags += [f"-isystem {shlex.quote(header)}" for header in plan.binding_headers]
        objects = [file.compile("csrc/bindings.cpp", " ".join(flags))]
        objects.append(f"{folder}/csrc/cpu/isa.cpp.o")
        outputs[BINDINGS] = file.step("link", objects, f"{folder}/_C.so", "")

    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    (ROOT / folder / "build.ninja").write_text("\n".join(file.lines) + "\n")
    return outputs


def jobs():
    """As many compilers as there are processors, if each can have a gigabyte."""
    if os.environ.get("MAX_JOBS"):
        return int(os.environ["MAX_JOBS"])
    limits = [len(os.sched_getaffinity(0))]
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    limits.append(int(meminfo["MemAvailable"].split()[0]) >> 20)
    cgroup = Path("/sys/fs/cgroup/memory.max")
    if cgroup.exists() and cgroup.read_text().strip().isdigit():
        limits.append(int(cgroup.read_text()) >> 30)
    return max(1, min(limits))


class Build(build):
    # build_ext always runs, without extensions too: it tells the user what was left out.
    sub_commands = [(name, None if name == "build_ext" else when) for name, when in build.sub_commands]


class BuildExt(build_ext):
    def run(self):
        if plan.failure:
            raise SystemExit(f"MIRNET_FAST_BUILD={plan.choice} cannot be met: {plan.failure}")
        for note in plan.notes:
            print(f"mirnet_fast: {note}", file=sys.stderr)
        self.remove_leftovers()
        if plan.extensions:
            self.run_ninja()
        super().run()

    def remove_leftovers(self):
        """A library of an earlier build must not pass for one of this build."""
        for name in {LIBRARY, BINDINGS} - set(plan.extensions):
            folders = [self.build_lib, ROOT] if self.inplace else [self.build_lib]
            for folder in folders:
                Path(folder, self.get_ext_filename(name)).unlink(missing_ok=True)

    def run_ninja(self):
        folder = f"build/ninja-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
        with open(ROOT / folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.built = write_ninja(plan, folder)
            command = [*plan.ninja, "-f", f"{folder}/build.ninja", "-j", str(jobs())]
            if subprocess.run(command, cwd=ROOT).returncode:
                raise SystemExit("mirnet_fast: the C++ kernels do not compile; the errors are above")

    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(ROOT / self.built[ext.name]), str(target))

    def get_ext_filename(self, fullname):
        if fullname.split(".")[-1] == LIBRARY.split(".")[-1]:  # free of Python: no ABI tag
            return fullname.replace(".", os.sep) + ".so"
        return super().get_ext_filename(fullname)


if __name__ == "__main__":
    plan = Plan(os.environ.get("MIRNET_FAST_BUILD") or "auto")
    setup(
        packages=[*find_packages(include=["mirnet_fast*"]), "mirnet_fast.kernels"],
        package_dir={"mirnet_fast.kernels": "kernels"},
        ext_modules=[Extension(name, sources=[]) for name in plan.extensions],
        cmdclass={"build": Build, "build_ext": BuildExt},
    )
