"""Compile every Triton kernel for real GPUs, without one, and look at the machine code.

    python -m tests.audit.compile            # the table, and what is wrong with it
    python -m tests.audit.compile --few      # every kernel once or twice, for sm_90
    python -m tests.audit.compile --write    # also record registers and shared memory as the budget

The ops' own host functions are called on small CPU tensors; instead of being launched a kernel is
compiled, so signatures, constants, alignments and options are those of a real call. From the
cubin: registers, stack, spills, shared memory, tensor-core instructions, and how wide the loads and
stores of feature maps are. `problems` says what is asked of them; budget.json holds what they took
when they were last looked at, by minor version of Triton, because its assembler decides.
"""

import argparse
import concurrent.futures
import contextlib
import importlib
import inspect
import itertools
import json
import multiprocessing
import os
import sys
from pathlib import Path

from .budget import Budget
from .machine_code import BUILD, examined

ROOT = Path(__file__).parents[2]

# Bytes of shared memory that a block may have.
SHARED_LIMIT = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
ARCHS = tuple(SHARED_LIMIT)
# "tf32" is float32 where torch's switch of convolutions allows TF32.
DTYPES = ("float16", "bfloat16", "float32", "tf32")
# Of the published network; the other ops run on all three streams.
CHANNELS = {"residual_down_tail": (64, 128), "residual_up_tail": (128, 256), "conv_transpose3x3": (128, 256)}
# The convolutions, and what is fused in those of their calls that are looked at.
CONVOLUTIONS = {
    "conv1x1": ("slope",),
    "conv3x3": ("slope", "residual", "statistics", "from_image", "to_image"),
    "conv_transpose3x3": ("slope", "tail"),
}
IMAGES = ("from_image", "to_image")
# "wide": 64-bit offsets; "few": so few tiles that convolutions make them smaller.
VARIANTS = ("plain", "wide", "few")
# Ops whose calls all hold a matrix product.
PRODUCTS = ("dau_attention", "residual_down_tail", "residual_up_tail", *CONVOLUTIONS)
# What known.json calls a GPU, and its architecture.
GPU_ARCHS = {
    "A100": 80,
    "A800": 80,
    "L4": 89,
    "RTX 40": 89,
    "Ada": 89,
    "H100": 90,
    "H200": 90,
    "H800": 90,
    "H20": 90,
    "GH200": 90,
    "B100": 100,
    "B200": 100,
    "GB200": 100,
}


def directions(op, channels):
    """The calls of an op that are looked at; an image becomes the fewest channels, and these an image."""
    every = CONVOLUTIONS.get(op, ("forward", "backward"))
    return every if channels == 64 else tuple(d for d in every if d not in IMAGES)


def written(op):
    """Why the kernels of an op can't be audited, or None."""
    path = ROOT / "kernels" / f"{op}.py"
    if not path.exists():
        return f"kernels/{op}.py is not there"
    if op not in CONVOLUTIONS and f"def {op}_backward(" not in path.read_text():
        return f"kernels/{op}.py has no backward yet"
    return None


class Driver:
    """What Triton asks of a driver before it launches, answered for one architecture."""

    def __init__(self, arch):
        self.arch = arch

    def get_current_device(self):
        return self.arch  # Triton keeps one cache a device

    def get_current_stream(self, device=None):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)


@contextlib.contextmanager
def recorded_launches(arch):
    """[(JITFunction, {parameter: value}, compiled kernel)] of the launches inside, none of which runs."""
    from triton.runtime import driver, jit

    launches = []
    run = jit.JITFunction.run

    def compile_only(self, *args, grid, warmup=False, **options):
        compiled = run(self, *args, grid=grid, warmup=True, **options)
        names = inspect.signature(self.fn).parameters
        named = {k: v for k, v in options.items() if k in names}
        launches.append((self, inspect.signature(self.fn).bind(*args, **named).arguments, compiled))
        return compiled

    jit.JITFunction.run = compile_only
    driver.set_active(Driver(arch))
    try:
        yield launches
    finally:
        jit.JITFunction.run = run


@contextlib.contextmanager
def circumstances(op, arch, gpu, variant, dtype):
    """Launch options of an architecture or of a GPU of it, wide offsets, TF32."""
    import torch
    from mirnet_fast.kernels import _common, _configs

    importlib.import_module(f"mirnet_fast.kernels.{op}")
    shipped = _configs.load(ROOT / "kernels" / "known.json")
    changes = [(_configs, "_known", lambda: shipped), (_configs, "_device_name", lambda index: gpu)]
    changes.append((_configs, "_capability", lambda index: divmod(arch, 10)))
    changes.append((_configs, "_multiprocessors", lambda index: 10**6 if variant == "few" else 1))
    if variant == "wide":
        modules = [m for name, m in sys.modules.items() if name.startswith("mirnet_fast.kernels.")]
        wide = _common.tl.int64
        changes += [(m, "offset_type", lambda *maps: wide) for m in modules if hasattr(m, "offset_type")]
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    for module, name, value in changes:
        setattr(module, name, value)
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        torch.backends.cudnn.allow_tf32 = False


