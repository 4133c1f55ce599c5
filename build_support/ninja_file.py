"""The steps of a plan, as ninja reads them."""

import shlex
from collections.abc import Iterable

from . import ROOT
from .flags import (
    COMMON_FLAGS,
    CUDA_FLAGS,
    GLUE_FLAGS,
    ISA_FLAGS,
    LIBRARY_LINK_FLAGS,
    LOOP_FLAGS,
    MATRIX_FLAGS,
)
from .plan import CUDA_LIBRARY, CUDA_PTX_OF, LIBRARY, Plan
from .toolchain import cuda_of


class NinjaFile:
    """Collects compile and link steps; paths are relative to the repository root."""

    def __init__(self, folder: str, compiler: str, nvcc: str) -> None:
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

    def step(
        self, rule: str, inputs: Iterable[str], output: str, flags: str, uses: Iterable[str] = ()
    ) -> str:
        """`uses`: files that are no inputs of the command and yet make it stale."""

        def listed(paths):
            return " ".join(str(p).replace("$", "$$").replace(" ", "$ ").replace(":", "$:") for p in paths)

        self.lines.append(f"build {listed([output])}: {rule} {listed(inputs)} | {listed(uses)}")
        self.lines.append(f"  flags = {flags.replace('$', '$$')}")
        return output

    def compile(
        self, source: str, flags: str, suffix: str = "", rule: str = "compile", folder: str | None = None
    ) -> str:
        return self.step(rule, [source], f"{folder or self.folder}/{source}{suffix}.o", flags)

    def link_library(self, name: str, objects: Iterable[str], flags: str, uses: Iterable[str] = ()) -> str:
        flags = f"{LIBRARY_LINK_FLAGS} {flags}"
        return self.step("link", objects, f"{self.folder}/{name}.so", flags, ["csrc/exports.map", *uses])


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def write_cuda(plan: Plan, file: NinjaFile, torch_headers: str, torch_libraries: str) -> str:
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


def write_ninja(plan: Plan, folder: str) -> dict[str, str]:
    """The steps for every extension of the plan; returns {extension name: file it becomes}."""
    torch = plan.torch[1]
    with_cuda = CUDA_LIBRARY in plan.extensions
    file, outputs = NinjaFile(folder, plan.compiler[0], plan.nvcc.command if with_cuda else ""), {}

    torch_headers = f"-isystem {shlex.quote(torch + '/include')}"
    torch_libraries = f"-L{shlex.quote(torch + '/lib')}"
    glue = f"{GLUE_FLAGS} {torch_headers}"
    glue += "".join(f" -DMIRNET_WITH_{unit.upper()}" for unit in plan.matrix)
    objects = [file.compile(source, glue) for source in sources("csrc/cpu/*.cpp")]
    for isa in plan.isas:
        flags = f"{LOOP_FLAGS} -DMIRNET_ISA={isa} {ISA_FLAGS[isa]}"
        objects += [file.compile(source, flags, f".{isa}") for source in sources("csrc/cpu/simd/*.cpp")]
    for unit in plan.matrix:
        flags = f"{LOOP_FLAGS} -DMIRNET_ISA={unit} {MATRIX_FLAGS[unit]}"
        objects += [
            file.compile(source, flags, f".{unit}") for source in sources("csrc/cpu/simd/matrix/*.cpp")
        ]
    libraries = f"{torch_libraries} -Wl,--as-needed -ltorch_cpu -lc10"
    outputs[LIBRARY] = file.link_library("libmirnet_fast_cpu", objects, libraries)

    if with_cuda:
        outputs[CUDA_LIBRARY] = write_cuda(plan, file, torch_headers, torch_libraries)

    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    (ROOT / folder / "build.ninja").write_text("\n".join(file.lines) + "\n")
    return outputs
