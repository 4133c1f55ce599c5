"""Build of the native parts: per-file flags that setuptools cannot express, run by ninja.

MIRNET_FAST_BUILD chooses what is compiled: `auto` (default: what can be built and run here), `none`
(pure Python), `cpu` (the C++ kernels, or an error that names what is missing), `cuda` (the CUDA kernels
too, or an error, whether torch can run them or not).
"""

import collections
import fcntl
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CHOICES = ("auto", "none", "cpu", "cuda")
LIBRARY, CUDA_LIBRARY = "mirnet_fast.libmirnet_fast_cpu", "mirnet_fast.libmirnet_fast_cuda"
BUILD_INFO = "mirnet_fast/build.json"  # written beside them

TORCH_MINIMUM = (2, 10)  # the first with the stable ABI in full; TORCH_TARGET_VERSION names it again
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"
COMMON_FLAGS = "-std=c++17 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-psabi"
GLUE_FLAGS = f"{COMMON_FLAGS} -O2 {STABLE_ABI}"
# NaN and infinity must survive, so nothing that -ffast-math would add beyond these three.
LOOP_MATH = "-fno-math-errno -fno-trapping-math -ffp-contract=fast"
LOOP_FLAGS = f"{COMMON_FLAGS} -O3 -fopenmp-simd {LOOP_MATH}"
ISA_FLAGS = {
    "base": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c",
}
CUDA_FLAGS = (
    "-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra -Xfatbin -compress-all "
    f"-DUSE_CUDA {STABLE_ABI}"
)
CUDA_DEFAULT = ("80", "86", "89", "90a", "100", "120")
# GPUs of a generation share what nvcc's front end makes, which takes three times as long as its assembler:
# no kernel asks for anything that only the later ones of them have.
CUDA_PTX_OF = {"86": "80", "89": "80", "120": "100"}
CUDA_MINIMUM = 80  # the first with the copies and the tensor-core instructions that the kernels use
# Nothing of the libraries is for others: torch gets the kernels from their initialisers.
LIBRARY_LINK_FLAGS = "-Wl,--version-script=csrc/exports.map -Wl,-z,defs"


class Missing(Exception):
    """Something that the build needs is not here; the message says what."""


class Wrong(Exception):
    """An environment variable asks for what there is not; the message names it."""


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


def compiler_version(command):
    """Like "GCC 12.2.0"."""
    question = '#ifdef __clang__\n"Clang " __clang_version__\n#else\n"GCC " __VERSION__\n#endif\n'
    preprocess = [*shlex.split(command), "-E", "-P", "-x", "c++", "-"]
    answer = subprocess.run(preprocess, input=question, stdout=subprocess.PIPE, text=True, check=True)
    return "".join(shlex.split(answer.stdout)).strip()


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
    hint = "`python -m build` hides it unless --no-isolation is given"
    raise Missing(f"no torch in the environment of {sys.executable} ({hint})")


def find_ninja():
    # The package first: ninja rebuilds everything when its version changes between builds.
    if importlib.util.find_spec("ninja"):
        return [sys.executable, "-m", "ninja"]
    if shutil.which("ninja"):
        return ["ninja"]
    raise Missing("no ninja")


def cuda_of(torch):
    """The CUDA version that a torch in this folder was built with, or None. Nothing is imported."""
    found = re.search(r"^cuda\b[^=]*= *'([\d.]+)'", Path(torch, "version.py").read_text(), re.MULTILINE)
    return found and found.group(1)


Nvcc = collections.namedtuple("Nvcc", "command version libraries knows")


