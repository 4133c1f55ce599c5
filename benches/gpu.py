"""Is it right and fast on this GPU? Tests, then benchmarks, in minutes: python benches/gpu.py [FOLDER]

Needs torch, Triton and an NVIDIA GPU; no network and nothing installed: it runs in place. With nvcc
the CUDA kernels are built for this GPU first, where they are not there yet. pytest adds the tests to
the checks, compute-sanitizer its own. FOLDER, build/gpu by default, gets report.txt (what ran, what
did not and why, the table), report.json (the same and every row), results.json (the rows, as
benches/results/ keeps them), preferences.json (which backend was faster, as mirnet_fast/ ships it)
and log.txt (all output).

Every step is a process of its own with a limit of its own: one that fails or hangs costs the others
nothing. Compiling comes first, everything side by side, along with the tests; then the benchmarks,
alone on the GPU. The report is rewritten after every step. Without a GPU all this is only tried,
on tiny maps, by the interpreter and the emulated GPU of the tests.
"""

import argparse
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OPS = ("blur_pool", "skff_select", "dau_attention", "residual_down_tail", "residual_up_tail")
DTYPES = ("float16", "float32", "bfloat16")


class Step:
    """A command, its limit in seconds, and what became of it."""

    def __init__(self, name, command, limit, env=None, why_not=None):
        self.name, self.command, self.limit, self.env = name, [str(c) for c in command], limit, env or {}
        self.status, self.why, self.seconds = ("not run", why_not, 0) if why_not else ("waiting", None, 0)
        self.process = self.output = self.started = None

    def start(self, folder, base):
        self.path = folder / f"{self.name.replace('/', '-').replace(' ', '-')}.log"
        with self.path.open("w") as file:
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env={**base, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started, self.status = time.monotonic(), "running"

    def look(self, deadline):
        """Whether it has ended; past its limit or the deadline it is made to."""
        self.seconds = time.monotonic() - self.started
        code = self.process.poll()
        if code is None and self.seconds < self.limit and time.monotonic() < deadline:
            return False
        if code is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.status, self.why = "cut off", f"after {self.seconds:.0f} s"
        else:
            self.status = "passed" if code == 0 else "failed"
            self.why = None if code == 0 else f"exit status {code}"
        self.output = self.path.read_text(errors="replace")
        return True

    @property
    def counts(self):
        """{outcome: how many} of the tests or cases that the output names."""
        text = self.output or ""
        # pytest names the test first, and the failed ones once more at the end.
        start = r"^\S+::.* " if re.search(r"^\S+::", text, re.M) else "^"
        found = re.findall(start + r"(PASSED|FAILED|ERROR|SKIPPED)\b", text, re.M)
        return {outcome: found.count(outcome) for outcome in dict.fromkeys(found)}

    def failures(self):
        lines = re.findall(r"^(?:FAILED|ERROR) .*$", self.output or "", re.M)
        if self.status == "failed" and not lines:
            lines = (self.output or "").strip().splitlines()[-3:]
        return [line[:400] for line in dict.fromkeys(lines)]

    def skips(self):
        return list(dict.fromkeys(re.findall(r"^SKIPPED .*$", self.output or "", re.M)))

    def rows(self):
        return [json.loads(line) for line in (self.output or "").splitlines() if line.startswith('{"op"')]

    def summary(self):
        return {
            "name": self.name,
            "status": self.status,
            "why": self.why,
            "seconds": round(self.seconds, 1),
            "counts": self.counts,
            "failures": self.failures(),
            "skipped": self.skips(),
        }


class Run:
    """The steps, their report, and the time that they may take."""

    def __init__(self, folder, seconds, commit):
        self.folder, self.commit = folder, commit
        self.begin = time.monotonic()
        self.deadline = self.begin + seconds
        self.steps, self.environment = [], {}
        folder.mkdir(parents=True, exist_ok=True)
        self.scratch = Path(tempfile.mkdtemp(prefix="mirnet-gpu-"))
        self.base = {
            k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "MIRNET_FAST_BACKEND")
        }
        self.base |= {
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "400",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        # What is compiled while the tests run is found again when the clock does.
        self.base |= {
            "TRITON_CACHE_DIR": str(self.scratch / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.scratch / "inductor"),
            "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
            "TORCHINDUCTOR_AUTOGRAD_CACHE": "1",
        }

    @property
    def left(self):
        return self.deadline - time.monotonic()

    def do(self, steps, workers, deadline=None):
        """Run steps, so many at a time, until they or the time end."""
        steps = list(steps)
        deadline = min(deadline or self.deadline, self.deadline)
        self.steps += steps
        waiting, running = [s for s in steps if s.status == "waiting"], []
        while waiting or running:
            while waiting and len(running) < workers and time.monotonic() < deadline:
                running.append(waiting.pop(0))
                running[-1].start(self.scratch, self.base)
            time.sleep(0.1)
            ended = [s for s in running if s.look(deadline)]
            running = [s for s in running if s not in ended]
            if time.monotonic() >= deadline:
                for step in waiting:
                    step.status, step.why = "not run", "no time was left"
                waiting = []
            if ended:
                self.report()

    def report(self):
        rows = [row for step in self.steps for row in step.rows()]
        record = {
            "environment": self.environment,
            "seconds": round(time.monotonic() - self.begin, 1),
            "steps": [step.summary() for step in self.steps],
            "targets": targets(rows, self.environment.get("L2 in MB")),
            "rows": rows,
        }
        (self.folder / "report.json").write_text(json.dumps(record, indent=1) + "\n")
        (self.folder / "report.txt").write_text("\n".join(lines(record)) + "\n")
        log = [f"=== {s.name}: {' '.join(s.command)}\n{s.output}" for s in self.steps if s.output]
        (self.folder / "log.txt").write_text("\n".join(log)[-8_000_000:])
        if rows:
            chosen = {self.environment.get("gpu"): preferences(rows)}
            (self.folder / "preferences.json").write_text(json.dumps(chosen, indent=1, sort_keys=True) + "\n")
            machine = json.dumps(self.environment, indent=1)
            text = ",\n".join(f"  {json.dumps(row)}" for row in rows)
            (self.folder / "results.json").write_text(
                f'{{\n"machine": {machine},\n"rows": [\n{text}\n]\n}}\n'
            )
        return record


def by_backend(row):
    """{backend: its milliseconds} of a row."""
    others = {
        n.removeprefix("mirnet_fast "): ms for n, ms in row["ms"].items() if n.startswith("mirnet_fast ")
    }
    return {row["backend"]: row["ms"]["mirnet_fast"]} | others


def preferences(rows):
    """{"op dtype": the backend that took less time over all its rows}, where there were several."""
    total = {}
    for row in rows:
        if "backend" not in row:  # the network's, which is of both
            continue
        times = total.setdefault(f"{row['op']} {row['dtype']}", {})
        for backend, ms in by_backend(row).items():
            times[backend] = times.get(backend, 0) + ms
    return {name: min(times, key=times.get) for name, times in total.items() if len(times) > 1}


def targets(rows, l2):
    """How far the rows meet what is asked of a large GPU: one entry for each forward in float16.

    Of the better backend, which the picker will use where it is the better one throughout.
    """
    asked = {"blur_pool": 0.9, "skff_select": 0.9, "dau_attention": 0.8}  # else 0.85
    result = []
    for row in rows:
        if row["direction"] != "forward" or row["dtype"] != "float16" or row.get("layout") != "channels_last":
            continue
        times = by_backend(row)
        best = min(times, key=times.get)
        gain = row["ms"]["mirnet_fast"] / times[best]
        entry = {"op": row["op"], "size": row["size"], "backend": best, "of_copy": gain * row["of_copy"]}
        # The map of the op, once in and once out, does not fit.
        entry["larger_than_l2"] = l2 is not None and row["floor_mb"] > l2
        for key, rival in (("times_eager", "eager channels_last"), ("times_compiled", "torch.compile")):
            entry[key] = gain * row["ratio"][rival] if rival in row["ratio"] else None
        entry["asked"] = asked.get(row["op"], 0.85)
        entry["met"] = (
            (entry["of_copy"] >= entry["asked"] or not entry["larger_than_l2"])
            and (entry["times_eager"] or 0) >= 3
            and (entry["times_compiled"] or 0) >= 1.3
        )
        result.append(entry)
    return result


def lines(record):
    """The report as lines of text."""
    environment = record["environment"]
    yield f"mirnet_fast on {environment.get('gpu') or 'no GPU'}, {record['seconds']:.0f} s"
    if not environment.get("gpu"):
        yield "TRIED WITHOUT A GPU: tiny maps, interpreted and emulated. The times below mean nothing."
    for key, value in environment.items():
        if value not in (None, [], {}):
            yield f"  {key}: {value}"
    yield ""
    for step in record["steps"]:
        counts = ", ".join(f"{n} {outcome.lower()}" for outcome, n in step["counts"].items())
        told = "; ".join(part for part in (step["why"], counts) if part)
        yield f"{step['status']:>8}  {step['name']:<40} {step['seconds']:6.1f} s  {told}"
        for text in step["failures"][:20]:
            yield f"            {text}"
        for text in step["skipped"][:5]:
            yield f"            {text}"
    rows = record["rows"]
    if rows:
        yield ""
        yield from table(rows)
    if record["targets"]:
        yield ""
        yield "Targets, float16 forward: 3 x eager, 1.3 x torch.compile; of copy beyond the L2 cache 90 % for"
        yield "blur_pool and skff_select, 80 % for dau_attention, 85 % for the others"
        for t in record["targets"]:
            size = "x".join(map(str, t["size"]))
            beyond = "beyond L2" if t["larger_than_l2"] else "within L2"
            ratios = [f"{t[k]:.2f} x {n}" if t[k] else f"no {n}" for k, n in COMPARED.items()]
            verdict = "met" if t["met"] else "MISSED"
            share = f"{100 * t['of_copy']:4.0f} % of copy ({beyond})"
            yield f"  {t['op']:<20} {size:<14} {t['backend']:<7} {share}  {', '.join(ratios)}  {verdict}"


COMPARED = {"times_eager": "eager", "times_compiled": "torch.compile"}


def table(rows):
    """That of the benchmarks, by a process of its own: this one does without torch."""
    code = "import json, sys, gpu_steps as s; print('\\n'.join(s.table(json.load(sys.stdin))))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benches")])}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(rows),
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        return ["(the table could not be made in a minute; the rows are in results.json)"]
    return done.stdout.splitlines() or [f"(no table: {done.stderr.strip().splitlines()[-1:]})"]


