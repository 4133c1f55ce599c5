"""Results as tables in Markdown."""

import re
from collections.abc import Callable, Iterable

from .results import NAMES, Machine, ways_in


def tables(machine: Machine) -> str:
    """What was measured on a machine; in bold the best of a row, of ops what is faster than mirnet_fast."""
    parts = [f"## {_text(machine.name)}", _source(machine)]
    timed = [*machine.of("network", "ms"), *machine.of("training", "ms")]
    memory = [*machine.of("network", "peak_mb"), *machine.of("training", "peak_mb")]
    groups: list[tuple[str, list[tuple[str, dict[str, float]]], Callable[[float], str]]] = [
        ("Seconds", timed, lambda ms: f"{ms / 1e3:#.3g}"),
        ("Peak memory above the weights, MB", memory, lambda mb: f"{mb:.0f}"),
        ("Error against the reference in float64", machine.of("network_error", "error"), "{:.1e}".format),
    ]
    for title, rows, written in groups:
        if rows:
            parts.append(f"### {title}\n\n{_table(rows, written)}")
    ops = machine.ops()
    for direction in dict.fromkeys(direction for _, direction, _ in ops):
        rows = [(name, numbers) for name, of, numbers in ops if of == direction]
        title = f"Ops, {direction}: time over that of mirnet_fast"
        parts.append(f"### {title}\n\n{_table(rows, '{:.2f}'.format, best=False)}")
    return "\n\n".join(parts)


def _text(name):
    """Of a name, which means nothing in Markdown then."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", name)


def _source(machine):
    return "; ".join(f"torch {torch}, commit {commit}" for torch, commit in sorted(machine.sources)) + "."


def _table(
    rows: Iterable[tuple[str, dict[str, float]]], written: Callable[[float], str], best: bool = True
) -> str:
    rows = list(rows)
    ways = ways_in(numbers for _, numbers in rows)
    lines = [["", *(NAMES.get(way, _text(way)) for way in ways)], ["---", *["---:"] * len(ways)]]
    for name, numbers in rows:
        least = min(numbers.values()) if best else None
        # A time over mirnet_fast's of less than 1: there it loses.
        marked = {w for w, number in numbers.items() if (number == least if best else number < 1)}
        cells = {w: f"**{written(n)}**" if w in marked else written(n) for w, n in numbers.items()}
        lines.append([name, *(cells.get(way, "") for way in ways)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
