"""Results as pictures. Needs matplotlib (the extra `report`), but to say what they would show."""

import hashlib
import json
from pathlib import Path
from typing import Any

from .results import FAST, NAMES, Machine, ways_in

COLOURS = {
    FAST: "#e6550d",
    "OpenVINO": "#9ecae1",
    "torch.compile": "#6baed6",
    "ONNX Runtime": "#3182bd",
    "eager channels_last": "#bdbdbd",
    "eager NCHW": "#737373",
}
_MORE = ("#31a354", "#756bb1", "#c49c94", "#dbdb8d")
_LARGEST = 2  # networks in the picture of speed


def numbers_of(machines: list[Machine]) -> dict[str, Any]:
    """{name of a picture: the numbers in it}, of those that there is something for."""
    main = machines[0]
    networks = {m.name: m.of("network", "ms") for m in machines if m.of("network", "ms")}
    errors = {m.name: m.of("network_error", "error") for m in machines if m.of("network_error", "error")}
    ops: dict[str, dict[str, dict[str, float]]] = {}
    for name, direction, numbers in main.ops():
        if "," in name:  # of another layout or dtype: in the tables alone
            continue
        ops.setdefault(name, {})[direction] = numbers
    directions = list(dict.fromkeys(direction for _, direction, _ in main.ops()))
    both = [
        (name, [of.get(d, {}) for d in directions]) for name, of in ops.items() if len(of) == len(directions)
    ]
    found = {
        "speed": main.of("network", "ms")[-_LARGEST:],
        "networks": networks,
        "memory": main.of("network", "peak_mb"),
        "error": errors,
        "ops": [directions, both] if both else [],
    }
    return {name: numbers for name, numbers in found.items() if numbers}


def digest(name: str, numbers: Any) -> str:
    """Stands in a picture that is up to date: of its numbers and of how they are drawn."""
    code = Path(__file__).read_bytes()
    return hashlib.sha256(code + json.dumps([name, numbers]).encode()).hexdigest()


def draw(numbers: dict[str, Any], folder: Path) -> list[Path]:
    """Draws all pictures as SVG files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    paths = []
    # Text stays text, and the same numbers give the same file.
    style = {"svg.fonttype": "none", "svg.hashsalt": "mirnet_fast", "font.size": 9}
    with matplotlib.rc_context(style):
        for name, content in numbers.items():
            figure = Figure(layout="constrained")
            FigureCanvasSVG(figure)
            _DRAWN[name](figure, content)
            path = folder / f"{name}.svg"
            told = {"Date": None, "Description": digest(name, content)}
            figure.savefig(path, metadata=told, facecolor="white")
            paths.append(path)
    return paths


def _colours(ways):
    more = iter(_MORE * len(ways))
    return {way: COLOURS.get(way) or next(more) for way in ways}


def _bars(axes, groups, ways, label, written="{:.3g}"):
    """Horizontal bars: groups [(name, {way: number})], a bar for each way that has a number."""
    height, colours = 0.8 / len(ways), _colours(ways)
    for i, way in enumerate(ways):
        places = [g + height * i for g, (_, numbers) in enumerate(groups) if way in numbers]
        values = [numbers[way] for _, numbers in groups if way in numbers]
        drawn = axes.barh(places, values, 0.9 * height, color=colours[way], label=NAMES.get(way, way))
        axes.bar_label(drawn, [written.format(value) for value in values], padding=2, fontsize=7)
    axes.set_yticks([g + 0.4 - height / 2 for g in range(len(groups))], [name for name, _ in groups])
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.01)
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)


def _height(groups, ways):
    return 1.2 + 0.16 * sum(len(numbers) for _, numbers in groups) + 0.1 * len(groups) + 0.02 * len(ways)


def _speed(figure, rows):
    figure.set_size_inches(9, 2.4)
    for axes, (name, numbers) in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        ways = ways_in([numbers])
        colours = _colours(ways)
        values = [numbers[way] / 1e3 for way in ways]
        drawn = axes.barh([NAMES.get(w, w) for w in ways], values, color=[colours[w] for w in ways])
        axes.bar_label(drawn, [f"{value:.2f} s" for value in values], padding=2)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_title(name.replace("network", "MIRNet"), fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)


def _side_by_side(figure, tables, label, change, log=False, written="{:.3g}"):
    ways = ways_in(numbers for rows in tables.values() for _, numbers in rows)
    figure.set_size_inches(9, max(_height(rows, ways) for rows in tables.values()))
    columns = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (machine, rows) in zip(columns, tables.items(), strict=True):
        _bars(axes, [(name, change(numbers)) for name, numbers in rows], ways, label, written)
        axes.set_title(machine, fontsize=10)
        if log:
            axes.set_xscale("log")
    columns[0].legend(fontsize=8)


def _networks(figure, tables):
    def ratios(numbers):
        return {way: number / numbers[FAST] for way, number in numbers.items()} if FAST in numbers else {}

    _side_by_side(figure, tables, "time over that of mirnet_fast", ratios)


def _memory(figure, rows):
    ways = ways_in(numbers for _, numbers in rows)
    figure.set_size_inches(9, _height(rows, ways))
    axes = figure.subplots()
    _bars(axes, rows, ways, "peak memory above the weights, MB", "{:.0f}")
    axes.legend(fontsize=8)


def _error(figure, tables):
    label = "error against the reference in float64, logarithmic"
    _side_by_side(figure, tables, label, lambda numbers: numbers, log=True, written="{:.1e}")


def _ops(figure, content):
    directions, both = content
    ways = ways_in(numbers for _, several in both for numbers in several)
    figure.set_size_inches(9, _height([(name, several[0]) for name, several in both], ways))
    columns = figure.subplots(1, len(directions), squeeze=False, sharey=True)[0]
    for i, (axes, direction) in enumerate(zip(columns, directions, strict=True)):
        rows = [(name, several[i]) for name, several in both]
        _bars(axes, rows, ways, "time over that of mirnet_fast, logarithmic")
        axes.set_xscale("log")
        axes.axvline(1, color=COLOURS[FAST])
        axes.set_title(direction, fontsize=10)
    if len(columns) % 2 == 0:
        columns[-1].invert_yaxis()  # shared, and each has turned it
    columns[0].legend(fontsize=8)


_DRAWN = {"speed": _speed, "networks": _networks, "memory": _memory, "error": _error, "ops": _ops}
