"""Collects the rows of the benchmarks: --results FILE, row by row, and a table at the end of the run."""

import copy
from pathlib import Path

import pytest
import torch
from rows import FAST, results_text, table

from mirnet_fast import measure

ROWS = pytest.StashKey[list]()
MACHINE = pytest.StashKey[dict]()


def pytest_addoption(parser):
    parser.getgroup("mirnet_fast").addoption(
        "--results",
        type=Path,
        metavar="FILE",
        help="write machine, versions, commit and rows to this JSON file",
    )


def pytest_configure(config):
    config.stash[ROWS] = []
    if target := config.getoption("results"):
        target.parent.mkdir(parents=True, exist_ok=True)
        # Once, before a file that the commit knows is written: that would make the tree dirty.
        config.stash[MACHINE] = measure.machine()


@pytest.fixture(autouse=True)
def same_values():
    """Every row draws the same inputs, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def benchmark(request, benchmark):
    """pytest-benchmark's, named as the entry of mirnet_fast in the group of its case."""
    op = request.node.name.partition("[")[0].removeprefix("test_")
    benchmark.group = f"{op} {benchmark.param}" if benchmark.param else op
    _name(benchmark, request.node, FAST)
    return benchmark


def _name(entry, node, variant):
    # The whole name is what --benchmark-compare finds an entry of another run by.
    entry.name, entry.fullname = variant, f"{node.nodeid} {variant}"
    entry.params = {"case": entry.param, "variant": variant}


@pytest.fixture
def keep(request):
    """Takes a finished row, also into the file: a whole run may take hours."""

    def take(row):
        rows = request.config.stash[ROWS]
        rows.append(row)
        if target := request.config.getoption("results"):
            target.write_text(results_text(request.config.stash[MACHINE], rows))

    return take


@pytest.fixture
def record(request, benchmark, keep):
    """Takes a finished row and its times."""

    def take(row, times):
        peaks = row.get("peak_mb", {})
        for variant in row["ms"]:
            entry = benchmark
            if variant != FAST:
                # pytest-benchmark times one callable a test; what had its turns with it has them here.
                entry = copy.copy(benchmark)
                entry.extra_info = {}
                _name(entry, request.node, variant)
                stats = entry._make_stats(iterations=1)
                for seconds in times[variant]:
                    stats.update(seconds)
            if variant in peaks:
                entry.extra_info["peak_mb"] = peaks[variant]
        others = ("ms", "wall_ms", "ratio", "peak_mb")  # of each variant, and so of its entry
        benchmark.extra_info |= {key: value for key, value in row.items() if key not in others}
        keep(row)

    return take


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section("mirnet_fast against the others, medians of interleaved rounds")
    for line in table(rows):
        terminalreporter.write_line(line, red=line.endswith("LOSES"))
    if target := config.getoption("results"):
        terminalreporter.write_line(f"written: {target}")
