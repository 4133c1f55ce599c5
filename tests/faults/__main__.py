"""Do the tests see what they are there for? Plants faults, one at a time, in a copy of the tree.

    python -m tests.faults               # which of `make test` and `make test-all` catches which fault
    python -m tests.faults wait stride   # of these only

Tests at which a fault aims are tried first; where they miss it, all of the suite are. A fault that neither
suite catches ends this with status 1. Takes about a minute a fault, most of it to compile.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from . import FAULTS

ROOT = Path(__file__).parents[2]
COPY = ROOT / "build" / "planted" / "tree"
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "planted", "sanitized", "demo", "photos", "*.egg-info", "__pycache__"
)
SUITES = {"make test": ["-m", "not exhaustive"], "make test-all": []}


def run(*command, **options):
    return subprocess.run(command, cwd=COPY, capture_output=True, text=True, **options)


def copy_tree():
    """The tree with what is built in it, so that a fault compiles no more than it changes."""
    if COPY.exists():
        shutil.rmtree(COPY)
    shutil.copytree(ROOT, COPY, symlinks=True, ignore=LEFT_OUT)


def build():
    """Why the copy does not compile, or None."""
    emulated = "from tests import emulation; emulation.missing() or emulation.build()"
    for command in (["setup.py", "-q", "build_ext", "--inplace"], ["-c", emulated]):
        done = run(sys.executable, *command)
        if done.returncode:
            return done.stdout + done.stderr
    return None


def failing(suite, where=""):
    """The first test of a suite, or of a part of it, that fails; None where none does."""
    words = shlex.split(where) or ["-n", "auto", "--maxprocesses", "8", "--dist", "loadgroup"]
    options = ["-x", "-q", "-p", "no:cacheprovider", "--ignore=tests/test_faults.py"]  # which sees them all
    command = [sys.executable, "-m", "pytest", *options, *SUITES[suite], *words]
    done = run(*command, env={**os.environ, "OMP_NUM_THREADS": "1"})  # as in the processes of `make test`
    if done.returncode in (0, 5):  # 5: no test of the suite is there
        return None
    if done.returncode > 1:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    found = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return found.group(1) if found else "the process ended"


def caught(fault):
    """{suite: the test that catches the fault, or None}."""
    path = COPY / fault.file
    before = path.read_text()
    if before.count(fault.good) != 1:
        raise RuntimeError(f"{fault.name}: {fault.file} has {before.count(fault.good)} times {fault.good!r}")
    path.write_text(before.replace(fault.good, fault.bad))
    try:
        if why := build():
            raise RuntimeError(f"{fault.name}: the fault does not compile:\n{why}")
        result, test = {}, None
        for suite in SUITES:  # what the first catches, the second does, which has all its tests
            test = test or failing(suite, fault.aims_at) or failing(suite)
            result[suite] = test
        return result
    finally:
        path.write_text(before)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="FAULT", help=", ".join(fault.name for fault in FAULTS))
    chosen = parser.parse_args().names
    unknown = set(chosen) - {fault.name for fault in FAULTS}
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    faults = [fault for fault in FAULTS if not chosen or fault.name in chosen]
    copy_tree()
    if why := build():
        raise SystemExit(why)
    counts = dict.fromkeys(SUITES, 0)
    for fault in faults:
        start = time.monotonic()
        tests = caught(fault)
        for suite, test in tests.items():
            counts[suite] += test is not None
        suite, test = next(((s, t) for s, t in tests.items() if t), ("nothing", ""))
        told = f"{fault.name:22} {suite:14} {time.monotonic() - start:4.0f} s  {test}"
        print(f"{told}\n    {fault.what}", flush=True)
    print(", ".join(f"{suite}: {count} of {len(faults)}" for suite, count in counts.items()))
    sys.exit(counts["make test-all"] < len(faults))


if __name__ == "__main__":
    main()
