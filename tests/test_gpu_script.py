"""The GPU acceptance script, tried without one: a step that fails or hangs costs the others nothing."""

import itertools
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
    """The package of the script, without what needs torch."""
    monkeypatch.syspath_prepend(ROOT / "benches")
    import gpu_script
    import gpu_script.plan
    import gpu_script.run

    return gpu_script


def step(gpu, name, code, limit=30, **options):
    return gpu.step.Step(name, [sys.executable, "-c", code], limit, **options)


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
    run = gpu.run.Run(tmp_path / "new" / "out", 60)
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
    run = gpu.run.Run(tmp_path, 2)
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
        [target] = gpu.targets.targets([ROW | change], 50.0)
        assert not target["met"]
    # Within the cache the copy bandwidth of the memory is no measure.
    [target] = gpu.targets.targets([ROW | {"of_copy": 0.8}], 100.0)
    assert target["met"] and not target["larger_than_l2"]
    others = [ROW | {"dtype": "bfloat16"}, ROW | {"direction": "forward+backward"}]
    assert gpu.targets.targets(others, 50.0) == []


def test_the_better_backend_counts(gpu):
    row = ROW | {
        "ms": ROW["ms"] | {"mirnet_fast cuda": 0.8},
        "of_copy": 0.75,
        "ratio": {"torch.compile": 1.5},
    }
    [target] = gpu.targets.targets([row], 50.0)
    assert target["backend"] == "cuda"
    assert abs(target["of_copy"] - 0.9375) < 1e-9
    assert abs(target["times_compiled"] - 1.875) < 1e-9
    assert gpu.preferences.preferences([row, row | {"size": [1, 64, 9, 9]}]) == {"blur_pool float16": "cuda"}
    # Over all sizes together.
    assert gpu.preferences.preferences([row, ROW | {"ms": {"mirnet_fast": 9, "mirnet_fast cuda": 12}}]) == {
        "blur_pool float16": "triton"
    }
    assert gpu.preferences.preferences([ROW | {"ms": {"mirnet_fast": 9}}]) == {}


def test_outcomes_of_pytest_are_counted_once(gpu, tmp_path):
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('i', range(3))\n"
        "def test_pass(i): pass\n"
        "def test_fail(): assert 1 == 2\n"
        "def test_skip(): pytest.skip('a reason')\n"
    )
    one = gpu.step.Step("tests", gpu.plan.pytest(tests, "-c", "/dev/null", "--rootdir", tmp_path), 60)
    run = gpu.run.Run(tmp_path / "out", 60)
    run.do([one], 1)
    assert one.counts == {"PASSED": 3, "FAILED": 1, "SKIPPED": 1}
    assert len(one.failures()) == 1 and "assert 1 == 2" in one.failures()[0]
    assert len(one.skips()) == 1 and "a reason" in one.skips()[0]


CASES = """
import json, os, sys, time
done = json.loads(os.environ["MIRNET_GPU_SKIP"])
print("process", done, flush=True)
for name in ("one", "two", "three", "four"):
    if name in done:
        continue
    print("BEGAN", name, flush=True)
    if name == "two":
        os.abort()
    if name == "three":
        print("FAILED three - what breaks the context", "ENDED three", sep="\\n", flush=True)
        os._exit(75)
    print("ENDED", name, flush=True)
    print("PASSED", name, flush=True)
"""


def test_a_step_goes_on_after_a_case_that_ends_its_process(gpu, tmp_path):
    run, one = gpu.run.Run(tmp_path, 60), step(gpu, "cases", CASES)
    run.do([one], 1)
    processes = [line for line in one.output.splitlines() if line.startswith("process")]
    assert processes == ["process []", "process ['one', 'two']", "process ['one', 'two', 'three']"]
    assert one.status == "failed" and one.counts == {"PASSED": 2, "FAILED": 2}
    assert one.failures() == ["FAILED two - exit status -6 in it", "FAILED three - what breaks the context"]


def test_a_step_that_never_gets_to_a_case_is_not_tried_for_ever(gpu, tmp_path):
    run, one = gpu.run.Run(tmp_path, 60), step(gpu, "cases", "print('process'); raise SystemExit(75)")
    run.do([one], 1)
    assert one.status == "failed" and one.output.count("process") <= 2


def test_the_case_that_took_too_long_is_named(gpu, tmp_path):
    code = "import time; print('BEGAN it', flush=True); time.sleep(99)"
    run, one = gpu.run.Run(tmp_path, 60), step(gpu, "hangs", code, limit=1)
    run.do([one], 1)
    assert one.status == "cut off" and one.why.endswith("in it")


