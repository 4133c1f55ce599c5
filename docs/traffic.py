"""Draws traffic.svg: what PyTorch's operators move for each op, and what one kernel has to.

python docs/traffic.py

The SVG carries a digest of this file and of the numbers in it, so that a test can tell without drawing, and
with any matplotlib, whether it is out of date. Needs matplotlib (the extra `docs`). The plots of what was
measured are drawn by `mirnet-fast report`.
"""

import hashlib
import json
from pathlib import Path

import torch

from mirnet_fast import profiling, reference
from mirnet_fast.engine import devices

PICTURE = Path(__file__).with_suffix(".svg")
OURS = "#e6550d"
SIDE, CHANNELS = 256, 64
# What an op has to move at least, in maps of 64 channels at 256 x 256: each input once, twice where a global
# mean has to be known first, each output once.
FLOORS = {
    "blur_pool": 1 + 1 / 4,
    "skff_select": 2 * 3 + 1,
    "dau_attention": 2 + 1 + 1,
    "residual_down_tail": 2 + 1 / 2,
    "residual_up_tail": 2 + 1 / 2 + 1,
}


def traffic():
    """{op: [(operator of PyTorch, maps that it reads and writes)]}, of at least a tenth of a map."""
    c, map_bytes = CHANNELS, 4 * CHANNELS * SIDE**2

    def tensor(*shape):
        return torch.empty(shape, device="meta")

    large, half = tensor(1, c, SIDE, SIDE), tensor(1, 2 * c, SIDE // 2, SIDE // 2)
    wide, one = tensor(1, 2 * c, SIDE, SIDE), tensor(1)
    to, back, few = tensor(2 * c, c, 1, 1), tensor(c, 2 * c, 1, 1), tensor(c // 8, c, 1, 1)
    many = tensor(c, c // 8, 1, 1)
    calls = {
        "blur_pool": (large,),
        "skff_select": (
            [large.clone() for _ in range(3)],
            few,
            None,
            one,
            [many.clone() for _ in range(3)],
            [],
        ),
        "dau_attention": (large, large.clone(), tensor(1, 2, 5, 5), few, None, many, None, back, None),
        "residual_down_tail": (large, large.clone(), one, to, None, to.clone(), None),
        "residual_up_tail": (wide, half, one, back, None, back.clone(), None),
    }
    device, found = devices.published("H200", torch.float32), {}
    for op, arguments in calls.items():
        counted = profiling._counted(
            lambda op=op, given=arguments: getattr(reference.ops, op)(*given), device
        )
        maps = [
            (name.removeprefix("aten::"), round(row.nbytes / map_bytes, 2)) for name, row in counted.items()
        ]
        found[op] = sorted([(n, m) for n, m in maps if m >= 0.1], key=lambda pair: -pair[1])
    return found


def draw(plt, found):
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    colours = plt.get_cmap("Set3").colors
    names = list(dict.fromkeys(name for parts in found.values() for name, _ in parts))
    for i, (op, parts) in enumerate(found.items()):
        left = 0
        for name, maps in parts:
            colour = colours[names.index(name)]
            axes.barh(i, maps, 0.4, left, color=colour, edgecolor="white", label=name)
            left += maps
        axes.text(left, i, f" {left:.3g}", va="center", fontsize=8)
        axes.barh(i + 0.4, FLOORS[op], 0.35, color=OURS, label="one kernel, at least")
        axes.text(FLOORS[op], i + 0.4, f" {FLOORS[op]:.3g}", va="center", fontsize=8)
    axes.set_yticks([i + 0.2 for i in range(len(found))], [*found])
    axes.invert_yaxis()
    axes.set_xlabel(f"read and written, in maps of {CHANNELS} channels at {SIDE} x {SIDE}")
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), fontsize=8, ncols=6, loc="outside lower center")
    return figure


def digest():
    """What stands in the picture if it is up to date."""
    return hashlib.sha256(Path(__file__).read_bytes() + json.dumps(traffic()).encode()).hexdigest()


def main():
    import matplotlib

    matplotlib.use("svg")
    # Text stays text, and the same numbers give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "mirnet_fast", "font.size": 9})
    from matplotlib import pyplot as plt

    draw(plt, traffic()).savefig(PICTURE, metadata={"Date": None, "Description": digest()}, facecolor="white")
    print(f"{PICTURE} is drawn")


if __name__ == "__main__":
    main()
