"""The report of result files: which rows count, tables, pictures, and what is no result."""

import importlib.util
import json
import re
import sys

import pytest

from mirnet_fast.reporting import ResultsError, digests, page_text, read_results, write_report

from ..cases import exhaustive
from ..cli.common import run

MACHINE = {
    "cpu": "Some | CPU",
    "cpu_isa": "avx2",
    "cores": 2,
    "threads": 2,
    "gpu": None,
    "torch": "2.13.0",
    "commit": "abcdef0",
}
ROW = {"dtype": "float32", "direction": "forward", "spread": 0.1}
NETWORK = ROW | {
    "op": "network",
    "size": [1, 3, 64, 64],
    "ms": {"mirnet_fast": 2000.0, "eager NCHW": 5000.0, "something else": 1500.0},
    "ratio": {"eager NCHW": 2.5, "something else": 0.75},
    "peak_mb": {"mirnet_fast": 10, "eager NCHW": 20, "something else": None},
}
ERROR = ROW | {
    "op": "network_error",
    "size": [1, 3, 64, 64],
    "ms": {},
    "ratio": {},
    "error": {"eager NCHW": 2e-7, "mirnet_fast": 1e-7},
}
OPS = [
    ROW
    | {
        "op": "blur_pool",
        "size": [1, 64, 8, 8],
        "layout": "channels_last",
        "direction": direction,
        "ms": {"mirnet_fast": 1.0, "torch.compile": 0.5},
        "ratio": {"torch.compile": 0.5},
    }
    for direction in ("forward", "forward+backward")
]
needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib, of the extra `report`"
)


@pytest.fixture
def results(tmp_path):
    def make(*rows, name="a", **machine):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"machine": MACHINE | machine, "rows": rows}))
        return path

    return make


def rows_of(text, heading):
    """[[cell]] below a heading, in Markdown."""
    part = text.partition(f"### {heading}\n")[2].strip().partition("\n\n")[0]
    return [re.split(r" ?\| ?", line.strip("|")) for line in part.splitlines()]


def test_tables(results):
    machines = read_results([results(NETWORK, ERROR, *OPS)])
    text = page_text(machines)
    header, _, row = rows_of(text, "Seconds")
    assert [cell.strip() for cell in header] == ["", "mirnet_fast", "PyTorch, NCHW", "something else"]
    assert [cell.strip() for cell in row] == ["network 1x3x64x64", "2.00", "5.00", "**1.50**"]
    [_, _, row] = rows_of(text, "Peak memory above the weights, MB")
    assert [cell.strip() for cell in row] == ["network 1x3x64x64", "**10**", "20"]
    [_, _, row] = rows_of(text, "Error against the reference in float64")
    assert [cell.strip() for cell in row] == ["network 1x3x64x64", "**1.0e-07**", "2.0e-07"]
    [_, _, row] = rows_of(text, "Ops, forward: time over that of mirnet_fast")
    assert [cell.strip() for cell in row] == ["blur_pool 1x64x8x8", "**0.50**"]
    assert "Some \\| CPU, AVX2, 2 threads" in text and "torch 2.13.0, commit abcdef0." in text
    assert set(digests(machines)) == {"speed", "networks", "memory", "error", "ops"}


def test_the_quieter_of_two_rows_counts(results):
    loud = NETWORK | {"spread": 0.5, "ms": {"mirnet_fast": 9000.0}}
    paths = [results(loud, name="a", commit="1"), results(NETWORK, name="b", commit="2")]
    for order in (paths, paths[::-1]):
        [machine] = read_results(order)
        assert machine.of("network", "ms")[0][1]["mirnet_fast"] == 2000
        assert len(machine.sources) == 2


def test_machines_are_kept_apart_and_the_one_with_most_rows_is_first(results):
    few, many = results(NETWORK, name="a", threads=1), results(NETWORK, ERROR, name="b")
    gpu = results(NETWORK, name="c", gpu="Some GPU")
    names = [machine.name for machine in read_results([few, many, gpu])]
    assert names == ["Some | CPU, AVX2, 2 threads", "Some | CPU, AVX2, 1 thread", "Some GPU"]


def test_a_picture_knows_whether_it_is_up_to_date(results):
    before = digests(read_results([results(NETWORK)]))
    again = digests(read_results([results(NETWORK)]))
    other = digests(read_results([results(NETWORK | {"ms": {"mirnet_fast": 1.0}})]))
    assert before == again and before["speed"] != other["speed"] and before["memory"] == other["memory"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read"),
        (b"\xff", "is no file of results"),
        (b"[]", "is no file of results"),
        (b'{"machine": {}, "rows": []}', "is no file of results"),
        (json.dumps({"machine": MACHINE, "rows": [{"op": "network"}]}).encode(), "is no file of results"),
        (json.dumps({"machine": MACHINE, "rows": []}).encode(), "no results to report"),
    ],
)
def test_what_is_no_result(tmp_path, content, told):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    result = run("report", path, "--out", tmp_path / "out")
    assert result.exit_code == 1 and told in result.output and "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_it_says_what_to_install(results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("report", results(NETWORK), "--out", tmp_path / "out")
    assert result.exit_code == 1 and "pip install 'mirnet-fast[report]'" in result.output


@exhaustive
@needs_matplotlib
@pytest.mark.parametrize("rows", [[NETWORK, ERROR, *OPS], [NETWORK], [ERROR], OPS[:1]])
def test_pictures(results, tmp_path, rows):
    path = results(*rows)
    result = run("report", path, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    machines = read_results([path])
    told = digests(machines)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"report.md", *(f"{name}.svg" for name in told)}
    drawn = {name: (tmp_path / "out" / f"{name}.svg").read_text() for name in told}
    for name, text in drawn.items():
        assert told[name] in text and "</svg>" in text
        assert "Date" not in text and "mirnet_fast" in text
    write_report(machines, tmp_path / "out")
    assert drawn == {name: (tmp_path / "out" / f"{name}.svg").read_text() for name in told}


def test_nothing_at_all():
    with pytest.raises(ResultsError, match="no results"):
        write_report([], "out")
