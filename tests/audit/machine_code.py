"""What the machine code of a compiled Triton kernel says, and what its loads and stores reach."""

import contextlib
import hashlib
import itertools
import json
import math
import re
import subprocess
import tempfile
from pathlib import Path

BUILD = Path(__file__).parents[2] / "build" / "audit"


def examined(compiled, arguments):
    """What the machine code of a kernel says; kept by its hash."""
    maps = map_parameters(compiled.asm["ttir"], arguments)
    key = hashlib.sha256(f"{compiled.hash} {maps} {Path(__file__).read_bytes()}".encode()).hexdigest()
    kept = BUILD / "rows" / f"{key}.json"
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        return json.loads(kept.read_text())
    sass, usage = disassembled(compiled.asm["cubin"])
    opcodes = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", sass, re.MULTILINE)
    accesses = map_accesses(compiled.asm["ttgir"], maps)
    narrowest = widths(compiled.asm["ptx"], accesses)
    threads = 32 * compiled.metadata.num_warps
    row = {
        "registers": usage["REG"],
        "shared": compiled.metadata.shared,
        "stack": usage["STACK"],
        "spills": sum(o.split(".")[0] in ("LDL", "STL") for o in opcodes),
        "product": "tt.dot" in compiled.asm["ttir"],
        "tensor_cores": {
            name: count
            for name in ("HMMA", "HGMMA", "UTCHMMA", "QGMMA", "IMMA")
            if (count := sum(o.split(".")[0] == name for o in opcodes))
        },
        "boxes": sum(o.split(".")[0] == "UTMALDG" for o in opcodes),
        "operand_loads": sum(o.split(".")[0] == "LDSM" for o in opcodes),
        "loads_128": sum(bool(re.match(r"(LDG|LDGSTS)\b.*\.(128|256)", o)) for o in opcodes),
        # As many as the maps' tiles need at 16 bytes a thread.
        "loads_128_needed": sum(
            max(1, size // (16 * threads)) for kind, _, _, size in accesses if kind == "load"
        ),
        "instructions": len(opcodes),
        "map_loads": narrowest["load"],
        "map_stores": narrowest["store"],
    }
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(row))
    return row


def disassembled(cubin):
    """(machine code as text, {resource: amount})."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def tool(name, *options):
            command = [tools / name, *options, file.name]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        sass = tool("nvdisasm", "-c")
        usage = re.findall(r"(REG|STACK):(\d+)", tool("cuobjdump", "--dump-resource-usage"))
    return sass, {name: int(amount) for name, amount in usage}


def map_parameters(ttir, arguments):
    """Names, in the intermediate code, of the pointers to feature maps: channels_last, many channels."""
    import torch

    def flat(value):
        return itertools.chain(*map(flat, value)) if isinstance(value, (tuple, list)) else [value]

    tensors = [v for v in flat(list(arguments.values())) if isinstance(v, torch.Tensor)]
    header = re.search(r"tt\.func public @\w+\((.*)\) attributes", ttir).group(1)
    pointers = re.findall(r"%([\w.]+): !tt\.ptr<", header)
    assert len(pointers) == len(tensors), f"{len(pointers)} pointers for {len(tensors)} tensors: {header}"
    return sorted(
        name
        for name, t in zip(pointers, tensors, strict=True)
        if t.dim() == 4 and t.stride(1) == 1 and t.shape[1] % 8 == 0 and t.shape[2] * t.shape[3] > 1
    )


def map_accesses(ttgir, maps):
    """[(kind, map, (file name, line), bytes)] of the loads and stores of the maps."""
    places = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", ttgir, re.MULTILINE))

    def line(place):
        text = places.get(place, place)
        direct = re.match(r'"([^"]*)":(\d+):', text)
        if direct:
            return Path(direct.group(1)).name, int(direct.group(2))
        return line(re.search(r"#loc\d*", text).group())  # the innermost of inlined calls comes first

    derived = r"\s*%([\w.]+) = (?:tt\.(?:splat|addptr|broadcast|expand_dims|bitcast)|ttg\.\w+) %([\w.#]+)"
    access = r"\s*(?:%[\w.]+ = )?(tt\.load|tt\.store|ttg\.async_copy_global_to_local) %([\w.#]+)"
    origin = {name: name for name in maps}
    found = []
    for text in ttgir.splitlines():
        for inner, outer in re.findall(r"%([\w.#]+) = %([\w.#]+)", text):  # carried through a loop
            if outer in origin:
                origin[inner] = origin[outer]
        match = re.match(access, text)
        if match and match.group(2) in origin:
            kind = "store" if match.group(1) == "tt.store" else "load"
            shape, bits = re.search(r"tensor<((?:\d+x)+)!tt\.ptr<b?f(\d+)>", text).groups()
            elements = math.prod(int(side) for side in shape[:-1].split("x"))
            place = re.search(r"loc\((#loc\d*|\".*)\)$", text).group(1)
            found.append((kind, origin[match.group(2)], line(place), elements * int(bits) // 8))
        match = re.match(derived, text)
        if match:  # after the access: names return in later scopes
            name, source = match.groups()
            if source in origin:
                origin[name] = origin[source]
            else:
                origin.pop(name, None)
    return found


def widths(ptx, accesses):
    """{"load": {map: bytes of its narrowest load}, "store": {...}}, told apart by their source lines.

    From the PTX, whose assembler keeps the widths: in the machine code the lines are shifted, because
    every line of inline assembly counts as one more. None for a map whose lines are gone.
    """
    result = {"load": {}, "store": {}}
    lines = {}
    for kind, name, place, _ in accesses:
        lines.setdefault((kind, *place), set()).add(name)
        result[kind][name] = None
    named = re.findall(r'^\s*\.file\s+(\d+)\s.*"([^"\n]*)"$', ptx, re.MULTILINE)
    files = {number: Path(name).name for number, name in named}
    here, block = None, None
    for text in ptx.splitlines():
        if location := re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", text):
            here = files[location.group(1)], int(location.group(2))
        elif "begin inline asm" in text:
            block = here
        elif "end inline asm" in text:
            block = None
        if access := re.search(r"\b(ld|st)\.global(?:\.\w+:?:?\w*)*?(?:\.v(\d+))?\.[bfus](\d+)\b", text):
            kind = "load" if access.group(1) == "ld" else "store"
            width = int(access.group(2) or 1) * int(access.group(3)) // 8
        elif access := re.search(r"\bcp\.async\.\w+\.shared\.global.*\], (0x[0-9a-f]+|\d+)", text):
            kind, width = "load", int(access.group(1), 0)
        else:
            continue
        for name in lines.get((kind, *(block or here)), ()):
            result[kind][name] = min(width, result[kind][name] or width)
    return result
