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
import os
import signal
import sys
import time
from pathlib import Path

from gpu_script import plan
from gpu_script.run import Run
from gpu_script.step import ROOT, Step


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
    run = Run(chosen.folder, chosen.seconds)

    first = Step("environment", plan.child("environment"), 90)
    run.do([first], 1)
    if found := first.records("cpu"):
        run.environment = found[-1]
    if chosen.commit:
        run.environment["commit"] = chosen.commit
    on_gpu = bool(run.environment.get("gpu"))
    build = plan.build_step(on_gpu, run.environment)
    if not on_gpu:
        run.deadline += build.limit
    run.do([build], 1)
    if not on_gpu:  # what takes minutes there is ready made on a GPU
        run.deadline = time.monotonic() + chosen.seconds
    run.do(plan.steps(run, not chosen.no_tests, not chosen.no_benchmarks), max(1, os.cpu_count() or 1))
    record = run.report()
    print((chosen.folder / "report.txt").read_text())
    print(f"in {chosen.folder}: {', '.join(sorted(p.name for p in chosen.folder.iterdir()))}")
    sys.exit(any(step["status"] in ("failed", "cut off") for step in record["steps"]))


if __name__ == "__main__":
    main()