def audit(op, channels, dtype, arch, variant="plain", gpu=None, only=None):
    """The rows of one op, of all its directions or of one."""
    import torch
    from mirnet_fast.kernels import tune

    torch.set_num_threads(1)
    element = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
    rows = []
    with circumstances(op, arch, gpu, variant, dtype), recorded_launches(arch) as launches:
        calls = tune.calls(op, channels, element, side=64, device="cpu")
        for direction in directions(op, channels) if only is None else (only,):
            launches.clear()
            calls[direction]()
            seen = {}
            for function, arguments, compiled in launches:
                kernel = function.fn.__name__
                key = kernel, compiled.hash
                if key in seen:
                    continue
                turn = sum(k == kernel for k, _ in seen)
                seen[key] = True
                rows.append(
                    {
                        "op": op,
                        "direction": direction,
                        "kernel": kernel + (f" {turn + 1}" if turn else ""),
                        "arch": arch,
                        "dtype": dtype,
                        "channels": channels,
                        "variant": variant,
                        "gpu": gpu,
                        "warps": compiled.metadata.num_warps,
                        **examined(compiled, arguments),
                    }
                )
    return rows


def label(row):
    """What a row is called in the budget; its architecture apart."""
    gpu = [row["gpu"]] if row["gpu"] else []
    variant = [row["variant"]] if row["variant"] != "plain" else []
    parts = [row["op"], row["direction"], row["kernel"], row["dtype"], row["channels"], *variant, *gpu]
    return " ".join(map(str, parts))


BUDGET = Budget(Path(__file__).with_name("budget.json"), label, lambda row: f"sm_{row['arch']}")


def problems(row, budget):
    """What is wrong with a row: a list of sentences. `budget` is that of this Triton version, or None."""
    found = []
    limit = SHARED_LIMIT[row["arch"]]
    if row["shared"] > limit:
        found.append(f"{row['shared']} bytes of shared memory; the chip has {limit}")
    if row["stack"] or row["spills"]:
        found.append(f"spills: a stack of {row['stack']} bytes, {row['spills']} local loads and stores")
    half = row["dtype"] in ("float16", "bfloat16")
    if row["arch"] == 90 and half and row["product"] and not row["tensor_cores"]:
        found.append("its matrix product uses no tensor cores")
    # Of 3 outputs there are fewer than Hopper's own tensor instructions take.
    if row["op"] in CONVOLUTIONS and row["arch"] == 90 and half and row["direction"] not in IMAGES:
        if "HGMMA" not in row["tensor_cores"] or not row["boxes"]:
            found.append("its product is not of boxes in shared memory by HGMMA")
        if row["operand_loads"] and row["direction"] != "tail":
            found.append(f"{row['operand_loads']} loads bring what it multiplies through registers")
    if row["dtype"] == "float32" and row["tensor_cores"]:
        found.append("it multiplies float32 on tensor cores, which is TF32")
    if half and row["channels"] % 8 == 0:
        narrow = {name: width for name, width in row["map_loads"].items() if width and width < 16}
        if narrow:
            found.append(f"feature maps loaded by less than 16 bytes: {narrow}")
        elif row["loads_128"] < row["loads_128_needed"]:
            count, needed = row["loads_128"], row["loads_128_needed"]
            found.append(f"{count} loads of 16 bytes; its feature maps need {needed}")
    found += BUDGET.exceeded(row, budget)
    return [f"{label(row)} sm_{row['arch']}: {text}" for text in found]


def missing(rows):
    """What the rows together lack."""
    found = []
    for op in {row["op"] for row in rows} & set(PRODUCTS):
        for direction in sorted({r["direction"] for r in rows if r["op"] == op}):
            if not any(r["op"] == op and r["direction"] == direction and r["product"] for r in rows):
                found.append(f"{op} {direction}: no kernel holds a matrix product")
    return found


def few_tasks(ops):
    """Arguments of `audit` for every kernel in float16, and for those of one product in float32, on sm_90.

    Of a convolution for the call with the most behind it.
    """
    fewest = {op: CHANNELS.get(op, (64,))[0] for op in ops}
    exact = [(op, fewest[op], "float32", 90) for op in ops if op == "residual_up_tail"]
    most = {"conv3x3": "statistics", "conv_transpose3x3": "tail"}
    return [(op, c, "float16", 90, "plain", None, most.get(op)) for op, c in fewest.items()] + exact


