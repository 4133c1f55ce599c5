"""Compile every CUDA kernel for every default architecture, without a GPU, and look at the machine code.

    python -m tests.audit.cuda              # the table, and what is wrong with it
    python -m tests.audit.cuda --arch 9.0   # of one architecture, in half the time
    python -m tests.audit.cuda --write      # also record registers and shared memory as the budget

setup.py builds the library as MIRNET_FAST_BUILD=cuda does, warnings being errors; from its objects come
registers, stack, spills, shared memory (what is not asked for at the launch), tensor-core instructions
and loads of 16 bytes. `problems` says what is asked of them; cuda_budget.json holds what the kernels took
when they were last looked at, by minor version of nvcc, because its assembler decides. Needs nvcc, and
cuobjdump and nvdisasm, which Triton brings along.
"""

import argparse
import concurrent.futures
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from build_support.plan import Plan

from .budget import Budget

ROOT = Path(__file__).parents[2]
NINJA = ROOT / f"build/ninja-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
BUILT = ROOT / "build" / "audit" / "cuda"
LIBRARY = BUILT / "mirnet_fast" / "libmirnet_fast_cuda.so"

# Kernels that multiply matrices: of 16-bit values with tensor cores.
PRODUCTS = {
    "apply_backward_kernel",
    "apply_kernel",
    "down_kernel",
    "project_kernel",
    "up_kernel",
    "weight_gradient_kernel",
    "weight_kernel",
}
SHORT = {
    "__half": "half",
    "__nv_bfloat16": "bf16",
    "mirnet_fast::": "",
    "cuda::": "",
    "dau::": "",
    "skff::": "",
}


def tool(name):
    """The path of cuobjdump or nvdisasm, or None."""
    triton = importlib.util.find_spec("triton")
    if triton:
        path = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name
        if path.exists():
            return str(path)
    return shutil.which(name)


def plan():
    """What setup.py would build with MIRNET_FAST_BUILD=cuda, and with what."""
    return Plan("cuda")


def missing():
    """Why nothing can be audited here, or None."""
    if failure := plan().failure:
        return failure
    absent = [name for name in ("cuobjdump", "nvdisasm") if tool(name) is None]
    absent += [name for name in ("c++filt", "nm") if shutil.which(name) is None]
    return f"no {' and no '.join(absent)}" if absent else None


def build(architectures=""):
    """Compile what is out of date into LIBRARY; returns what setup.py tells of the build.

    architectures: as TORCH_CUDA_ARCH_LIST, the default ones where it is empty.
    """
    environment = {**os.environ, "TORCH_CUDA_ARCH_LIST": architectures}
    environment |= {"MIRNET_FAST_BUILD": "cuda", "NVCC_APPEND_FLAGS": "-Werror all-warnings"}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", BUILT],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the CUDA kernels do not compile:\n{done.stdout}{done.stderr}")
    return json.loads(LIBRARY.with_name("build.json").read_text())


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def objects_of(info):
    """The objects of a build."""
    folder = NINJA / "-".join(info["cuda_architectures"]) / "csrc/cuda"
    return [p for p in sorted(folder.glob("*.cu.o")) if (ROOT / "csrc/cuda" / p.stem).exists()]


def audit(ops=None, architectures=""):
    """(rows of the kernels in the objects of these ops, or of all; what setup.py tells)."""
    info = build(architectures)
    objects = objects_of(info)
    objects = [p for p in objects if not ops or p.name.split(".")[0] in ops]
    parameters = template_parameters()
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for path in objects:
            run(tool("cuobjdump"), "-xelf", "all", path, cwd=folder)
        cubins = sorted(Path(folder).glob("*.cubin"))
        for cubin, found in zip(cubins, pool.map(examined, cubins), strict=True):
            op, arch = cubin.name.split(".")[0], cubin.name.split(".")[-2]
            names = run("c++filt", input="\n".join(found)).splitlines()
            for name, row in zip(names, found.values(), strict=True):
                row |= {"op": op, "arch": arch, "kernel": short(name)}
                rows.append(row | {"arguments": arguments(row["kernel"], parameters)})
    return sorted(rows, key=lambda r: (label(r), r["arch"])), info


