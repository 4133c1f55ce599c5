"""What will be built, and why the rest will not be."""

import os
import re
from collections.abc import Collection
from typing import Any

from .flags import ISA_FLAGS, LOOP_FLAGS, MATRIX_FLAGS
from .toolchain import (
    Missing,
    Nvcc,
    compiler_version,
    cuda_of,
    find_compiler,
    find_ninja,
    find_nvcc,
    find_torch,
    knows_flags,
)

CHOICES = ("auto", "none", "cpu", "cuda")
LIBRARY, CUDA_LIBRARY = "mirnet_fast.libmirnet_fast_cpu", "mirnet_fast.libmirnet_fast_cuda"
CUDA_DEFAULT = ("80", "86", "89", "90", "100", "120")
# GPUs share what nvcc's front end makes, which takes three times as long as its assembler: no kernel asks for
# anything that only the later ones of them have. Of one front end for all, some kernels spill on sm_100.
CUDA_PTX_OF = {"86": "80", "89": "80", "90": "80", "120": "100"}
CUDA_MINIMUM = 80  # the first with the copies and the tensor-core instructions that the kernels use


class Wrong(Exception):
    """An environment variable asks for what there is not; the message names it."""


def cuda_architectures(wanted: str, knows: Collection[str]) -> tuple[list[str], str | None]:
    """(what nvcc is to make: sm_N is machine code, compute_N what drivers compile; a note or None).

    `wanted` is TORCH_CUDA_ARCH_LIST, like "8.0;9.0a;12.0+PTX"; `knows` what nvcc knows.

    Raises:
        Wrong: it is not such a list, or has what nvcc does not know.
    """
    if not wanted.strip():
        chosen = [name for name in CUDA_DEFAULT if name in knows]
        newest = CUDA_PTX_OF.get(chosen[-1], chosen[-1])
        return [*(f"sm_{name}" for name in chosen), f"compute_{newest}"], None
    result, old = [], []
    for entry in wanted.replace(";", " ").split():
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        number = match.group(1) + match.group(2) if match else ""
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
    note = f"not for {', '.join(old)}: the kernels need 8.0 or newer" if old else None
    return list(dict.fromkeys(result)), note


class Plan:
    """What will be built, with what, and why the rest will not be.

    `extensions` are the names to build; `notes` the plain lines for the user; `left_out` is
    {"cpu" or "cuda": why}, for who imports the package later. An explicit choice that cannot be met is
    in `failure`.
    """

    extensions: list[str]
    notes: list[str]
    left_out: dict[str, str]
    failure: str | None
    compiler: tuple[str, str]
    torch: tuple[str, str]
    ninja: list[str]
    nvcc: Nvcc
    architectures: list[str]

    def __init__(self, choice: str) -> None:
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

    def plan_cuda(self) -> list[str]:
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
    def matrix(self) -> list[str]:
        """The units for products of bfloat16 that the compiler knows."""
        if self.compiler[1] != "x86_64":
            return []
        return [name for name, flags in MATRIX_FLAGS.items() if knows_flags(self.compiler[0], flags)]

    @property
    def isas(self) -> list[str]:
        return list(ISA_FLAGS) if self.compiler[1] == "x86_64" else ["base"]

    def told(self) -> dict[str, Any]:
        """What mirnet_fast/_native.py reads of the build, as JSON takes it."""
        info = {"build": self.choice, "left_out": self.left_out}
        if LIBRARY in self.extensions:
            with_cuda = CUDA_LIBRARY in self.extensions
            info |= {
                "built_with_torch": self.torch[0],
                "compiler": compiler_version(self.compiler[0]),
                "cxx_flags": LOOP_FLAGS,
                "isa_compiled": [*self.isas, *self.matrix],
                "nvcc": self.nvcc.version if with_cuda else "",
                "cuda_architectures": self.architectures if with_cuda else [],
            }
        return info