BUSY = "import time\nfor _ in range({}):\n time.sleep(0.02)\n print('at', time.monotonic(), flush=True)\n"
MEASURES = (
    "import sys, time; print('READY', flush=True); sys.stdin.readline(); print('from', time.monotonic(),"
    " flush=True); time.sleep(0.3); print('to', time.monotonic(), flush=True)"
)


def test_who_measures_is_alone(gpu, tmp_path):
    run = gpu.run.Run(tmp_path, 60)
    steps = [
        step(gpu, "busy", BUSY.format(60)),
        step(gpu, "first", MEASURES, alone=5),
        step(gpu, "second", MEASURES, alone=5),
        step(gpu, "too long", MEASURES, alone=0.2),
    ]
    run.do(steps, 4)
    assert [s.status for s in steps] == ["passed", "passed", "passed", "cut off"]
    told = [[float(line.split()[1]) for line in s.output.splitlines() if " " in line] for s in steps]
    busy, first, second, cut = told
    spans = sorted([first, second, [cut[0], cut[0] + 0.1]])
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert not any(begin < time < end for begin, end in spans for time in busy)
    assert len(busy) == 60
    # Its limit is on what it ran, not on what it was stopped for.
    assert 0.3 <= steps[1].alone_seconds < steps[0].seconds


def test_who_is_killed_keeps_what_there_was(gpu, tmp_path):
    code = (
        "import sys; from pathlib import Path; row, folder = sys.argv[1:];"
        "from gpu_script.run import Run; from gpu_script.step import Step;"
        "run = Run(Path(folder), 60);"
        "code = f'import time; print({row!r}, flush=True); time.sleep(20)';"
        "run.do([Step('rows', [sys.executable, '-c', code], 60)], 1)"
    )
    command = [sys.executable, "-c", code, json.dumps(ROW), str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT / "benches")
    target = tmp_path / "results.json"
    deadline = time.monotonic() + 30
    while not target.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert json.loads(target.read_text())["rows"] == [ROW]
    assert "running  rows" in (tmp_path / "report.txt").read_text()


def test_the_plan_fits_the_slot(gpu, tmp_path):
    run = gpu.run.Run(tmp_path, 540)
    run.environment = {"gpu": "Some GPU", "compute-sanitizer": "there"}
    steps = gpu.plan.steps(run)
    names = [s.name for s in steps]
    assert len(set(names)) == len(names)
    # By value: right first, then the network's times, tests and sanitizer last.
    order = ["once triton", "network triton float16", "times", "compiled max-autotune 8x3x256x256", "profile"]
    order += ["convolutions", "rows blur_pool", "tests of the GPU, blur_pool", "check blur_pool"]
    order += ["tests residual_up_tail Cuda", "compute-sanitizer memcheck triton"]
    assert order == sorted(order, key=names.index)
    # What measures may take all its time, and two and a half minutes are left for all else beside it.
    alone = sum(s.limit_alone or 0 for s in steps)
    assert alone + 150 <= 540
    folders = [s.env["TORCHINDUCTOR_CACHE_DIR"] for s in steps if "TORCHINDUCTOR_CACHE_DIR" in s.env]
    assert len(set(folders)) == len(folders)


def test_convolutions_are_chosen_by_size(gpu):
    row = {"op": "conv3x3", "size": [2, 64, 8, 4], "dtype": "float16", "direction": "in the network"}
    row |= {"outputs": 128, "ratio": {"cudnn": 2.0}}
    rows = [row | {"ms": {"mirnet_fast": 1.0, "cudnn": 2.0}}]
    rows.append(row | {"size": [2, 64, 4, 4], "ms": {"mirnet_fast": 3.0, "cudnn": 2.0}})
    assert gpu.preferences.preferences(rows) == {"conv3x3 float16 64 128": {"64": "triton", "32": "cudnn"}}
    assert gpu.targets.targets(rows, 50.0) == gpu.targets.network_targets(rows) == []