def examined(cubin):
    """{mangled name: what the machine code of that kernel says}; kept by its hash."""
    key = hashlib.sha256(cubin.read_bytes() + Path(__file__).read_bytes()).hexdigest()
    kept = BUILT / "rows" / f"{key}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    usage = run(tool("cuobjdump"), "--dump-resource-usage", cubin)
    sass = run(tool("nvdisasm"), "-c", cubin)
    rows = {}
    for name, amounts in re.findall(r"^ Function (\S+):\n +(.*)$", usage, re.MULTILINE):
        found = {key: int(amount) for key, amount in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", amounts)}
        rows[name] = {"registers": found["REG"], "shared": found["SHARED"]}
        rows[name]["stack"] = found["STACK"] + found["LOCAL"]
    parts = re.split(r"^\.text\.(\S+):$", sass, flags=re.MULTILINE)
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        opcodes = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", text, re.MULTILINE)
        rows[name] |= {
            "instructions": len(opcodes),
            "spills": sum(o.split(".")[0] in ("LDL", "STL") for o in opcodes),
            "tensor_cores": sum(o.split(".")[0] == "HMMA" for o in opcodes),
            "loads_128": sum(bool(re.match(r"(LDG|LDGSTS)\b.*\.(128|256)", o)) for o in opcodes),
        }
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(rows))
    return rows


def short(name):
    """A demangled name without namespaces, result and parameters."""
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "").split("(")[0]
    for long, brief in SHORT.items():
        name = name.replace(long, brief)
    return name.replace(" >", ">")


def template_parameters():
    """{kernel: [names of its template parameters]}, one list for each kernel of that name."""
    found = {}
    for path in sorted((ROOT / "csrc/cuda").glob("*.cu*")):
        text = re.sub(r"__launch_bounds__\((?:[^()]|\([^()]*\))*\)", "", path.read_text())
        for inner, name in re.findall(r"template <([^>]*)>\s*__global__ void\s+(\w+)\(", text):
            found.setdefault(name, []).append([one.split()[-1] for one in inner.split(",")])
    return found


def arguments(kernel, parameters):
    """{template parameter: argument} of a kernel as `short` names it."""
    name, _, inner = kernel.partition("<")
    values, depth = [""], 0
    for c in inner[:-1]:
        depth += (c == "<") - (c == ">")
        if c == "," and depth == 0:
            values.append("")
        else:
            values[-1] += c
    named = next(names for names in parameters[name] if len(names) == len(values))
    return dict(zip(named, map(str.strip, values), strict=True))


def label(row):
    """What a row is called in the budget; its architecture apart."""
    return f"{row['op']} {row['kernel']}"


BUDGET = Budget(Path(__file__).with_name("cuda_budget.json"), label, lambda row: row["arch"])


def problems(row, budget):
    """What is wrong with a row: a list of sentences. `budget` is that of this nvcc, or None."""
    found = []
    if row["stack"] or row["spills"]:
        found.append(f"spills: a stack of {row['stack']} bytes, {row['spills']} local loads and stores")
    given = row["arguments"]
    half = given.get("T", given.get("In")) in ("half", "bf16")
    product = row["kernel"].split("<")[0] in PRODUCTS
    if product and half and not row["tensor_cores"]:
        found.append("its matrix product uses no tensor cores")
    if row["tensor_cores"] and not product:
        found.append("it uses tensor cores and is not among PRODUCTS")
    if row["tensor_cores"] and not half:
        found.append("it multiplies float32 on tensor cores, which is TF32")
    wide = given.get("V") in ("4", "8") or given.get("Aligned") == "true"
    if wide and not row["loads_128"]:
        found.append("it has no loads of 16 bytes")
    found += BUDGET.exceeded(row, budget)
    return [f"{label(row)} {row['arch']}: {text}" for text in found]


