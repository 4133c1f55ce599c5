"""Is it right and fast on this GPU? Tests and benchmarks, in nine minutes: python benches/gpu.py [FOLDER]

Needs torch, Triton and an NVIDIA GPU; no network and nothing installed: it runs in place. With nvcc
the CUDA kernels are built for this GPU first, where they are not there yet. pytest adds the tests to
the checks, compute-sanitizer its own. FOLDER, build/gpu by default, gets report.txt (what ran, what
did not and why, the tables), report.json (the same, every row and fact), results.json (the rows, as
benches/results/ keeps them), preferences.json (what was faster, as mirnet_fast/ ships it) and log.txt
(all output). They are rewritten every few seconds: who is killed keeps what there was.

The steps are in the order of what they are worth. Each is a process with a limit of its own, and goes on
in a new one after a case that crashes, hangs or breaks the GPU's context. They run side by side, as most
of their time is compiling; a step that measures compiles first, and then has the GPU alone: the others are
stopped meanwhile. Without a GPU all this is only tried, on tiny maps, by the interpreter and the emulated
GPU of the tests.
"""

import argparse
import contextlib
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

import rows as results

ROOT = Path(__file__).resolve().parents[1]
OPS = ("blur_pool", "skff_select", "dau_attention", "residual_down_tail", "residual_up_tail")
DTYPES = ("float16", "float32", "bfloat16")
KERNELS = ("triton", "cuda")
SIZES = ("1x3x256x256", "1x3x512x512", "8x3x256x256")  # of bench_network on a GPU
MODES = ("reduce-overhead", "max-autotune")  # of torch.compile
SKIP = "MIRNET_GPU_SKIP"  # the cases that a process of a step leaves out: an earlier one had them
BROKEN = 75  # the exit status of a process whose GPU context a case broke
REPORT_EVERY = 3  # seconds
OVER = ("passed", "failed", "cut off", "not run")


