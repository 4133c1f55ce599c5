"""Collects the rows of the benchmarks: --results FILE, row by row, and a table at the end of the run."""

from pathlib import Path

import harness
import pytest
import torch

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
    # Its table shows mirnet_fast alone; -v brings it back.
    config.option.benchmark_quiet = True


@pytest.fixture(autouse=True)
def same_values():
    """Every row draws the same inputs, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def record(request, benchmark):
    """Takes the finished row of a benchmark, also into the file: a whole run may take hours."""

    def take(row):
        benchmark.extra_info.update(row)
        rows = request.config.stash[ROWS]
        rows.append(row)
        if target := request.config.getoption("results"):
            target.write_text(harness.results_text(request.config.stash[MACHINE], rows))

    return take


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section("mirnet_fast against the others, medians of interleaved rounds")
    for line in harness.table(rows):
        terminalreporter.write_line(line, red=line.endswith("LOSES"))
    if target := config.getoption("results"):
        terminalreporter.write_line(f"written: {target}")