def lacking(rows, architectures):
    """What the rows together lack."""
    found = [f"{name}: it is among PRODUCTS and not compiled" for name in sorted(PRODUCTS)]
    names = {row["kernel"].split("<")[0] for row in rows}
    found = [text for text in found if text.split(":")[0] not in names]
    wanted = {name for name in architectures if name.startswith("sm_")}
    for name in sorted({label(row) for row in rows}):
        absent = wanted - {row["arch"] for row in rows if label(row) == name}
        if absent:
            found.append(f"{name}: not compiled for {', '.join(sorted(absent))}")
    return found


def foreign_symbols(library):
    """What a library exports, and what it wants of others than torch's stable ABI, C and C++."""
    # Torch's libraries have some of std:: without a version, so it can be missing here too.
    known = re.compile(r"(aoti_)?torch_\w+$|.*@(GLIBC|GLIBCXX|CXXABI|GCC)_|_ZN?K?St")
    lines = [line.split() for line in run("nm", "-D", library).splitlines()]
    weak = ("w", "v")  # of those the loader needs none
    return [name for *_, kind, name in lines if kind not in weak and not (kind == "U" and known.match(name))]


def version(info):
    return "nvcc " + ".".join(info["nvcc"].split(".")[:2])


def table(rows):
    """The rows as lines of text, one for each kernel: amounts by architecture, or one for all."""
    archs = sorted({row["arch"] for row in rows}, key=lambda a: int(re.sub(r"\D", "", a)))
    lines = [["registers", *(a.removeprefix("sm_") for a in archs)]]
    lines[0] += ["shared", "stack", "spills", "HMMA", "LDG.128", "SASS"]
    kernels = {}
    for row in rows:
        kernels.setdefault(label(row), {})[row["arch"]] = row
    for name, by_arch in kernels.items():
        line = [name, *(by_arch[a]["registers"] if a in by_arch else "-" for a in archs)]
        for key in ("shared", "stack", "spills", "tensor_cores", "loads_128", "instructions"):
            amounts = [row[key] for row in by_arch.values()]
            low, high = min(amounts), max(amounts)
            line.append(f"{low}-{high}" if low < high else low)
        lines.append(line)
    sizes = [max(len(str(line[i])) for line in lines) for i in range(len(lines[0]))]
    return [
        "  ".join(
            str(v).rjust(s) if i else str(v).ljust(s)
            for i, (v, s) in enumerate(zip(line, sizes, strict=True))
        )
        for line in lines
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ops", nargs="*", metavar="OP")
    parser.add_argument(
        "--arch", default="", help="as TORCH_CUDA_ARCH_LIST; what is built by default if none"
    )
    parser.add_argument("--write", action="store_true", help="record what is seen as the budget")
    chosen = parser.parse_args()
    if why := missing():
        parser.error(why)
    if chosen.write and chosen.arch:
        parser.error("--write needs every architecture")
    rows, info = audit(chosen.ops, chosen.arch)
    if chosen.write:
        BUDGET.write(rows, version(info))
    budget = BUDGET.load().get(version(info))
    found = [text for row in rows for text in problems(row, budget)]
    if not chosen.ops:
        found += lacking(rows, info["cuda_architectures"])
    found += [f"{LIBRARY.name}: symbol {name}" for name in foreign_symbols(LIBRARY)]
    print("\n".join(table(rows)))
    unrecorded = sum(BUDGET.of(row, budget) is None for row in rows)
    if unrecorded:
        print(f"{unrecorded} of {len(rows)} rows are not in the budget of {version(info)} (--write)")
    print("\n".join(found) or f"{len(rows)} kernels compiled by {version(info)}: nothing wrong")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
