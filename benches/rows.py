"""A row of the results: what it is made of, the file it goes to, the table that is printed."""

import json
import math
import statistics

FAST = "mirnet_fast"
# Timed in the same rounds as the variants, as yardsticks; they compute something else.
COPY, GEMM, SGEMM = "copy", "gemm", "sgemm"


def make_row(op, size, dtype, direction, times):
    """A result: the times, and how many times longer each variant takes than mirnet_fast.

    times: {name: [seconds of a round]} of the variants and the yardsticks.
    """
    seconds, ms = medians(times), milliseconds(times)
    return {
        "op": op,
        "size": list(size),
        "dtype": dtype_name(dtype),
        "direction": direction,
        "rounds": len(times[FAST]),
        "ms": ms,
        "ratio": {name: digits(seconds[name] / seconds[FAST]) for name in ms if name != FAST},
        "spread": _spread(times[FAST]),  # tells a quiet machine
    }


def error_row(op, size, dtype, direction, error):
    """A result that is not timed: {variant: error}."""
    return {
        "op": op,
        "size": list(size),
        "dtype": dtype_name(dtype),
        "direction": direction,
        "ms": {},
        "ratio": {},
        "error": {name: digits(value, 3) for name, value in error.items()},
    }


def medians(times):
    """{name: seconds}."""
    return {name: statistics.median(values) for name, values in times.items()}


def milliseconds(times):
    """{variant: median}, without the yardsticks."""
    return {
        name: digits(1e3 * value) for name, value in medians(times).items() if name not in (COPY, GEMM, SGEMM)
    }


def _spread(values):
    """Interquartile range over the median; 0 of a single value."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return digits((high - low) / middle)


def digits(value, digits=4):
    """The value to so many digits."""
    return float(f"{value:.{digits}g}")


def results_text(machine, rows):
    """The result file: what it was measured on, then one row a line, so that a diff shows rows."""
    lines = ",\n".join(f"  {json.dumps(row)}" for row in sorted(rows, key=_order))
    return f'{{\n"machine": {json.dumps(machine, indent=1)},\n"rows": [\n{lines}\n]\n}}\n'


def table(rows):
    """The rows as lines of text. `x NAME` is NAME's time over mirnet_fast's."""
    rows = sorted(rows, key=_order)
    rows, untimed = [row for row in rows if row["ms"]], [row for row in rows if not row["ms"]]
    rivals = list(dict.fromkeys(name for row in rows for name in row["ratio"]))
    # With a GPU `ms` is the GPU's time, `wall` the whole call's.
    wall = ["wall"] if any("wall_ms" in row for row in rows) else []
    header = ["op", "size", "dtype", "layout", "direction", "ms", *wall, *(f"x {name}" for name in rivals)]
    header += ["GB/s", "% copy", "% outside GEMM", "GFLOP/s", "done", "% sgemm", "spread", ""]
    lines = [header, *([*_cells(row, rivals, wall)] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [
        "  ".join(_align(cell, w, i) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in (lines if rows else [])
    ]
    for row in rows:
        label = f"{row['op']} {shape(row['size'])} {row['direction']}"
        for name, why in row.get("missing", {}).items():
            text.append(f"{label}: no {name}: {why}")
        if "peak_mb" in row:
            peaks = ", ".join(
                f"{name} {'killed' if mb is None else mb}" for name, mb in row["peak_mb"].items()
            )
            text.append(f"{label}: peak MB above the weights: {peaks}")
    for row in untimed:
        errors = ", ".join(f"{name} {error:.2g}" for name, error in row["error"].items())
        text.append(f"{row['op']} {shape(row['size'])} {row['dtype']}: error against float64: {errors}")
    return [line.rstrip() for line in text]


def _cells(row, rivals, wall):
    yield row["op"]
    yield shape(row["size"])
    yield row["dtype"]
    yield row.get("layout", "")
    yield row["direction"]
    yield f"{row['ms'][FAST]:.3g}"
    if wall:
        yield f"{row['wall_ms'][FAST]:.3g}" if "wall_ms" in row else "-"
    for name in rivals:
        yield f"{row['ratio'][name]:.2f}" if name in row["ratio"] else "-"
    yield f"{row['gb_per_s']:.1f}" if "gb_per_s" in row else "-"
    yield f"{100 * row['of_copy']:.0f}" if "of_copy" in row else "-"
    outside = row.get("of_copy_outside_gemm", "-")
    yield "< GEMM" if outside is None else outside if outside == "-" else f"{100 * outside:.0f}"
    for name in ("gflop_per_s", "done_gflop_per_s"):
        yield f"{row[name]:.0f}" if name in row else "-"
    yield f"{100 * row['of_sgemm']:.0f}" if "of_sgemm" in row else "-"
    yield f"{100 * row['spread']:.0f}%"
    yield "LOSES" if min(row["ratio"].values()) < 1 else ""


def _align(cell, width, column):
    return cell.ljust(width) if column < 5 else cell.rjust(width)


def _order(row):
    # By op, then the larger map first.
    return row["op"], -math.prod(row["size"]), row["dtype"], row.get("layout", ""), row["direction"]


def shape(size):
    return "x".join(str(n) for n in size)


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")