def tasks(ops, archs, dtypes, everything):
    """Arguments of `audit` for all that is shipped: every op, dtype, number of channels, architecture.

    Without `everything` the variants are only those of the most channels on sm_90.
    """
    shipped = sorted(json.loads(p.read_text()) if (p := ROOT / "kernels" / "known.json").exists() else {})
    result = []
    for op, arch, dtype in itertools.product(ops, archs, dtypes):
        if dtype == "tf32" and op not in PRODUCTS:
            continue
        # What differs in bfloat16 is the name of an instruction.
        if op in CONVOLUTIONS and dtype == "bfloat16" and arch != 90:
            continue
        channels = CHANNELS.get(op, (64, 128, 256))
        for c in channels:
            result.append((op, c, dtype, arch))
            for variant in VARIANTS[1:]:
                if variant == "few" and op not in CONVOLUTIONS:
                    continue
                if everything or (arch == 90 and c == channels[-1] and dtype in ("float16", "float32")):
                    result.append((op, c, dtype, arch, variant))
            for gpu in shipped:
                known = {a for name, a in GPU_ARCHS.items() if name in gpu}
                if arch in (known or ARCHS):
                    result.append((op, c, dtype, arch, "plain", gpu))
    return result


def version():
    import triton

    return "triton " + ".".join(triton.__version__.split(".")[:2])


def table(rows):
    """The rows as lines of text."""
    header = ["kernel", "arch", "dtype", "C", "warps", "regs", "shared", "spills", "tensor cores", "LDG.128"]
    lines = [[*header, "map loads", "map stores"]]
    for row in rows:
        bytes_of = [
            " ".join(f"{name}:{width or '?'}" for name, width in sorted(row[kind].items())) or "-"
            for kind in ("map_loads", "map_stores")
        ]
        variant = "" if row["variant"] == "plain" else f" ({row['variant']})"
        lines.append(
            [
                f"{row['op']} {row['direction']} {row['kernel']}{variant}",
                f"sm_{row['arch']}",
                row["dtype"],
                row["channels"],
                row["warps"],
                row["registers"],
                row["shared"],
                row["spills"] + row["stack"],
                " ".join(f"{k}:{v}" for k, v in row["tensor_cores"].items()) or "-",
                row["loads_128"],
                *bytes_of,
            ]
        )
    sizes = [max(len(str(line[i])) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(str(v).ljust(s) for v, s in zip(line, sizes, strict=True)).rstrip() for line in lines]


def collect(work, jobs):
    """(rows of these tasks in their order, what went wrong in those that failed)."""
    context = multiprocessing.get_context("spawn")
    rows, failed = [], []
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        results = [pool.submit(audit, *task) for task in work]
        for task, result in zip(work, results, strict=True):
            try:
                rows += result.result()
            except Exception as error:  # one kernel that does not compile is a finding, not the end
                why = str(error).strip().splitlines() or [""]
                failed.append(f"{' '.join(map(str, task))}: {type(error).__name__}: {why[0]}")
    return rows, failed


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ops", nargs="*", metavar="OP")
    parser.add_argument("--arch", type=int, action="append", choices=ARCHS)
    parser.add_argument("--dtype", action="append", choices=DTYPES)
    parser.add_argument("--few", action="store_true", help="no more than a test of every kernel needs")
    parser.add_argument("--all", action="store_true", help="wide offsets of every row too")
    parser.add_argument("--write", action="store_true", help="record what is seen as the budget")
    parser.add_argument("--json", type=Path, help="also write rows, skipped ops and problems to this file")
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1))
    chosen = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set: nothing would be compiled")
    if chosen.write and (chosen.arch or chosen.dtype or chosen.few):
        parser.error("--write needs every architecture and dtype")
    os.environ["TRITON_CACHE_DIR"] = str(BUILD / "triton")

    from mirnet_fast.ops import OPS

    asked = chosen.ops or (*OPS, *CONVOLUTIONS)
    skipped = {op: why for op in asked if (why := written(op))}
    ops = [op for op in asked if op not in skipped]
    work = (
        few_tasks(ops) if chosen.few else tasks(ops, chosen.arch or ARCHS, chosen.dtype or DTYPES, chosen.all)
    )
    rows, failed = collect(work, chosen.jobs)
    if chosen.write:
        BUDGET.write(rows, version())
    budget = BUDGET.load().get(version())
    found = failed + [text for row in rows for text in problems(row, budget)] + missing(rows)
    print("\n".join(table(rows)))
    for op, why in skipped.items():
        print(f"skipped {op}: {why}")
    unrecorded = sum(BUDGET.of(row, budget) is None for row in rows)
    if unrecorded:
        print(f"{unrecorded} of {len(rows)} rows are not in the budget of {version()} (--write records them)")
    print("\n".join(found) or f"{len(rows)} kernels compiled by {version()}: nothing wrong")
    if chosen.json:
        chosen.json.write_text(
            json.dumps({"rows": rows, "skipped": skipped, "problems": found, "unrecorded": unrecorded})
        )
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
