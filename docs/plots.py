"""Draws the plots of the documents: speed and memory from benches/results, traffic from what PyTorch runs.

python docs/plots.py

Each SVG carries a digest of this file and of the numbers in it, so that a test can tell without drawing, and
with any matplotlib, whether it is out of date. Needs matplotlib (the extra `docs`).
"""

import hashlib
import json
from pathlib import Path

import torch

from mirnet_fast import profiling, reference
from mirnet_fast.engine import devices

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benches" / "results"
# As the result files call them: as the documents do, and a colour.
WAYS = {
    "mirnet_fast": ("mirnet_fast", "#e6550d"),
    "OpenVINO": ("OpenVINO", "#9ecae1"),
    "torch.compile": ("torch.compile", "#6baed6"),
    "ONNX Runtime": ("ONNX Runtime", "#3182bd"),
    "eager channels_last": ("PyTorch, channels_last", "#bdbdbd"),
    "eager NCHW": ("PyTorch, NCHW", "#737373"),
}
MACHINES = {"AVX-512": "epyc-2cores", "AVX2": "epyc-avx2-2cores"}
SIZES = ([1, 3, 128, 128], [4, 3, 128, 128], [1, 3, 256, 256], [1, 3, 512, 512])
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


def rows(machine):
    """The rows of a machine; where two files have the same, those of the file without a size in its name."""
    found = {}
    for name in (f"{machine}-512", machine):
        for row in json.loads((RESULTS / f"{name}-2026-11.json").read_text())["rows"]:
            key = (row["op"], str(row["size"]), row["dtype"], row["direction"], row.get("layout"))
            found[key] = row
    return list(found.values())


def network(machine, what):
    """[(size, {way: number})] of a field of the network's rows, in the order of SIZES."""
    by_size = {str(row["size"]): row.get(what) or {} for row in rows(machine) if row["op"] == "network"}
    return [("x".join(map(str, size)), by_size[str(size)]) for size in SIZES]


def ops():
    """[(op and size, {direction: {way: time over that of mirnet_fast}})], float32 in channels_last."""
    found = {}
    for row in rows(MACHINES["AVX-512"]):
        if row["op"] in FLOORS and (row["dtype"], row["layout"]) == ("float32", "channels_last"):
            name = f"{row['op']} {row['size'][1]} x {row['size'][2]}²"
            found.setdefault(name, {})[row["direction"]] = row["ratio"]
    return list(found.items())


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


def sources():
    """{name of a picture: the numbers in it}."""
    times = {name: network(machine, "ms") for name, machine in MACHINES.items()}
    return {
        "speed": times["AVX-512"],
        "networks": times,
        "memory": network(MACHINES["AVX-512"], "peak_mb"),
        "ops": ops(),
        "traffic": traffic(),
    }


def digests():
    """{name of a picture: what stands in it if it is up to date}."""
    code = Path(__file__).read_bytes()
    return {
        name: hashlib.sha256(code + json.dumps(numbers).encode()).hexdigest()
        for name, numbers in sources().items()
    }


def bars(axes, groups, ways, label, unit=""):
    """Horizontal bars: groups [(name, {way: number})], a bar for each way that has a number."""
    height = 0.8 / len(ways)
    for i, way in enumerate(ways):
        places = [g + height * i for g, (_, numbers) in enumerate(groups) if numbers.get(way) is not None]
        values = [numbers[way] for _, numbers in groups if numbers.get(way) is not None]
        name, colour = WAYS[way]
        drawn = axes.barh(places, values, 0.9 * height, color=colour, label=name)
        axes.bar_label(drawn, [f"{v:.3g}{unit}" for v in values], padding=2, fontsize=7)
    axes.set_yticks([g + 0.4 - height / 2 for g in range(len(groups))], [name for name, _ in groups])
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.01)
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)


def draw_speed(plt, times):
    figure, both = plt.subplots(1, 2, figsize=(9, 2.4), layout="constrained")
    for axes, (size, numbers) in zip(both, times[2:], strict=True):
        ways = [way for way in WAYS if way in numbers]
        values = [numbers[way] / 1e3 for way in ways]
        drawn = axes.barh([WAYS[w][0] for w in ways], values, color=[WAYS[w][1] for w in ways])
        axes.bar_label(drawn, [f"{value:.2f} s" for value in values], padding=2)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_title(f"MIRNet, {size}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_networks(plt, times):
    figure, both = plt.subplots(1, 2, figsize=(9, 6), layout="constrained")
    for axes, (name, groups) in zip(both, times.items(), strict=True):
        ratios = [
            (size, {w: t / numbers["mirnet_fast"] for w, t in numbers.items()}) for size, numbers in groups
        ]
        bars(axes, ratios, [*WAYS], "time over that of mirnet_fast")
        axes.set_title(f"two cores, {name}", fontsize=10)
    both[0].legend(fontsize=8)
    return figure


def draw_memory(plt, groups):
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    bars(axes, groups, [way for way in WAYS if way != "torch.compile"], "peak memory above the weights, MB")
    axes.legend(fontsize=8)
    return figure


def draw_ops(plt, groups):
    figure, both = plt.subplots(1, 2, figsize=(9, 9), layout="constrained", sharey=True)
    for axes, direction in zip(both, ("forward", "forward+backward"), strict=True):
        chosen = [(name, found[direction]) for name, found in groups]
        bars(
            axes, chosen, [w for w in WAYS if w in chosen[0][1]], "time over that of mirnet_fast, logarithmic"
        )
        axes.set_xscale("log")
        axes.axvline(1, color=WAYS["mirnet_fast"][1])
        axes.set_title(direction, fontsize=10)
    both[1].invert_yaxis()  # shared, and each has turned it
    both[0].legend(fontsize=8)
    return figure


def draw_traffic(plt, found):
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
        axes.barh(i + 0.4, FLOORS[op], 0.35, color=WAYS["mirnet_fast"][1], label="one kernel, at least")
        axes.text(FLOORS[op], i + 0.4, f" {FLOORS[op]:.3g}", va="center", fontsize=8)
    axes.set_yticks([i + 0.2 for i in range(len(found))], [*found])
    axes.invert_yaxis()
    axes.set_xlabel(f"read and written, in maps of {CHANNELS} channels at {SIDE} x {SIDE}")
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), fontsize=8, ncols=6, loc="outside lower center")
    return figure


def main():
    """Draws all of them."""
    import matplotlib

    matplotlib.use("svg")
    # Text stays text, and the same numbers give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "mirnet_fast", "font.size": 9})
    from matplotlib import pyplot as plt

    told = digests()
    for name, numbers in sources().items():
        figure, path = globals()[f"draw_{name}"](plt, numbers), HERE / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None, "Description": told[name]}, facecolor="white")
        print(f"{path} is drawn")


if __name__ == "__main__":
    main()
