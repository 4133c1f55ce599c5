"""The cases of a step: each by itself, in so many seconds, told as it begins and ends."""

import dataclasses
import faulthandler
import json
import os
import sys
import time
import traceback
from collections.abc import Callable

import pytest
import torch

from gpu_script.step import BROKEN, SKIP

from . import ON_GPU

# What takes longer hangs; the whole network's kernels, and torch.compile, take minutes to compile.
CASE_SECONDS, LONG_CASE_SECONDS = 90, 280


@dataclasses.dataclass
class Case:
    """Part of a step; what it measures is made ready before, when the GPU is not its own."""

    name: str
    call: Callable[[], object]
    prepare: Callable[[], object] | None = None


class Skipped(Exception):
    """A case does not apply here; the message says why."""


def run_cases(cases, seconds=CASE_SECONDS):
    """Each by itself, in so many seconds; the end of the process tells whether all passed."""
    told = os.environ.get(SKIP)
    done = set(json.loads(told or "[]"))
    left = [case for case in cases if case.name not in done]
    failed = set()
    if any(case.prepare for case in left):
        left = [case for case in left if _attempt(case.name, case.prepare, failed, LONG_CASE_SECONDS)]
        print("READY", flush=True)
        if told is not None:  # gpu.py's answer
            sys.stdin.readline()
    for case in left:
        if _attempt(case.name, case.call, failed, seconds):
            print(f"PASSED {case.name}", flush=True)
    sys.exit(bool(failed))


def _attempt(name, call, failed, seconds):
    """Whether call(), if there is one, went through; else `failed` has the name, or it does not apply."""
    print(f"BEGAN {name}", flush=True)
    faulthandler.dump_traceback_later(seconds, exit=True)
    begin, passed = time.perf_counter(), False
    try:
        if call:
            call()
        passed = True
    except (Skipped, pytest.skip.Exception) as reason:
        print(f"SKIPPED {name} - {reason}")
    except Exception as error:  # the others are to be seen too
        failed.add(name)
        traceback.print_exc(file=sys.stdout)
        print(f"FAILED {name} - {_brief(error)}")
    finally:
        faulthandler.cancel_dump_traceback_later()
    print(f"ENDED {name}", f"took {time.perf_counter() - begin:.1f} s", sep="\n", flush=True)
    if not passed and not _context_works():
        print("the context of the GPU is broken: the rest goes on in another process", flush=True)
        os._exit(BROKEN)  # what is left of torch may only be in the way
    return passed


def _brief(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _context_works():
    if not ON_GPU:
        return True
    try:
        torch.cuda.synchronize()
        return bool((torch.ones(1, device="cuda") + 1).item() == 2)
    except Exception:  # whatever CUDA says then
        return False


def tell(fact, **values):
    """A line for the report; `text` is what is shown of it."""
    print(json.dumps({"fact": fact} | values), flush=True)
