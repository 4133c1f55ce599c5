"""Count the bytes of feature maps that every Triton kernel moves, without a GPU.

    python -m tests.audit.traffic

The interpreter runs the ops with the tiles that a GPU would use, and every load and store is noted,
boxes as TMA brings them too: the addresses come from the kernels' own index expressions. For each
program the distinct 32-byte sectors count once, the halo of its tile included; what a program reads
again it has in its registers or first-level cache, but for boxes, which come from the second-level
cache each time (`asked`). Two numbers frame what the memory sees:

    each program    as if programs shared nothing
    each launch     as if the second-level cache kept everything during a launch

The floor of a forward is that of section 3 of the design: each input read once, twice where a
global mean has to be known first, each output written once. PASSES below says how many maps a call
should move in its launches, and BACKWARD_FLOOR what a perfect backward would: inputs and output
gradient once, all gradients once. Of a convolution CONVOLUTION_FLOOR counts maps of its input, and
the border of its tiles is in what is recorded: it is what a program of few pixels pays for nine
taps. Maps that a call makes for itself (`between`) and everything small (weights, tables,
statistics, partial sums) are shown apart. All are in maps of the op, as the design counts.
"""

import argparse
import contextlib
import importlib
import json
import os
import sys
from pathlib import Path

import numpy as np

from .compile import CHANNELS, CONVOLUTIONS, written

SECTOR = 32
TOLERANCE = 1.1
# Sides of the audited maps, for the fewest and the most channels: multiples of every tile, large enough
# for a usual share of border where the floor allows a halo.
SIDES = {
    "blur_pool forward": (128, 64),
    "residual_down_tail forward": (128, 64),
    "conv_transpose3x3 slope": (32, 32),
    "conv_transpose3x3 tail": (32, 32),
}
OTHER_SIDES = 64, 32
# A map of residual_up_tail is the small one, a map of residual_down_tail one of its inputs.
FORWARD_FLOOR = {
    "blur_pool": 1.25,
    "dau_attention": 4,
    "residual_down_tail": 2.5,
    "residual_up_tail": 7,
    "skff_select": 7,
}
BACKWARD_FLOOR = {
    "blur_pool": 1.25,
    "dau_attention": 3,
    "residual_down_tail": 4.5,
    "residual_up_tail": 12,
    "skff_select": 7,
}
CONVOLUTION_FLOOR = {
    "conv1x1 slope": 2,
    "conv3x3 slope": 2,
    "conv3x3 residual": 3,
    "conv3x3 statistics": 2,
    "conv_transpose3x3 slope": 5,
    "conv_transpose3x3 tail": 3.5,
}
# {op: {direction: (maps of the launches, of the programs with the fewest channels, with the most)}}, as
# they were when somebody last looked: more is a regression. The weights' gradients read both maps once for
# each block of the other's channels.
RECORDED = {
    "blur_pool": {"forward": (1.25, 1.33, 1.32), "backward": (1.25, 1.34, 1.32)},
    "dau_attention": {"forward": (4, 4, 4), "backward": (8, 8, 14)},
    "residual_down_tail": {"forward": (2.5, 2.73, 2.7), "backward": (9, 9.8, 11.7)},
    "residual_up_tail": {"forward": (8, 8.54, 8.45), "backward": (21.5, 24.3, 36.7)},
    "skff_select": {"forward": (7, 7, 7), "backward": (8, 8, 8)},
    "conv1x1": {"slope": (2, 2, 2)},
    "conv3x3": {"slope": (2, 2.2, 2.26), "residual": (3, 3.2, 3.26), "statistics": (2, 2.2, 2.26)},
    "conv_transpose3x3": {"slope": (5, 8.26, 8.26), "tail": (3.5, 8.51, 8.51)},
}