def child(*arguments):
    return [sys.executable, "-W", "ignore", ROOT / "benches" / "gpu_steps.py", *arguments]


def pytest(*arguments):
    return [sys.executable, "-m", "pytest", "-v", "-rfEs", "--tb=short", "-p", "no:cacheprovider", *arguments]


def test_steps(on_gpu, missing, limit):
    """The tests, in groups that run side by side: much of their time is compiling."""
    why = "pytest is not installed; `check` stands in for it" if "pytest" in missing else None
    device = {} if on_gpu else {"TRITON_INTERPRET": "1"}
    yield Step(
        "tests of the GPU", pytest("tests/test_gpu.py"), limit, why_not=why or (None if on_gpu else "no GPU")
    )

    def step(op, kernels, words="", more="", env=None):
        command = pytest("tests/ops", "-k", f"{op} and {kernels}{words}")
        return Step(f"tests {op} {kernels}{more}", command, limit, env, why)

    for op, kernels in itertools.product(reversed(OPS), ("Triton", "Cuda")):
        if not on_gpu:
            yield step(
                op, kernels, " and (tiny and test_contract or test_the_same or test_empty)", env=device
            )
        elif kernels == "Cuda":  # compiled already
            yield step(op, kernels)
        else:
            for dtype in DTYPES:
                words = f" and test_contract and {dtype}" + (" and not bfloat16" * (dtype == "float16"))
                yield step(op, kernels, words, f" {dtype}")
            yield step(op, kernels, " and not test_contract", " others")