def test_targets_of_the_network(gpu):
    row = {"op": "network", "size": [1, 3, 500, 1000], "dtype": "float16", "direction": "forward"}
    first = row | {"ms": {"mirnet_fast": 1.25, "mirnet_fast triton": 1.0, "eager channels_last": 3.5}}
    first["peak_mb"] = {"mirnet_fast": 300, "eager channels_last": 900}
    modes = [
        row | {"ms": {"mirnet_fast triton": 1.0, "mirnet_fast": 2.0, f"torch.compile {mode}": ms}}
        for mode, ms in (("reduce-overhead", 2.0), ("max-autotune", 1.6))
    ]
    [target] = gpu.targets.network_targets([first, *modes])
    assert target["times_eager"] == 3.5 and target["times_compiled"] == 1.6
    assert target["gb_per_megapixel"] == 0.6 and target["met"]
    for changed in ({"peak_mb": {"mirnet_fast": 400}}, {"peak_mb": {}}, {"ms": {"mirnet_fast": 1.0}}):
        [target] = gpu.targets.network_targets([first | changed, *modes])
        assert not target["met"]
    [target] = gpu.targets.network_targets([first])
    assert not target["met"]  # nobody compiled
    step = {"op": "training", "size": [8, 3, 128, 128], "dtype": "bfloat16", "direction": "step"}
    step |= {"ms": {"mirnet_fast": 1.0, "eager channels_last": 2.0, "torch.compile": 1.2}}
    peaks = {"mirnet_fast": 50, "eager channels_last": 110, "torch.compile": 100}
    [target] = gpu.targets.network_targets([step | {"peak_mb": peaks}])
    assert target["of_the_least_memory_of_others"] == 0.5 and target["met"]
    [target] = gpu.targets.network_targets([step | {"peak_mb": peaks | {"torch.compile": 80}}])
    assert not target["met"]


def run_step(code, *arguments):
    """gpu_steps.py with these arguments, after some code, on tiny maps; what it printed."""
    code += (
        f"; import sys; sys.argv[1:] = {list(arguments)!r}; import runpy;"
        "runpy.run_path('benches/gpu_steps.py', run_name='__main__')"
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
    return done.stdout.splitlines()


@pytest.mark.parametrize("what", first_of(["network", "blur_pool"]))
def test_without_pytest_the_benchmarks_still_run(what):
    arguments = ["times"] if what == "network" else ["rows", what]
    lines = run_step("import sys; sys.modules['pytest'] = None", *arguments)
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    directions = ["forward"] if what == "network" else ["forward", "forward+backward"]
    assert [(row["op"], row["direction"]) for row in rows] == [(what, direction) for direction in directions]


@exhaustive
def test_the_network_is_checked():
    lines = run_step("pass", "network", "triton", "float32")
    plans = [f"PASSED triton network float32, plan, convolutions by {by}" for by in ("triton", "cudnn")]
    assert [line for line in lines if line.startswith(("PASSED", "FAILED", "SKIPPED"))] == [
        *plans,
        "PASSED triton network float32, with gradients",
    ]


@exhaustive
@pytest.mark.parametrize(
    "arguments", ["profile", "convolutions", "precision", "training", "training compiled"]
)
def test_what_is_measured_alone(arguments):
    lines = run_step("pass", *arguments.split())
    assert "READY" in lines
    assert any(line.startswith(('{"op"', '{"fact"')) for line in lines)
    assert not any(line.startswith(("FAILED", "SKIPPED")) for line in lines)


STAND_ALONE = """
import os, sys, time
from gpu_script.steps.cases import Case, run_cases

def fails():
    raise ValueError("what is wrong")

cases = [("good", lambda: print("said")), ("bad", fails), ("crash", os.abort)]
cases += [("hang", lambda: time.sleep(60)), ("last", lambda: None)]
run_cases([Case(*case) for case in cases], seconds=3)
"""


@exhaustive
def test_cases_stand_alone(gpu, tmp_path):
    run = gpu.run.Run(tmp_path, 120)
    one = step(gpu, "cases", STAND_ALONE, limit=100, env={"PYTHONPATH": f"{ROOT}:{ROOT / 'benches'}"})
    run.do([one], 1)
    assert one.counts == {"PASSED": 2, "FAILED": 3}
    assert "in fails" in one.output and "Timeout (0:00:03)!" in one.output
    assert one.failures() == [
        "FAILED bad - ValueError: what is wrong",
        "FAILED crash - exit status -6 in it",
        "FAILED hang - exit status 1 in it",
    ]


def test_the_networks_rows_are_of_no_single_backend(gpu):
    row = {name: value for name, value in ROW.items() if name not in ("backend", "layout")}
    assert gpu.preferences.preferences([row | {"op": "network"}]) == {}
    assert gpu.targets.targets([row | {"op": "network"}], 50.0) == []


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
