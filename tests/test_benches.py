"""The benchmark harness works: every file is collected, one op runs on a tiny map."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mirnet_fast import backends

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.xdist_group("benches")  # one process runs them for all of the tests
TIMED = ("mirnet_fast", "eager NCHW", "eager channels_last")


def full_name(variant, direction="forward"):
    test = f"test_dau_attention[1x16x16x16-float32-channels_last-{direction}]"
    return f"benches/bench_dau_attention.py::{test} {variant}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(output, contents of the result file, entries of pytest-benchmark) of dau_attention on tiny maps.

    It is compared with an earlier run, in which each variant of the forward took 7 seconds.
    """
    if backends.pick("dau_attention", "cpu", torch.float32) == "reference":
        pytest.skip("no kernel to measure")
    folder = tmp_path_factory.mktemp("results")
    target, entries, earlier = (folder / name for name in ("new/tiny.json", "entries.json", "earlier.json"))
    numbers = ("min", "max", "mean", "median", "stddev", "iqr", "ops", "rounds", "iterations")
    stats = dict.fromkeys(numbers, 7) | {"outliers": "0;0"}
    before = [{"fullname": full_name(variant), "stats": stats} for variant in TIMED]
    earlier.write_text(json.dumps({"machine_info": {}, "benchmarks": before}))
    settings = {"TINY": "1", "ROUNDS": "3", "COMPILE": "0", "DEVICE": "cpu"}
    # The whole folder, so that a file that can't be imported fails the run.
    options = ["-p", "no:cacheprovider", "--results", target]
    options += [f"--benchmark-json={entries}", f"--benchmark-compare={earlier}"]
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "benches", "-q", "-k", "dau_attention", *options],
        cwd=ROOT,
        # Beside other tests it would not benchmark.
        env={k: v for k, v in os.environ.items() if k != "PYTEST_XDIST_WORKER"}
        | {f"MIRNET_BENCH_{name}": value for name, value in settings.items()},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout, json.loads(target.read_text()), json.loads(entries.read_text())["benchmarks"]


def test_result_file(run):
    _, results, _ = run
    assert results["machine"]["torch"] == torch.__version__
    forward, backward = results["rows"]
    assert (forward["direction"], backward["direction"]) == ("forward", "forward+backward")
    rivals = {"eager NCHW", "eager channels_last"}
    for row in results["rows"]:
        assert (row["op"], row["size"], row["rounds"]) == ("dau_attention", [1, 16, 16, 16], 3)
        assert set(row["ms"]) == rivals | {"mirnet_fast"} and set(row["ratio"]) == rivals
        for rival, ratio in row["ratio"].items():
            assert ratio == pytest.approx(row["ms"][rival] / row["ms"]["mirnet_fast"], rel=1e-2)
    # 4 maps of 4096 floats, and a product of 256 x 32 by 32 x 16.
    assert forward["floor_mb"] == pytest.approx(4 * 4096 * 4 / 1e6, rel=1e-3)
    assert forward["gflop"] == pytest.approx(2 * 256 * 32 * 16 / 1e9, rel=1e-3)
    seconds = forward["ms"]["mirnet_fast"] / 1e3
    assert forward["gb_per_s"] == pytest.approx(forward["floor_mb"] / 1e3 / seconds, rel=1e-2)
    assert forward["of_copy"] == pytest.approx(forward["gb_per_s"] / forward["copy_gb_per_s"], rel=1e-2)
    outside = seconds - forward["gemm_ms"] / 1e3
    if outside > seconds / 10:  # otherwise the rounding of the recorded times decides
        expected = forward["floor_mb"] / 1e3 / outside / forward["copy_gb_per_s"]
        assert forward["of_copy_outside_gemm"] == pytest.approx(expected, rel=5e-2)
    assert "gb_per_s" not in backward


def test_table_is_printed(run):
    output, results, _ = run
    lines = [line for line in output.splitlines() if line.startswith("dau_attention")]
    assert len(lines) == 2
    for line, row in zip(lines, results["rows"], strict=True):
        assert line.endswith("LOSES") == (min(row["ratio"].values()) < 1)


def test_every_variant_is_an_entry_of_its_case(run):
    _, results, entries = run
    for row in results["rows"]:
        case = f"1x16x16x16-float32-channels_last-{row['direction']}"
        ours = [entry for entry in entries if entry["group"] == f"dau_attention {case}"]
        assert [entry["name"] for entry in ours] == list(TIMED)
        for entry in ours:
            name = entry["name"]
            assert entry["fullname"] == full_name(name, row["direction"])
            assert entry["params"] == {"case": case, "variant": name}
            assert len(entry["stats"]["data"]) == 3
            assert 1e3 * entry["stats"]["median"] == pytest.approx(row["ms"][name], rel=1e-3)
            assert not {"ms", "ratio"} & set(entry["extra_info"])
        assert ours[0]["extra_info"]["backend"] == row["backend"]


