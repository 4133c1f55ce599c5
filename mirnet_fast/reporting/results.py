"""The result files of benches/, as benches/results/README.md describes them."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FAST = "mirnet_fast"
# As the files call the ways to run something: as people do. Others keep their names.
NAMES = {FAST: FAST, "eager NCHW": "PyTorch, NCHW", "eager channels_last": "PyTorch, channels_last"}
_ORDER = [FAST, "OpenVINO", "torch.compile", "ONNX Runtime", "eager channels_last", "eager NCHW"]
_ISAS = {"avx512": "AVX-512", "avx2": "AVX2", "base": "SSE2"}
_WHAT = {"network": "network", "network_error": "network", "training": "training step"}


class ResultsError(ValueError):
    """A file holds no results, or some that cannot be understood; the message names it."""


@dataclass
class Machine:
    """What was measured on a machine, with so many threads.

    Attributes:
        name: processor or GPU, instruction set, threads.
        rows: as in the files.
        sources: {(torch, commit)} of the runs.
    """

    name: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    sources: set[tuple[str, str]] = field(default_factory=set)

    def of(self, op: str, what: str) -> list[tuple[str, dict[str, float]]]:
        """[(name of a row, {way: number})] of an op's rows that have the field `what`, smallest map first."""
        rows = sorted((row for row in self.rows if row["op"] == op), key=_size)
        return [(row_name(row), _numbers(row[what])) for row in rows if row.get(what)]

    def ops(self) -> list[tuple[str, str, dict[str, float]]]:
        """[(name of a row, direction, {way: its time over that of mirnet_fast})] of single ops."""
        rows = (row for row in self.rows if "layout" in row and row.get("ratio"))
        ordered = sorted(rows, key=_size, reverse=True)
        ordered.sort(key=lambda row: (row["op"], row["layout"] != "channels_last", row["dtype"] != "float32"))
        return [(row_name(row), row["direction"], _numbers(row["ratio"])) for row in ordered]


def row_name(row: dict[str, Any]) -> str:
    """What a row is called in tables and plots."""
    size = "x".join(map(str, row["size"]))
    others = [row["dtype"]] if row["dtype"] != "float32" else []
    others += [row["layout"]] if row.get("layout", "channels_last") != "channels_last" else []
    return ", ".join([f"{_WHAT.get(row['op'], row['op'])} {size}", *others])


def ways_in(tables: Iterable[dict[str, float]]) -> list[str]:
    """All ways of these {way: number}, mirnet_fast first."""
    found = dict.fromkeys(way for numbers in tables for way in numbers)
    return [way for way in _ORDER if way in found] + [way for way in found if way not in _ORDER]


def read_results(paths: Iterable[str | Path]) -> list[Machine]:
    """[Machine] of the files, that with the most rows first.

    Where two files have the same row of a machine, that whose times differ less from round to round counts.

    Raises:
        ResultsError: a file cannot be read, or is none of results.
    """
    machines: dict[tuple[Any, ...], tuple[Machine, dict[tuple[Any, ...], dict[str, Any]]]] = {}
    for path in map(Path, paths):
        try:
            content = json.loads(path.read_bytes())
            told, rows = content["machine"], content["rows"]
            key = tuple(told[name] for name in ("cpu", "cpu_isa", "gpu", "threads"))
            machine, kept = machines.setdefault(key, (Machine(_machine_name(told)), {}))
            for row in rows:
                name = tuple(str(row.get(k)) for k in ("op", "size", "dtype", "direction", "layout"))
                better = name not in kept or row.get("spread", 0) < kept[name].get("spread", 0)
                if better:
                    row_name(row), _size(row), row["ms"], row["direction"]
                    kept[name] = row
            machine.sources.add((str(told["torch"]), str(told["commit"])))
        except OSError as error:
            raise ResultsError(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"{type(error).__name__}: {error}"
            raise ResultsError(f"{path} is no file of results as benches/ writes them ({message})") from error
    for machine, kept in machines.values():
        machine.rows = list(kept.values())
    return sorted((machine for machine, _ in machines.values()), key=lambda machine: -len(machine.rows))


def _machine_name(told):
    threads = f"{told['threads']} thread{'s' * (told['threads'] != 1)}"
    if told["gpu"]:
        return f"{told['gpu']}"
    return f"{told['cpu']}, {_ISAS.get(told['cpu_isa'], told['cpu_isa'])}, {threads}"


def _size(row):
    """To sort by: of maps with as many numbers, the one with more rows is larger."""
    return math.prod(row["size"]), row["size"][2]


def _numbers(table):
    return {way: float(number) for way, number in table.items() if number is not None}