class Recorder:
    """Notes the sectors that interpreted kernels touch, by tensor, program and launch."""

    def __init__(self):
        self.launches = []  # [(kernel, {(tensor name, kind): (tensor, bytes by program, by launch, asked)})]
        self.moved_by_torch = 0
        self.inside = False  # a launch, where the interpreter's own use of torch does not count

    def start(self, kernel, tensors):
        # The tensors are kept, so that no two of a call have the same address.
        self.kernel, self.tensors, self.inside = kernel, tensors, True
        self.seen = {}  # {(tensor name, kind): [sectors of an access of this program]}
        self.done = {}  # {(tensor name, kind): [sectors of a program]}
        self.asked = {}

    def touch(self, kind, addresses, mask, size):
        addresses, mask = np.broadcast_arrays(addresses, mask)
        addresses = addresses[mask.astype(bool)].astype(np.int64)
        if not addresses.size:
            return
        first, last = addresses.min(), addresses.max()
        name = next(n for n, t in self.tensors.items() if start_of(t) <= first and last < end_of(t))
        access = name, kind
        self.asked[access] = self.asked.get(access, 0) + addresses.size * size
        self.seen.setdefault(access, []).append(np.unique(addresses // SECTOR))

    def next_program(self):
        for access, parts in self.seen.items():
            self.done.setdefault(access, []).append(np.unique(np.concatenate(parts)))
        self.seen = {}

    def finish(self):
        self.next_program()
        amounts = {}
        for access, parts in self.done.items():
            by_program = SECTOR * sum(map(len, parts))
            by_launch = SECTOR * len(np.unique(np.concatenate(parts)))
            amounts[access] = self.tensors[access[0]], by_program, by_launch, self.asked[access]
        self.launches.append((self.kernel, amounts))
        self.inside = False


def start_of(tensor):
    return tensor.untyped_storage().data_ptr()


def end_of(tensor):
    return start_of(tensor) + tensor.untyped_storage().nbytes()


def is_map(tensor):
    """Whether it has many channels and pixels, channels_last."""
    if tensor.dim() != 4 or tensor.stride(1) != 1:
        return False
    _, c, h, w = tensor.shape
    return c % 8 == 0 and h * w > 1


@contextlib.contextmanager
def recording():
    """A Recorder of what interpreted kernels do inside, with the tiles of a GPU."""
    import torch
    import triton.runtime.interpreter as interpreter
    from mirnet_fast.kernels import _configs
    from torch.utils._python_dispatch import TorchDispatchMode
    from triton.tools.tensor_descriptor import TensorDescriptor

    recorder = Recorder()
    builder = interpreter.interpreter_builder
    load, store, move = builder.create_masked_load, builder.create_masked_store, builder.set_grid_idx
    call = interpreter.GridExecutor.__call__

    def masked_load(pointers, mask, *rest, **options):
        result = load(pointers, mask, *rest, **options)
        recorder.touch("read", pointers.data, mask.data, result.data.itemsize)
        return result

    def masked_store(pointers, value, mask, *rest):
        recorder.touch("written", pointers.data, mask.data, value.data.itemsize)
        return store(pointers, value, mask, *rest)

    def set_grid_idx(*index):
        recorder.next_program()
        move(*index)

    def launch(self, *args, **kwargs):
        flat = {}

        def note(name, value):
            if isinstance(value, torch.Tensor):
                flat[name] = value
            elif isinstance(value, TensorDescriptor):
                flat[name] = value.base
            elif isinstance(value, (tuple, list)):
                for i, one in enumerate(value):
                    note(f"{name}.{i}", one)

        for name, value in [*zip(self.arg_names, args, strict=False), *kwargs.items()]:
            note(name, value)
        recorder.start(self.fn.__name__, flat)
        call(self, *args, **kwargs)
        recorder.finish()

    class OfTorch(TorchDispatchMode):
        """Bytes of whole maps that PyTorch's own operators read or write."""

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            touches = not function.is_view and "empty" not in function.name() and not recorder.inside
            if touches:
                values = torch.utils._pytree.tree_leaves((args, kwargs, result))
                maps = [v for v in values if isinstance(v, torch.Tensor) and is_map(v)]
                recorder.moved_by_torch += sum(v.numel() * v.itemsize for v in maps)
            return result

    modules = [m for name, m in sys.modules.items() if name.startswith("mirnet_fast.kernels")]
    changes = [(m, "INTERPRETED", False) for m in modules if hasattr(m, "INTERPRETED")]
    changes += [(_configs, "_known", dict), (_configs, "_device_name", lambda index: None)]
    changes.append((_configs, "_capability", lambda index: (9, 0)))
    changes.append((_configs, "_multiprocessors", lambda index: 1))
    changes += [(interpreter.GridExecutor, "__call__", launch)]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    builder.create_masked_load, builder.create_masked_store = masked_load, masked_store
    builder.set_grid_idx = set_grid_idx
    try:
        with OfTorch():
            yield recorder
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        del builder.create_masked_load, builder.create_masked_store, builder.set_grid_idx


def audit(op, place, direction, dtype="float16"):
    """The row of one call, in maps of the op; place 0: fewest channels of the network, 1: most."""
    import torch
    from mirnet_fast.kernels import tune
    from torch.utils._pytree import tree_leaves

    widths, side = CHANNELS.get(op, (64, 256)), SIDES.get(f"{op} {direction}", OTHER_SIDES)[place]
    channels = widths[-place]
    if op in CONVOLUTIONS:
        call = tune.calls(op, channels, getattr(torch, dtype), side=side, device="cpu")[direction]
        inputs = [v for v in call.args if isinstance(v, torch.Tensor)]
        with recording() as recorder:
            call()
        floor, x = CONVOLUTION_FLOOR[f"{op} {direction}"], call.args[1]
        moved = amounts(recorder, {start_of(t) for t in inputs}, x.numel() * x.itemsize)
        return _row(op, direction, channels, side, dtype, place, floor, moved)
    args = tune.arguments(op, channels, getattr(torch, dtype), side=side, device="cpu")
    inputs = [v for v in tree_leaves(args) if isinstance(v, torch.Tensor)]
    unit = channels * side**2 * inputs[0].itemsize // (4 if op == "residual_up_tail" else 1)
    module = importlib.import_module(f"mirnet_fast.kernels.{op}")
    shape = importlib.import_module(f"mirnet_fast.ops.{op}").output_shape(*args)
    grad = torch.ones(shape, dtype=inputs[0].dtype).contiguous(memory_format=torch.channels_last)
    if direction == "forward":
        call, called_with = getattr(module, op), args
    else:
        kept = [args[0], *args[2:]] if op == "dau_attention" else args  # x is only added
        call, called_with = getattr(module, f"{op}_backward"), (grad, *kept)
    with recording() as recorder:
        results = tree_leaves(call(*called_with))
    named = {start_of(t) for t in (*inputs, grad, *results)}
    floor = (FORWARD_FLOOR if direction == "forward" else BACKWARD_FLOOR)[op]
    return _row(op, direction, channels, side, dtype, place, floor, amounts(recorder, named, unit))


def _row(op, direction, channels, side, dtype, place, floor, moved):
    by_launch, *by_program = RECORDED[op][direction]
    return {
        "op": op,
        "direction": direction,
        "channels": channels,
        "side": side,
        "dtype": dtype,
        "floor": floor,
        "recorded": {"launch": by_launch, "program": by_program[place]},
        **moved,
    }


def amounts(recorder, named, unit):
    """What a call moved, in maps; `named` are the addresses of its arguments and results."""
    sums = dict.fromkeys(("program", "launch", "asked", "between", "small"), 0)
    launches = []
    for kernel, tensors in recorder.launches:
        moved = {}
        for access, (tensor, by_program, by_launch, asked) in tensors.items():
            if is_map(tensor):
                sums["program"] += by_program
                sums["launch"] += by_launch
                sums["asked"] += asked
                sums["between"] += 0 if start_of(tensor) in named else by_program
                moved[" ".join(access)] = round(by_program / unit, 4)
            else:
                sums["small"] += by_program
        launches.append([kernel, moved])
    sums["torch"] = recorder.moved_by_torch
    return {key: round(value / unit, 4) for key, value in sums.items()} | {"launches": launches}


def problems(row):
    """What is wrong with a row: a list of sentences."""
    name = f"{row['op']} {row['direction']} {row['channels']}"
    found = []
    if row["direction"] == "forward":
        # The design has the small map projected before it is enlarged: half a map written, then read.
        moved = row["program"] - (row["between"] if row["op"] == "residual_up_tail" else 0)
        if moved > TOLERANCE * row["floor"]:
            found.append(f"{name}: each program moves {moved:.3f} maps; the floor is {row['floor']}")
    for what, recorded in row["recorded"].items():
        if row[what] > 1.005 * recorded:
            found.append(f"{name}: each {what} moves {row[what]:.3f} maps; recorded are {recorded}")
    if row["launch"] < 0.99 * row["floor"]:
        found.append(
            f"{name}: each launch moves {row['launch']:.3f} maps, less than the floor of {row['floor']}"
        )
    if row["torch"] > 0:
        found.append(f"{name}: operators of PyTorch move {row['torch']:.3f} maps")
    return found


def table(rows):
    """The rows as lines of text."""
    header = [
        "op",
        "C",
        "side",
        "floor",
        "launch",
        "program",
        "% of floor",
        "between",
        "small",
        "asked",
        "torch",
    ]
    lines = [header]
    for r in rows:
        cells = [r[key] for key in ("floor", "launch", "program")]
        cells += [f"{100 * r['program'] / r['floor']:.0f}"]
        cells += [r[key] for key in ("between", "small", "asked", "torch")]
        lines.append([f"{r['op']} {r['direction']}", r["channels"], r["side"], *cells])
    text = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in line] for line in lines]
    sizes = [max(len(line[i]) for line in text) for i in range(len(header))]
    return [
        "  ".join(v.rjust(s) if i else v.ljust(s) for i, (v, s) in enumerate(zip(line, sizes, strict=True)))
        for line in text
    ]


def rows_of(op, dtype="float16"):
    """The rows of an op."""
    return [audit(op, place, direction, dtype) for place in (0, 1) for direction in RECORDED[op]]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ops", nargs="*", metavar="OP")
    parser.add_argument("--dtype", default="float16", choices=["float16", "float32"])
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    chosen = parser.parse_args()
    os.environ["TRITON_INTERPRET"] = "1"

    from mirnet_fast.ops import OPS

    asked = chosen.ops or (*OPS, *CONVOLUTIONS)
    skipped = {op: why for op in asked if (why := written(op))}
    rows = [row for op in asked if op not in skipped for row in rows_of(op, chosen.dtype)]
    print("\n".join(table(rows)))
    for op, why in skipped.items():
        print(f"skipped {op}: {why}")
    for r in rows:
        print(f"{r['op']} {r['direction']} {r['channels']}, each program:")
        for kernel, moved in r["launches"]:
            print("    " + kernel, ", ".join(f"{maps:.3g} {access}" for access, maps in moved.items()))
    found = [text for r in rows for text in problems(r)]
    print("\n".join(found) or "nothing wrong")
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
