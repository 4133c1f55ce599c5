"""What there is to build with: compiler, torch, ninja, nvcc. Nothing of torch is imported."""

import collections
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TORCH_MINIMUM = (2, 10)  # the first with the stable ABI in full; flags.STABLE_ABI names it again


class Missing(Exception):
    """Something that the build needs is not here; the message says what."""


def find_compiler() -> tuple[str, str]:
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


def compiler_version(command: str) -> str:
    """Like "GCC 12.2.0"."""
    question = '#ifdef __clang__\n"Clang " __clang_version__\n#else\n"GCC " __VERSION__\n#endif\n'
    preprocess = [*shlex.split(command), "-E", "-P", "-x", "c++", "-"]
    answer = subprocess.run(preprocess, input=question, stdout=subprocess.PIPE, text=True, check=True)
    return "".join(shlex.split(answer.stdout)).strip()


def knows_flags(compiler: str, flags: str) -> bool:
    command = [*shlex.split(compiler), *flags.split(), "-E", "-x", "c++", "/dev/null"]
    return subprocess.run(command, capture_output=True).returncode == 0


def find_torch() -> tuple[str, str]:
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


def find_ninja() -> list[str]:
    # The package first: ninja rebuilds everything when its version changes between builds.
    if importlib.util.find_spec("ninja"):
        return [sys.executable, "-m", "ninja"]
    if shutil.which("ninja"):
        return ["ninja"]
    raise Missing("no ninja")


def cuda_of(torch: str) -> str | None:
    """The CUDA version that a torch in this folder was built with, or None. Nothing is imported."""
    found = re.search(r"^cuda\b[^=]*= *'([\d.]+)'", Path(torch, "version.py").read_text(), re.MULTILINE)
    return found and found.group(1)


Nvcc = collections.namedtuple("Nvcc", "command version libraries knows")


def find_nvcc(compiler: str, torch: str) -> Nvcc:
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


def ask_nvcc(command: Sequence[str]) -> Nvcc:
    def run(*arguments, **options):
        return subprocess.run([*command, *arguments], capture_output=True, text=True, check=True, **options)

    # The preprocessor alone shows whether the headers are there and the host compiler suits them.
    run("-x", "cu", "-E", "-", input="#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n")
    # Its own idea of where it lies: what is on the PATH may be a script that calls it.
    told = run("--dryrun", "-x", "cu", "-c", "/dev/null").stderr
    home = Path(re.findall(r"^#\$ TOP=(.*)$", told, re.MULTILINE)[0].strip()).resolve()
    runtimes = [*home.glob("lib*/libcudart_static.a"), *home.glob("targets/*/lib/libcudart_static.a")]
    if not runtimes:
        raise OSError(f"no libcudart_static.a below {home}")
    return Nvcc(
        command=shlex.join(command),
        version=re.findall(r"\bV([\d.]+)", run("--version").stdout)[0],
        libraries=str(runtimes[0].parent),
        knows=set(re.findall(r"sm_(\d+)", run("--list-gpu-code").stdout)),
    )