def test_entries_are_compared_with_those_of_another_run(run):
    output, _, _ = run
    for variant in TIMED:
        now, before = re.findall(rf"^{variant} \((\S+)\) +(\S+)", output, re.MULTILINE)
        assert now[0] == "NOW" and before[0].endswith("earlier")
        assert float(before[1].replace(",", "")) in (7e6, 7e3)  # microseconds, or milliseconds


@pytest.fixture
def benches(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benches")


@pytest.fixture
def harness(benches):
    import harness

    return harness


@pytest.fixture
def rows(benches):
    import rows

    return rows


def row(**changes):
    base = {"op": "op", "size": [1, 2, 3, 4], "dtype": "float32", "direction": "forward", "spread": 0.01}
    return base | {"ms": {"mirnet_fast": 2.0, "other": 3.0}, "ratio": {"other": 1.5}} | changes


def test_losing_rows_are_marked(rows):
    lost = row(op="slow", ms={"mirnet_fast": 2.0, "other": 1.0}, ratio={"other": 0.5})
    _, won_line, lost_line = rows.table([lost, row()])
    assert won_line.startswith("op") and "1.50" in won_line and "LOSES" not in won_line
    assert lost_line.startswith("slow") and "0.50" in lost_line and lost_line.endswith("LOSES")


def test_errors_are_told_beside_the_table(rows):
    error = rows.error_row(
        "network_error", (1, 3, 8, 8), torch.float32, "forward", {"mirnet_fast": 1.23456e-7}
    )
    assert error["error"] == {"mirnet_fast": 1.23e-7}
    line = "network_error 1x3x8x8 float32: error against float64: mirnet_fast 1.2e-07"
    assert rows.table([error]) == [line]
    assert rows.table([error, row()])[-1] == line and len(rows.table([error, row()])) == 3


def test_missing_variants_and_memory_are_told(rows):
    lines = rows.table([row(missing={"torch.compile": "no compiler"}, peak_mb={"other": None})])
    assert lines[2:] == [
        "op 1x2x3x4 forward: no torch.compile: no compiler",
        "op 1x2x3x4 forward: peak MB above the weights: other killed",
    ]


def test_all_have_their_turn_in_every_round(harness, monkeypatch):
    monkeypatch.setattr(harness, "ROUNDS", 4)
    from gpu_script.steps.timing import Timer

    turns = []
    calls = {name: functools.partial(turns.append, name) for name in ("a", "b", "mirnet_fast", "copy")}
    times = harness.timed(Timer(), calls, {}, budget=1)
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys(calls, 4)
    rounds = [turns[4 * i : 4 * i + 4] for i in range(1, 5)]  # after one to warm up
    assert all(sorted(names) == sorted(calls) for names in rounds)
    assert {names[0] for names in rounds} == {"a", "b", "copy"}


def test_in_a_hurry(harness, monkeypatch):
    monkeypatch.setattr(harness, "QUICK", True)
    cases = [str(case) for case in harness._cases()]
    assert cases == [f"1x64x128x128-float32-channels_last-{way}" for way in ("forward", "forward+backward")]
    assert harness.streams([(64, 256), (256, 32)])["argvalues"] == [(1, 64, 128, 128)]
    from gpu_script.steps.timing import Timer

    calls = {"other": lambda: None, "mirnet_fast": lambda: None}
    monkeypatch.setattr(harness.measure, "interleave", lambda calls, *_: {name: [1.0] for name in calls})
    rounds = [len(harness.timed(Timer(), calls, {}, budget)["other"]) for budget in (1, 60)]
    assert rounds == [3, 6]  # a round takes two seconds


def test_make_bench_in_a_hurry():
    def asked(*arguments):
        made = subprocess.run(["make", "-n", "bench", *arguments], cwd=ROOT, capture_output=True, text=True)
        (line,) = [line for line in made.stdout.replace("\\\n", " ").splitlines() if "pytest benches" in line]
        return line.split()

    assert asked()[-2:] == ["pytest", "benches"] and asked()[0].endswith("python")
    quick = asked("QUICK=1")
    assert quick[0] == "MIRNET_BENCH_QUICK=1"
    assert quick[-4:] == ["-q", "--benchmark-quiet", "--results", "build/bench-quick.json"]


def test_a_row_of_a_single_round(rows):
    times = {"mirnet_fast": [2e-3], "other": [3e-3], "copy": [1e-3]}
    row = rows.make_row("op", (1, 2, 3, 4), torch.float32, "forward", times)
    assert (row["rounds"], row["spread"]) == (1, 0)
    assert (row["ms"], row["ratio"]) == ({"mirnet_fast": 2.0, "other": 3.0}, {"other": 1.5})


def test_a_wrong_answer_is_not_timed(harness):
    right = torch.ones(3)
    variants = {"eager": lambda: right, "mirnet_fast": lambda: right + 0.01}
    with pytest.raises(AssertionError, match=r"mirnet_fast is 1\.0e-02 away"):
        harness.check_agreement(variants, torch.float32)


def test_a_folder_beside_the_network_alone(benches, capsys):
    import folder

    folder.main(["--count", "3", "--size", "40", "30", "--rounds", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all("megapixels a second" in line for line in lines[:2])
    assert lines[2].startswith("share of the network's speed: ")
