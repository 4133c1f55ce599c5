"""The commands of setuptools that carry a plan out."""

import fcntl
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Command, Extension
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

from . import ROOT
from .ninja_file import sources, write_ninja
from .plan import CUDA_LIBRARY, LIBRARY, Plan

BUILD_INFO = "mirnet_fast/build.json"  # written beside the libraries
COMPILE_COMMANDS = "build/compile_commands.json"  # where clangd looks for it


def commands(plan: Plan) -> dict[str, type[Command]]:
    """{name: command} of setuptools, for a plan."""
    kinds = {"bdist_wheel": Wheel, "build": Build, "build_ext": BuildExt}
    return {name: type(kind.__name__, (kind,), {"plan": plan}) for name, kind in kinds.items()}


def jobs() -> int:
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
    """Runs ninja, and puts what it made where setuptools wants it."""

    plan: Plan
    built: dict[str, str]

    def run(self) -> None:
        if self.plan.failure:
            raise SystemExit(self.plan.failure)
        for note in self.plan.notes:
            print(f"mirnet_fast: {note}", file=sys.stderr)
        folders = [self.build_lib, ROOT] if self.inplace else [self.build_lib]
        # A library of an earlier build must not pass for one of this build.
        for name in {LIBRARY, CUDA_LIBRARY} - set(self.plan.extensions):
            for folder in folders:
                Path(folder, self.get_ext_filename(name)).unlink(missing_ok=True)
        if self.plan.extensions:
            self.run_ninja()
        super().run()
        told = json.dumps(self.plan.told(), indent=1) + "\n"
        for folder in folders:
            path = Path(folder, BUILD_INFO)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(told)

    def run_ninja(self) -> None:
        folder = f"build/ninja-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
        with open(ROOT / folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.built = write_ninja(self.plan, folder)
            ninja = [*self.plan.ninja, "-f", f"{folder}/build.ninja"]
            described = [*ninja, "-t", "compdb", "compile", "compile-cuda"]
            done = subprocess.run(described, cwd=ROOT, stdout=subprocess.PIPE, check=True)
            (ROOT / COMPILE_COMMANDS).write_bytes(done.stdout)
            count = jobs()
            # Not part of nvcc's command, or another number of processors would compile all anew.
            threads = max(1, count // max(1, len(sources("csrc/cuda/*.cu"))))
            appended = f"--threads {threads} {os.environ.get('NVCC_APPEND_FLAGS', '')}"
            environment = {**os.environ, "NVCC_APPEND_FLAGS": appended}
            if subprocess.run([*ninja, "-j", str(count)], cwd=ROOT, env=environment).returncode:
                raise SystemExit("mirnet_fast: the native parts do not compile; the errors are above")

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(ROOT / self.built[ext.name]), str(target))

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"  # free of Python: no ABI tag


class Wheel(bdist_wheel):
    """Named for the machine alone."""

    plan: Plan

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, machine = super().get_tag()
        # Of torch the libraries use the stable ABI, of Python nothing.
        return ("py3", "none", machine) if self.plan.extensions else (python, abi, machine)

    def run(self) -> None:
        super().run()
        # Again, where they can be seen: below hundreds of lines about copied files.
        for note in self.plan.notes:
            print(f"mirnet_fast: {note}", file=sys.stderr, flush=True)