def sanitizer_steps(on_gpu, path, limit):
    env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # otherwise a neighbour's memory looks like one's own
    why = None if path else "compute-sanitizer is not there"
    for tool, backend in (("memcheck", "triton"), ("memcheck", "cuda"), ("racecheck", "cuda")):
        options = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
        command = [path or "compute-sanitizer", *options, *child("small", backend)]
        yield Step(f"compute-sanitizer {tool} {backend}", command, limit, env, why if on_gpu else "no GPU")


def build_step(on_gpu, environment):
    """The CUDA kernels for this GPU, where they are not there and can be made."""
    library, why = ROOT / "mirnet_fast" / "libmirnet_fast_cuda.so", None
    if not on_gpu:
        why = "no GPU"
    elif library.exists():
        why = f"{library.name} is there"
    elif not environment.get("nvcc"):
        why = "no nvcc"
    arch = environment.get("compute capability", "")
    env = {"MIRNET_FAST_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": arch + ("a" if arch == "9.0" else "")}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return Step("build", command, 150, env, why)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--seconds", type=float, default=450, help="for everything; 450 unless told")
    parser.add_argument("--commit", help="recorded where the files are no git checkout")
    parser.add_argument("--no-tests", action="store_true", help="benchmarks only")
    parser.add_argument("--no-benchmarks", action="store_true", help="tests only")
    chosen = parser.parse_args()
    run = Run(chosen.folder, chosen.seconds, chosen.commit)

    first = Step("environment", child("environment"), 90)
    run.do([first], 1)
    found = [line for line in (first.output or "").splitlines() if line.startswith('{"')]
    if found:
        run.environment = json.loads(found[-1])
    if chosen.commit:
        run.environment["commit"] = chosen.commit
    environment = run.environment
    on_gpu = bool(environment.get("gpu"))
    missing = environment.get("missing packages", [])
    run.do([build_step(on_gpu, environment)], 1)
    bench = {"MIRNET_BENCH_COMPILE": "default", "MIRNET_BENCH_ROUNDS": "25"}
    if not on_gpu:
        bench = {"MIRNET_BENCH_COMPILE": "0", "MIRNET_BENCH_ROUNDS": "3", "MIRNET_BENCH_TINY": "1"}
    workers = max(1, os.cpu_count() or 1)

    together = []
    if not chosen.no_tests:
        together.append(Step("small", child("small"), 120))
        together += [Step(f"check {op}", child("check", op), 150) for op in OPS]
        together.append(Step("check network", child("network"), 200))
    if not chosen.no_benchmarks and on_gpu:
        few = {"TORCHINDUCTOR_COMPILE_THREADS": str(max(1, workers // len(OPS)))}
        together += [Step(f"compile for {op}", child("rows", op, "--warm"), 180, bench | few) for op in OPS]
    if not chosen.no_tests:
        together += test_steps(on_gpu, missing, 200)
    # About half the time, less what the sanitizer takes, which wants its kernels compiled.
    share = 0.45 if not chosen.no_benchmarks else 0.8
    run.do(together, workers, run.begin + share * chosen.seconds)
    if not chosen.no_tests:
        run.do(sanitizer_steps(on_gpu, environment.get("compute-sanitizer"), 30), 3)
    if not chosen.no_benchmarks:
        timed = ("network", *OPS)
        for i, what in enumerate(timed):
            limit = max(20, (run.left - 5) / (len(timed) - i))
            run.do([Step(f"rows {what}", child("rows", what), limit, bench)], 1)
    record = run.report()
    print((chosen.folder / "report.txt").read_text())
    print(f"in {chosen.folder}: {', '.join(sorted(p.name for p in chosen.folder.iterdir()))}")
    sys.exit(any(step["status"] in ("failed", "cut off") for step in record["steps"]))


if __name__ == "__main__":
    main()