def find_nvcc(compiler, torch):
    """An Nvcc: its command, version, the folder of the CUDA runtime, the architectures it knows."""
    home = os.environ.get("CUDA_HOME")
    if home and not Path(home, "bin/nvcc").exists():
        raise Missing(f"no bin/nvcc in {home}, which CUDA_HOME names")
    places = [home and f"{home}/bin/nvcc"]
    if not home:
        places += [shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
        places += sorted(map(str, Path(torch).parent.glob("nvidia/cu*/bin/nvcc")), reverse=True)
    words, unfit = shlex.split(compiler), []
    for place in places:
        if place and Path(place).exists():
            try:
                return ask_nvcc([place, *(["-ccbin", words[0]] if len(words) == 1 else [])])
            except (OSError, subprocess.CalledProcessError) as error:
                told = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
                unfit.append(f"{place} does not work: {' '.join(told[:2])}")
    nowhere = "no nvcc, neither by CUDA_HOME nor on the PATH, in /usr/local/cuda or from nvidia-cuda-nvcc"
    raise Missing("; ".join(unfit) or nowhere)


def ask_nvcc(command):
    def run(*arguments, **options):
        return subprocess.run([*command, *arguments], capture_output=True, text=True, check=True, **options)

    # The preprocessor alone shows whether the headers are there and the host compiler suits them.
    run("-x", "cu", "-E", "-", input="#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n")
    # Its own idea of where it lies: what is on the PATH may be a script that calls it.
    told = run("--dryrun", "-x", "cu", "-c", "/dev/null").stderr
    home = Path(re.search(r"^#\$ TOP=(.*)$", told, re.MULTILINE).group(1).strip()).resolve()
    runtimes = [*home.glob("lib*/libcudart_static.a"), *home.glob("targets/*/lib/libcudart_static.a")]
    if not runtimes:
        raise OSError(f"no libcudart_static.a below {home}")
    return Nvcc(
        command=shlex.join(command),
        version=re.search(r"\bV([\d.]+)", run("--version").stdout).group(1),
        libraries=str(runtimes[0].parent),
        knows=set(re.findall(r"sm_(\d+)", run("--list-gpu-code").stdout)),
    )


def cuda_architectures(wanted, knows):
    """(what nvcc is to make: sm_N is machine code, compute_N what drivers compile; a note or None).

    `wanted` is TORCH_CUDA_ARCH_LIST, like "8.0;9.0a;12.0+PTX"; `knows` what nvcc knows.

    Raises:
        Wrong: it is not such a list, or has what nvcc does not know.
    """
    if not wanted.strip():
        chosen = [name for name in CUDA_DEFAULT if name.rstrip("a") in knows]
        newest = chosen[-1].rstrip("a")
        return [*(f"sm_{name}" for name in chosen), f"compute_{CUDA_PTX_OF.get(newest, newest)}"], None
    result, old = [], []
    for entry in wanted.replace(";", " ").split():
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        number = match and match.group(1) + match.group(2)
        if not match or number not in knows:
            known = " ".join(f"{name[:-1]}.{name[-1]}" for name in sorted(knows, key=int))
            raise Wrong(
                f"TORCH_CUDA_ARCH_LIST={wanted!r}: {entry!r} is none of what nvcc knows ({known}, "
                'with "+PTX" where drivers are to compile it for newer GPUs)'
            )
        if int(number) < CUDA_MINIMUM:
            old.append(entry)
            continue
        result.append(f"sm_{number}{match.group(3)}")
        if match.group(4):
            result.append(f"compute_{number}{match.group(3)}")
    if not result:
        raise Wrong(f"TORCH_CUDA_ARCH_LIST={wanted!r}: the CUDA kernels need 8.0 or newer")
    return list(dict.fromkeys(result)), old and f"not for {', '.join(old)}: the kernels need 8.0 or newer"


class Plan:
    """What will be built, with what, and why the rest will not be.

    `extensions` are the names to build; `notes` the plain lines for the user; `left_out` is
    {"cpu" or "cuda": why}, for who imports the package later. An explicit choice that cannot be met is
    in `failure`.
    """

    def __init__(self, choice):
        if choice not in CHOICES:
            raise SystemExit(f"MIRNET_FAST_BUILD must be one of {', '.join(CHOICES)}; got {choice!r}")
        self.choice, self.extensions, self.notes, self.failure = choice, [], [], None
        self.left_out = {}
        if choice == "none":
            self.notes.append("pure Python, as MIRNET_FAST_BUILD=none asks")
            return
        lacking = []
        for part, find in (("compiler", find_compiler), ("torch", find_torch), ("ninja", find_ninja)):
            try:
                setattr(self, part, find())
            except Missing as error:
                lacking.append(str(error))
        if lacking:
            self.left_out["cpu"] = "; ".join(lacking)
            self.notes.append(f"no C++ kernels, pure Python only: {self.left_out['cpu']}")
        else:
            self.extensions.append(LIBRARY)
            self.notes.append(f"C++ kernels with {self.compiler[0]} for torch {self.torch[0]}")
            lacking += self.plan_cuda()
        if choice != "auto" and lacking:
            self.failure = f"MIRNET_FAST_BUILD={choice} cannot be met: {'; '.join(lacking)}"

    def plan_cuda(self):
        """What the CUDA kernels lack: a list of sentences."""
        if self.choice == "cpu" or (self.choice == "auto" and not cuda_of(self.torch[1])):
            return []
        try:
            self.nvcc = find_nvcc(self.compiler[0], self.torch[1])
            wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
            self.architectures, note = cuda_architectures(wanted, self.nvcc.knows)
        except Missing as error:
            self.left_out["cuda"] = str(error)
            self.notes.append(f"no CUDA kernels: {error}")
            return [str(error)]
        except Wrong as error:
            self.failure = str(error)
            return []
        self.extensions.append(CUDA_LIBRARY)
        names = ", ".join(self.architectures)
        self.notes.append(f"CUDA kernels with nvcc {self.nvcc.version} for {names}")
        if note:
            self.notes.append(note)
        return []

    @property
    def isas(self):
        return list(ISA_FLAGS) if self.compiler[1] == "x86_64" else ["base"]

    def told(self):
        """What mirnet_fast/_native.py reads of the build, as JSON takes it."""
        info = {"build": self.choice, "left_out": self.left_out}
        if LIBRARY in self.extensions:
            with_cuda = CUDA_LIBRARY in self.extensions
            info |= {
                "built_with_torch": self.torch[0],
                "compiler": compiler_version(self.compiler[0]),
                "cxx_flags": LOOP_FLAGS,
                "isa_compiled": self.isas,
                "nvcc": self.nvcc.version if with_cuda else "",
                "cuda_architectures": self.architectures if with_cuda else [],
            }
        return info


class NinjaFile:
    """Collects compile and link steps; paths are relative to the repository root."""

    def __init__(self, folder, compiler, nvcc):
        self.folder = folder
        self.lines = [
            f"builddir = {folder}",
            f"cxx = {compiler}",
            f"nvcc = {nvcc}",
            "rule compile",
            "  description = compile $out",
            "  command = $cxx $flags -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule compile-cuda",
            "  description = compile $out",
            "  command = $nvcc $flags -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            "  description = link $out",
            "  command = $cxx -shared $in -o $out $flags",
        ]

    def step(self, rule, inputs, output, flags, uses=()):
        """`uses`: files that are no inputs of the command and yet make it stale."""

        def listed(paths):
            return " ".join(str(p).replace("$", "$$").replace(" ", "$ ").replace(":", "$:") for p in paths)

        self.lines.append(f"build {listed([output])}: {rule} {listed(inputs)} | {listed(uses)}")
        self.lines.append(f"  flags = {flags.replace('$', '$$')}")
        return output

    def compile(self, source, flags, suffix="", rule="compile", folder=None):
        return self.step(rule, [source], f"{folder or self.folder}/{source}{suffix}.o", flags)

    def link_library(self, name, objects, flags, uses=()):
        flags = f"{LIBRARY_LINK_FLAGS} {flags}"
        return self.step("link", objects, f"{self.folder}/{name}.so", flags, ["csrc/exports.map", *uses])


def sources(pattern):
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def write_cuda(plan, file, torch_headers, torch_libraries):
    """The steps for the CUDA kernels; returns the file they become."""
    codes = [name.split("_") for name in plan.architectures]
    ptx = {("sm", number): of for number, of in CUDA_PTX_OF.items()}
    made = " ".join(
        f"-gencode arch=compute_{ptx.get((kind, number), number)},code={kind}_{number}"
        for kind, number in codes
    )
    flags = f"{CUDA_FLAGS} {made} {torch_headers}"
    # A folder for each list of architectures, so that a build of one, for a test, costs no other its objects.
    folder = f"{file.folder}/{'-'.join(plan.architectures)}"
    objects = [file.compile(s, flags, rule="compile-cuda", folder=folder) for s in sources("csrc/cuda/*.cu")]
    if cuda_of(plan.torch[1]):
        torch, uses = torch_libraries, []
    else:
        stub = file.compile("csrc/cuda/torch_cuda_stub.cpp", COMMON_FLAGS.replace("hidden", "default"))
        name = "-Wl,-soname,libtorch_cuda.so"
        uses = [file.step("link", [stub], f"{file.folder}/stub/libtorch_cuda.so", name)]
        torch = f"-L{file.folder}/stub {torch_libraries}"
    runtime = f"-L{shlex.quote(plan.nvcc.libraries)} -lcudart_static -ldl -lrt -lpthread"
    # libtorch_cuda.so is needed at run time in any case: only with it torch has CUDA tensors.
    libraries = f"{torch} -Wl,--no-as-needed -ltorch_cuda -Wl,--as-needed -ltorch_cpu -lc10 {runtime}"
    return file.link_library("libmirnet_fast_cuda", objects, libraries, uses)


def write_ninja(plan, folder):
    """The steps for every extension of the plan; returns {extension name: file it becomes}."""
    torch = plan.torch[1]
    with_cuda = CUDA_LIBRARY in plan.extensions
    file, outputs = NinjaFile(folder, plan.compiler[0], plan.nvcc.command if with_cuda else ""), {}

    torch_headers = f"-isystem {shlex.quote(torch + '/include')}"
    torch_libraries = f"-L{shlex.quote(torch + '/lib')}"
    glue = f"{GLUE_FLAGS} {torch_headers}"
    objects = [file.compile(source, glue) for source in sources("csrc/cpu/*.cpp")]
    for isa in plan.isas:
        flags = f"{LOOP_FLAGS} -DMIRNET_ISA={isa} {ISA_FLAGS[isa]}"
        objects += [file.compile(source, flags, f".{isa}") for source in sources("csrc/cpu/simd/*.cpp")]
    libraries = f"{torch_libraries} -Wl,--as-needed -ltorch_cpu -lc10"
    outputs[LIBRARY] = file.link_library("libmirnet_fast_cpu", objects, libraries)

    if with_cuda:
        outputs[CUDA_LIBRARY] = write_cuda(plan, file, torch_headers, torch_libraries)

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
            raise SystemExit(plan.failure)
        for note in plan.notes:
            print(f"mirnet_fast: {note}", file=sys.stderr)
        folders = [self.build_lib, ROOT] if self.inplace else [self.build_lib]
        # A library of an earlier build must not pass for one of this build.
        for name in {LIBRARY, CUDA_LIBRARY} - set(plan.extensions):
            for folder in folders:
                Path(folder, self.get_ext_filename(name)).unlink(missing_ok=True)
        if plan.extensions:
            self.run_ninja()
        super().run()
        told = json.dumps(plan.told(), indent=1) + "\n"
        for folder in folders:
            path = Path(folder, BUILD_INFO)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(told)

    def run_ninja(self):
        folder = f"build/ninja-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
        with open(ROOT / folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.built = write_ninja(plan, folder)
            count = jobs()
            command = [*plan.ninja, "-f", f"{folder}/build.ninja", "-j", str(count)]
            # Not part of nvcc's command, or another number of processors would compile all anew.
            threads = max(1, count // max(1, len(sources("csrc/cuda/*.cu"))))
            appended = f"--threads {threads} {os.environ.get('NVCC_APPEND_FLAGS', '')}"
            environment = {**os.environ, "NVCC_APPEND_FLAGS": appended}
            if subprocess.run(command, cwd=ROOT, env=environment).returncode:
                raise SystemExit("mirnet_fast: the native parts do not compile; the errors are above")

    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(ROOT / self.built[ext.name]), str(target))

    def get_ext_filename(self, fullname):
        return fullname.replace(".", os.sep) + ".so"  # free of Python: no ABI tag


class Wheel(bdist_wheel):
    def get_tag(self):
        python, abi, machine = super().get_tag()
        # Of torch the libraries use the stable ABI, of Python nothing.
        return ("py3", "none", machine) if plan.extensions else (python, abi, machine)

    def run(self):
        super().run()
        # Again, where they can be seen: below hundreds of lines about copied files.
        for note in plan.notes:
            print(f"mirnet_fast: {note}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    plan = Plan(os.environ.get("MIRNET_FAST_BUILD") or "auto")
    setup(
        packages=[*find_packages(include=["mirnet_fast*"]), "mirnet_fast.kernels"],
        package_dir={"mirnet_fast.kernels": "kernels"},
        ext_modules=[Extension(name, sources=[]) for name in plan.extensions],
        cmdclass={"bdist_wheel": Wheel, "build": Build, "build_ext": BuildExt},
    )