class Step:
    """A command, its limits in seconds, and what became of it.

    Args:
        alone: seconds of its measurements, for which the GPU is its own once it says READY; None where it
            measures nothing.
    """

    def __init__(self, name, command, limit, env=None, why_not=None, alone=None):
        self.name, self.command, self.env = name, [str(c) for c in command], env or {}
        self.limit, self.limit_alone = limit, alone
        self.status, self.why = ("not run", why_not) if why_not else ("waiting", None)
        self.seconds, self.alone_seconds, self.output = 0, 0, ""
        self.process = None
        self._clock = self._path = None
        self._read, self._begins, self._done_before = 0, 0, None

    def start(self, folder, base):
        self._path = folder / f"{self.name.replace('/', '-').replace(' ', '-')}.log"
        skipped = {SKIP: json.dumps(self.done())}
        self._begins = len(self.output)
        with self._path.open("a") as file:
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env={**base, **self.env, **skipped},
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if self.limit_alone is None:
            self.process.stdin.close()
        self._clock, self.status = time.monotonic(), "running"

    def go(self):
        """Let it measure."""
        self._clock, self.status = time.monotonic(), "alone"
        try:
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:  # it has ended, as look() finds
            pass

    def pause(self):
        self.seconds += time.monotonic() - self._clock
        self.status = "paused"
        self._signal(signal.SIGSTOP)

    def resume(self):
        self._signal(signal.SIGCONT)
        self._clock, self.status = time.monotonic(), "running"

    def stop(self, why):
        """Not run, or cut off where it is."""
        if self.process is None:
            self.status, self.why = "not run", why
            return
        self._signal(signal.SIGKILL)
        self.process.wait()
        self._take_output()
        case = self._case()
        self.status, self.why = "cut off", f"{why}, in {case}" if case else why

    def look(self, folder, base):
        """Take note of its output, its end and its limit; whether there was something new."""
        new = self._take_output()
        if self.status in ("waiting", "paused") or self.status in OVER:
            return new
        now = time.monotonic()
        if self.status != "ready":
            spent, self._clock = now - self._clock, now
            if self.status == "alone":
                self.alone_seconds += spent
            else:
                self.seconds += spent
        code = self.process.poll()
        if code is not None:
            self._take_output()
            self._ended(code, folder, base)
            return True
        if self.status == "running" and self.seconds >= self.limit:
            self.stop(f"after {self.seconds:.0f} s")
        elif self.status == "alone" and self.alone_seconds >= self.limit_alone:
            self.stop(f"after {self.alone_seconds:.0f} s of measuring")
        elif self.status == "running" and self.limit_alone and self._says("READY"):
            self.status = "ready"
        return new or self.status in OVER

    def _ended(self, code, folder, base):
        self.process.stdin.close()
        lost = self._case()
        if lost:
            with self._path.open("a") as file:
                print(f"FAILED {lost} - exit status {code} in it", f"ENDED {lost}", sep="\n", file=file)
            self._take_output()
        done = self.done()
        if (lost or code == BROKEN) and done != self._done_before:
            self._done_before = done
            self.start(folder, base)
            return
        failed = code != 0 or "FAILED" in self.counts
        self.status = "failed" if failed else "passed"
        self.why = f"exit status {code}" if code not in (0, 1) else None

    def done(self):
        """The cases that need not be tried again."""
        return list(
            dict.fromkeys(re.findall(r"^(?:PASSED|FAILED|SKIPPED) (.*?)(?: - .*)?$", self.output, re.M))
        )

    def _case(self):
        """The case that the process is in, or None."""
        marks = re.findall(r"^(BEGAN|ENDED) (.*)$", self.output[self._begins :], re.M)
        return marks[-1][1] if marks and marks[-1][0] == "BEGAN" else None

    def _says(self, line):
        return f"\n{line}\n" in "\n" + self.output[self._begins :]

    def _signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _take_output(self):
        if self._path is None:
            return False
        with self._path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        # Not half of a line, which may be half of a row.
        text = text[: text.rfind(b"\n") + 1] if self.process.poll() is None else text
        self._read += len(text)
        self.output += text.decode(errors="replace")
        return bool(text)

    @property
    def counts(self):
        """{outcome: how many} of the tests or cases that the output names."""
        # pytest names the test first, and the failed ones once more at the end.
        start = r"^\S+::.* " if re.search(r"^\S+::", self.output, re.M) else "^"
        found = re.findall(start + r"(PASSED|FAILED|ERROR|SKIPPED)\b", self.output, re.M)
        return {outcome: found.count(outcome) for outcome in dict.fromkeys(found)}

    def failures(self):
        lines = re.findall(r"^(?:FAILED|ERROR) .*$", self.output, re.M)
        if self.status == "failed" and not lines:
            lines = self.output.strip().splitlines()[-3:]
        return [line[:400] for line in dict.fromkeys(lines)]

    def skips(self):
        return list(dict.fromkeys(re.findall(r"^SKIPPED .*$", self.output, re.M)))

    def records(self, kind):
        """The dicts that the step has printed, one a line, whose first key is `kind`: "op" or "fact"."""
        start = f'{{"{kind}"'
        return [json.loads(line) for line in self.output.splitlines() if line.startswith(start)]

    def summary(self):
        return {
            "name": self.name,
            "status": self.status,
            "why": self.why,
            "seconds": round(self.seconds, 1),
            "alone": round(self.alone_seconds, 1),
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
        # What one step compiles the others find.
        self.base["TRITON_CACHE_DIR"] = str(self.scratch / "triton")

    def do(self, steps, workers):
        """Run steps, so many at a time beside those that wait for the GPU, until they or the time end."""
        steps = list(steps)
        self.steps += steps
        reported, new = 0, False
        try:
            while left := [s for s in steps if s.status not in OVER]:
                if time.monotonic() >= self.deadline:
                    break
                self._advance(left, workers)
                time.sleep(0.1)
                new |= any([s.look(self.scratch, self.base) for s in left])
                if new and time.monotonic() - reported > REPORT_EVERY:
                    self.report()
                    reported, new = time.monotonic(), False
        finally:
            for step in steps:
                if step.status not in OVER:
                    step.stop("no time was left")
            self.report()

    def _advance(self, left, workers):
        """Start what can start; the first step that is READY goes alone."""
        by_status = {name: [s for s in left if s.status == name] for name in STATUSES}
        if by_status["alone"]:
            return
        if by_status["ready"]:
            for step in by_status["running"]:
                step.pause()
            time.sleep(0.2)  # the GPU ends what it has of them
            by_status["ready"][0].go()
            return
        for step in by_status["paused"]:
            step.resume()
        free = workers - len(by_status["running"]) - len(by_status["paused"])
        for step in by_status["waiting"][: max(free, 0)]:
            step.start(self.scratch, self.base)

    def report(self):
        rows = [row for step in self.steps for row in step.records("op")]
        facts = [fact for step in self.steps for fact in step.records("fact")]
        record = {
            "environment": self.environment,
            "seconds": round(time.monotonic() - self.begin, 1),
            "steps": [step.summary() for step in self.steps],
            "targets": targets(rows, self.environment.get("L2 in MB")),
            "network": network_targets(rows),
            "rows": rows,
            "facts": facts,
        }
        self._write("report.json", json.dumps(record, indent=1) + "\n")
        self._write("report.txt", "\n".join(lines(record)) + "\n")
        log = [f"=== {s.name}: {' '.join(s.command)}\n{s.output}" for s in self.steps if s.output]
        self._write("log.txt", "\n".join(log)[-8_000_000:])
        if rows:
            chosen = {self.environment.get("gpu"): preferences(rows)}
            self._write("preferences.json", json.dumps(chosen, indent=1, sort_keys=True) + "\n")
            machine = json.dumps(self.environment, indent=1)
            text = ",\n".join(f"  {json.dumps(row)}" for row in rows)
            self._write("results.json", f'{{\n"machine": {machine},\n"rows": [\n{text}\n]\n}}\n')
        return record

    def _write(self, name, text):
        """Whole or not at all: it may be killed at any time."""
        new = self.scratch / name
        new.write_text(text)
        target = self.folder / name
        try:
            new.replace(target)
        except OSError:  # the folder is on another disk
            target.write_text(text)


STATUSES = ("waiting", "running", "paused", "ready", "alone", *OVER)


def by_backend(row):
    """{backend: its milliseconds} of a row."""
    others = {
        n.removeprefix("mirnet_fast "): ms for n, ms in row["ms"].items() if n.startswith("mirnet_fast ")
    }
    return {row["backend"]: row["ms"]["mirnet_fast"]} | others


def preferences(rows):
    """What mirnet_fast/preferences.json says of a GPU: see mirnet_fast/backends.py.

    {"op dtype": the backend that took less time over all its rows}, where there were several, and
    {"convolution dtype inputs outputs": {number of pixels: "triton" or "cudnn"}}.
    """
    total, convolutions = {}, {}
    for row in rows:
        if "cudnn" in row["ms"] and "outputs" in row:
            (n, inputs, height, width), ms = row["size"], row["ms"]
            measured = convolutions.setdefault(f"{row['op']} {row['dtype']} {inputs} {row['outputs']}", {})
            faster = "triton" if ms["mirnet_fast"] <= ms["cudnn"] else "cudnn"
            measured[str(n * height * width)] = faster
        if "backend" not in row:  # the network's, which is of both
            continue
        times = total.setdefault(f"{row['op']} {row['dtype']}", {})
        for backend, ms in by_backend(row).items():
            times[backend] = times.get(backend, 0) + ms
    return {name: min(times, key=times.get) for name, times in total.items() if len(times) > 1} | convolutions


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


def network_targets(rows):
    """The same of the network and of its training: one entry for each size and dtype.

    Ratios are of times in the same row, as what is timed in others had its turns at another time; ours is
    the fastest of ours, the memory that of mirnet_fast itself.
    """
    asked = {"network": (3, 1.5), "training": (1.5, 1.15)}  # times eager, times the best torch.compile
    found = {}
    for row in rows:
        if row["op"] not in asked:
            continue
        key = row["op"], tuple(row["size"]), row["dtype"]
        entry = found.setdefault(key, {"eager": [], "compiled": [], "gb_per_megapixel": None, "of_eager": []})
        ours = min(ms for name, ms in row["ms"].items() if name.startswith("mirnet_fast"))
        for name, ms in row["ms"].items():
            if name == "eager channels_last":
                entry["eager"].append(ms / ours)
            if name.startswith("torch.compile"):
                entry["compiled"].append(ms / ours)
        peaks = row.get("peak_mb") or {}
        if peaks.get("mirnet_fast"):
            entry["gb_per_megapixel"] = peaks["mirnet_fast"] * 1e3 / (row["size"][0] * _area(row["size"]))
            rivals = [mb for name, mb in peaks.items() if not name.startswith("mirnet_fast") and mb]
            entry["of_eager"] += [peaks["mirnet_fast"] / min(rivals)] if rivals else []
    result = []
    for (op, size, dtype), entry in found.items():
        eager, compiled = (min(entry[name], default=None) for name in ("eager", "compiled"))
        least_eager, least_compiled = asked[op]
        memory, share = entry["gb_per_megapixel"], max(entry["of_eager"], default=None)
        fits = (memory is not None and memory <= 0.75) if op == "network" else (share or 1) <= 0.6
        met = (eager or 0) >= least_eager and (compiled or 0) >= least_compiled and fits
        result.append(
            {
                "op": op,
                "size": list(size),
                "dtype": dtype,
                "times_eager": eager,
                "times_compiled": compiled,
                "gb_per_megapixel": memory,
                "of_the_least_memory_of_others": share,
                "met": met,
            }
        )
    return result


def _area(size):
    return size[-1] * size[-2]


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
        alone = f" and {step['alone']:4.1f} s alone" if step["alone"] else ""
        yield f"{step['status']:>8}  {step['name']:<40} {step['seconds']:6.1f} s{alone}  {told}"
        for text in step["failures"][:20]:
            yield f"            {text}"
        for text in step["skipped"][:5]:
            yield f"            {text}"
    if record["rows"]:
        yield ""
        yield from results.table(record["rows"])
    for fact in record["facts"]:
        if "text" in fact:
            yield f"{fact['fact']}: {fact['text']}"
    if record["network"]:
        yield ""
        yield "Targets, network: 3 x eager channels_last, 1.5 x the best torch.compile, 0.75 GB a megapixel;"
        yield "training step: 1.5 x, 1.15 x, 60 % of the memory of the best other"
        for t in record["network"]:
            told = [f"{t['times_eager']:.2f} x eager"] if t["times_eager"] else ["no eager"]
            told += [f"{t['times_compiled']:.2f} x compiled"] if t["times_compiled"] else ["no torch.compile"]
            if t["gb_per_megapixel"] is not None:
                told.append(f"{t['gb_per_megapixel']:.2f} GB a megapixel")
            if t["of_the_least_memory_of_others"] is not None:
                told.append(f"{100 * t['of_the_least_memory_of_others']:.0f} % of the memory")
            size = "x".join(map(str, t["size"]))
            verdict = "met" if t["met"] else "MISSED"
            yield f"  {t['op']:<10} {size:<14} {t['dtype']:<9} {', '.join(told)}  {verdict}"
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


def child(*arguments):
    return [sys.executable, "-W", "ignore", ROOT / "benches" / "gpu_steps.py", *arguments]


def pytest(*arguments):
    return [sys.executable, "-m", "pytest", "-v", "-rfEs", "--tb=short", "-p", "no:cacheprovider", *arguments]


def check_steps(limit):
    """Whether it is right: every op once, then the whole network."""
    for backend in KERNELS:
        yield Step(f"once {backend}", child("once", backend), limit)
    for dtype, backend in itertools.product(("float16", "float32"), KERNELS):
        yield Step(f"network {backend} {dtype}", child("network", backend, dtype), limit)


def network_steps(environments, limit, sizes):
    """The times of the network. environments(step's name, compile threads): where torch.compile works."""
    yield Step("times", child("times"), limit, alone=60)
    for mode, size in itertools.product(MODES, sizes):
        name = f"compiled {mode} {size}"
        yield Step(name, child("compiled", mode, size), limit, environments(name, 2), alone=17)
    yield Step("profile", child("profile"), limit, alone=30)
    yield Step("convolutions", child("convolutions"), limit, alone=60)


def other_timed_steps(environments, limit):
    for op in OPS:
        name = f"rows {op}"
        yield Step(name, child("rows", op), limit, environments(name, 2), alone=14)
    yield Step("precision", child("precision"), limit, alone=12)
    yield Step("training", child("training"), limit, alone=12)
    name = "training compiled"
    yield Step(name, child("training", "compiled"), limit, environments(name, 2), alone=12)


def test_steps(on_gpu, missing, limit):
    """The tests, in groups that run side by side: a broken context costs a group."""
    why = "pytest is not installed; `check` stands in for it" if "pytest" in missing else None
    gpu_only = why or (None if on_gpu else "no GPU")
    others = " and ".join(f"not {op}" for op in OPS)
    for words in (*OPS, others):
        name = f"tests of the GPU, {'others' if words == others else words}"
        yield Step(name, pytest("tests/test_gpu.py", "-k", words), limit, why_not=gpu_only)
    ops = OPS if on_gpu else OPS[:1]
    for op in ops:
        yield Step(f"check {op}", child("check", op), limit)

    def step(op, kernels, words="", more="", env=None):
        command = pytest("tests/ops", "-k", f"{op} and {kernels}{words}")
        return Step(f"tests {op} {kernels}{more}", command, limit, env, why)

    for op, kernels in itertools.product(reversed(ops), ("Triton", "Cuda")):
        if not on_gpu:
            words = " and tiny and test_contract"
            yield step(op, kernels, words, env={"TRITON_INTERPRET": "1"})
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
    """The CUDA kernels for this GPU, where they are not there and can be made; else for the emulated one."""
    library = ROOT / "mirnet_fast" / "libmirnet_fast_cuda.so"
    if not on_gpu:
        code = "from tests import emulation; emulation.missing() or emulation.build()"
        return Step("build", [sys.executable, "-c", code], 1200)
    why = f"{library.name} is there" if library.exists() else None if environment.get("nvcc") else "no nvcc"
    arch = environment.get("compute capability", "")
    env = {"MIRNET_FAST_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": arch + ("a" if arch == "9.0" else "")}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return Step("build", command, 150, env, why)


def plan(run, tests=True, benchmarks=True):
    """The steps after the first ones, in their order."""
    on_gpu = bool(run.environment.get("gpu"))
    bench = {"MIRNET_BENCH_COMPILE": "default", "MIRNET_BENCH_ROUNDS": "25"}
    if not on_gpu:
        bench = {"MIRNET_BENCH_COMPILE": "0", "MIRNET_BENCH_ROUNDS": "3", "MIRNET_BENCH_TINY": "1"}
    run.base |= bench

    def environments(name, threads):
        # A folder of its own: who is stopped may hold the lock of a shared one.
        folder = run.scratch / "inductor" / name.replace(" ", "-")
        return {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TORCHINDUCTOR_COMPILE_THREADS": str(threads)}

    sizes = SIZES if on_gpu else SIZES[:1]
    steps = []
    if tests:
        steps += check_steps(240)
    if benchmarks:
        steps += [*network_steps(environments, 300, sizes), *other_timed_steps(environments, 300)]
    if tests:
        steps += test_steps(on_gpu, run.environment.get("missing packages", []), 200)
        steps += sanitizer_steps(on_gpu, run.environment.get("compute-sanitizer"), 60)
    for step in steps:
        if step.limit_alone and not on_gpu:
            step.limit_alone *= 5  # the interpreter takes seconds for what a GPU does at once
    return steps


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--seconds", type=float, default=540, help="for everything; 540 unless told")
    parser.add_argument("--commit", help="recorded where the files are no git checkout")
    parser.add_argument("--no-tests", action="store_true", help="benchmarks only")
    parser.add_argument("--no-benchmarks", action="store_true", help="tests only")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # the steps and the report see to that
    run = Run(chosen.folder, chosen.seconds, chosen.commit)

    first = Step("environment", child("environment"), 90)
    run.do([first], 1)
    if found := first.records("cpu"):
        run.environment = found[-1]
    if chosen.commit:
        run.environment["commit"] = chosen.commit
    on_gpu = bool(run.environment.get("gpu"))
    build = build_step(on_gpu, run.environment)
    if not on_gpu:
        run.deadline += build.limit
    run.do([build], 1)
    if not on_gpu:  # what takes minutes there is ready made on a GPU
        run.deadline = time.monotonic() + chosen.seconds
    run.do(plan(run, not chosen.no_tests, not chosen.no_benchmarks), max(1, os.cpu_count() or 1))
    record = run.report()
    print((chosen.folder / "report.txt").read_text())
    print(f"in {chosen.folder}: {', '.join(sorted(p.name for p in chosen.folder.iterdir()))}")
    sys.exit(any(step["status"] in ("failed", "cut off") for step in record["steps"]))


if __name__ == "__main__":
    main()
