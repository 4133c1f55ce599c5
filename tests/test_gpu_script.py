"""The GPU acceptance script, tried without one: a step that fails or hangs costs the others nothing."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .cases import exhaustive, first_of

ROOT = Path(__file__).parents[1]


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benches")
    import gpu

    return gpu


def step(gpu, name, code, limit=30, **options):
    return gpu.Step(name, [sys.executable, "-c", code], limit, **options)


ROW = {
    "op": "blur_pool",
    "size": [8, 64, 256, 256],
    "dtype": "float16",
    "layout": "channels_last",
    "direction": "forward",
    "backend": "triton",
    "rounds": 25,
    "ms": {"mirnet_fast": 1.0, "mirnet_fast cuda": 1.25, "eager channels_last": 4.0, "torch.compile": 1.5},
    "wall_ms": {
        "mirnet_fast": 1.2,
        "mirnet_fast cuda": 1.4,
        "eager channels_last": 4.1,
        "torch.compile": 1.6,
    },
    "ratio": {"mirnet_fast cuda": 1.25, "eager channels_last": 4.0, "torch.compile": 1.5},
    "spread": 0.01,
    "floor_mb": 84.0,
    "gb_per_s": 2700.0,
    "copy_gb_per_s": 3000.0,
    "of_copy": 0.9,
}


def test_steps_that_fail_or_hang_cost_the_others_nothing(gpu, tmp_path):
    run = gpu.Run(tmp_path / "new" / "out", 60, None)
    run.environment = {"gpu": "Some GPU", "L2 in MB": 50.0}
    asleep = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(99)'])"
    steps = [
        step(gpu, "good", "print('PASSED one'); print('PASSED two')"),
        step(gpu, "bad", "print('PASSED one'); print('FAILED two - why'); raise SystemExit(1)"),
        step(gpu, "crash", "import os; print('before', flush=True); os.abort()"),
        step(gpu, "hangs", f"print('PASSED one', flush=True); {asleep}", limit=1.5),
        step(gpu, "impossible", "", why_not="no such thing here"),
        step(
            gpu, "rows", f"print({json.dumps(ROW)!r}); print('PASSED a row', flush=True); {asleep}", limit=1.5
        ),
    ]
    start = time.monotonic()
    run.do(steps, 6)
    assert time.monotonic() - start < 20
    record = json.loads((tmp_path / "new" / "out" / "report.json").read_text())
    told = {s["name"]: (s["status"], s["counts"], s["failures"]) for s in record["steps"]}
    assert told["good"] == ("passed", {"PASSED": 2}, [])
    assert told["bad"] == ("failed", {"PASSED": 1, "FAILED": 1}, ["FAILED two - why"])
    assert told["crash"] == ("failed", {}, ["before"])
    assert told["hangs"] == ("cut off", {"PASSED": 1}, [])
    assert told["impossible"] == ("not run", {}, [])
    assert told["rows"][0] == "cut off" and record["rows"] == [ROW]
    assert json.loads((tmp_path / "new" / "out" / "results.json").read_text())["rows"] == [ROW]
    [target] = record["targets"]
    assert target["met"] and target["larger_than_l2"]
    text = (tmp_path / "new" / "out" / "report.txt").read_text()
    assert "not run  impossible" in text and "no such thing here" in text
    assert "90 % of copy (beyond L2)  4.00 x eager, 1.50 x torch.compile  met" in text
    assert any(line.split()[:2] == ["op", "size"] and "wall" in line for line in text.splitlines())
    chosen = json.loads((tmp_path / "new" / "out" / "preferences.json").read_text())
    assert chosen == {"Some GPU": {"blur_pool float16": "triton"}}
    assert len(list((tmp_path / "new" / "out").iterdir())) == 5


def test_nothing_outlives_the_deadline(gpu, tmp_path):
    run = gpu.Run(tmp_path, 2, None)
    start = time.monotonic()
    run.do([step(gpu, name, "import time; time.sleep(99)") for name in ("one", "two")], 1)
    assert time.monotonic() - start < 10
    one, two = run.steps
    assert one.status == "cut off"
    assert (two.status, two.why) == ("not run", "no time was left")


def test_missed_targets_are_said(gpu):
    for change in (
        {"of_copy": 0.89},
        {"ratio": {"eager channels_last": 2.9, "torch.compile": 2.0}},
        {"ratio": {}},
    ):
        [target] = gpu.targets([ROW | change], 50.0)
        assert not target["met"]
    # Within the cache the copy bandwidth of the memory is no measure.
    [target] = gpu.targets([ROW | {"of_copy": 0.8}], 100.0)
    assert target["met"] and not target["larger_than_l2"]
    assert gpu.targets([ROW | {"dtype": "bfloat16"}, ROW | {"direction": "forward+backward"}], 50.0) == []


def test_the_better_backend_counts(gpu):
    row = ROW | {
        "ms": ROW["ms"] | {"mirnet_fast cuda": 0.8},
        "of_copy": 0.75,
        "ratio": {"torch.compile": 1.5},
    }
    [target] = gpu.targets([row], 50.0)
    assert target["backend"] == "cuda"
    assert abs(target["of_copy"] - 0.9375) < 1e-9
    assert abs(target["times_compiled"] - 1.875) < 1e-9
    assert gpu.preferences([row, row | {"size": [1, 64, 9, 9]}]) == {"blur_pool float16": "cuda"}
    # Over all sizes together.
    assert gpu.preferences([row, ROW | {"ms": {"mirnet_fast": 9, "mirnet_fast cuda": 12}}]) == {
        "blur_pool float16": "triton"
    }
    assert gpu.preferences([ROW | {"ms": {"mirnet_fast": 9}}]) == {}


def test_outcomes_of_pytest_are_counted_once(gpu, tmp_path):
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('i', range(3))\n"
        "def test_pass(i): pass\n"
        "def test_fail(): assert 1 == 2\n"
        "def test_skip(): pytest.skip('a reason')\n"
    )
    one = gpu.Step("tests", gpu.pytest(tests, "-c", "/dev/null", "--rootdir", tmp_path), 60)
    run = gpu.Run(tmp_path / "out", 60, None)
    run.do([one], 1)
    assert one.counts == {"PASSED": 3, "FAILED": 1, "SKIPPED": 1}
    assert len(one.failures()) == 1 and "assert 1 == 2" in one.failures()[0]
    assert len(one.skips()) == 1 and "a reason" in one.skips()[0]


@pytest.mark.parametrize("what", first_of(["blur_pool", "network"]))
def test_without_pytest_the_benchmarks_still_run(what):
    code = (
        f"import sys; sys.modules['pytest'] = None; sys.argv[1:] = ['rows', {what!r}];"
        "import runpy; runpy.run_path('benches/gpu_steps.py', run_name='__main__')"
    )
    tiny = {"MIRNET_BENCH_TINY": "1", "MIRNET_BENCH_ROUNDS": "3", "MIRNET_BENCH_COMPILE": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        env={**os.environ, **tiny, "MIRNET_BENCH_DEVICE": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    directions = ["forward"] if what == "network" else ["forward", "forward+backward"]
    assert [(row["op"], row["direction"]) for row in rows] == [(what, direction) for direction in directions]


@exhaustive
def test_the_network_is_checked():
    """By the interpreter; the emulated GPU takes minutes."""
    code = (
        "import sys; sys.argv[1:] = ['network']; from tests import emulation;"
        "emulation.missing = lambda: 'not here'; import runpy;"
        "runpy.run_path('benches/gpu_steps.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = [f"PASSED triton network 8x8 torch.{dtype}" for dtype in ("float32", "float16")]
    assert done.stdout.splitlines() == passed


def test_the_networks_rows_are_of_no_single_backend(gpu):
    row = {name: value for name, value in ROW.items() if name not in ("backend", "layout")}
    assert gpu.preferences([row | {"op": "network"}]) == {}
    assert gpu.targets([row | {"op": "network"}], 50.0) == []


def python_of(folder, has_torch):
    """A `python3` that has torch or not, and writes down what else it is asked for."""
    path = folder / "python3"
    asked = folder / "asked"
    path.write_text(
        f'#!/bin/sh\ncase "$*" in *"import torch"*) exit {0 if has_torch else 1} ;; esac\n'
        f'echo "$@" >> {asked}\n[ "$1" != -m ]\n'
    )
    path.chmod(0o755)
    return path, asked


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize(("has_torch", "runs"), [(True, "benches/gpu.py"), (False, "-m venv {venv}")])
def test_make_gpu_takes_the_torch_that_is_there(tmp_path, has_torch, runs):
    path, asked = python_of(tmp_path, has_torch)
    venv = tmp_path / "none"
    command = ["make", "gpu", f"PYTHON={path}", f"VENV={venv}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode == 0) == has_torch
    assert asked.read_text().splitlines() == [runs.format(venv=venv)], done.stderr
    assert not venv.exists()
