"""The parts of gpu.py, each a process of its own: python benches/gpu_steps.py STEP ARGUMENTS.

    environment           versions, the GPU, what is available for each op and why: JSON
    once BACKEND          every op, and of Triton every kind of plan, against the reference, in float16
    network BACKEND DTYPE the whole network, forward and backward, and its plan
    times                 the network by us and eager, and what memory it takes: a row for each size and dtype
    compiled MODE SIZE    the same beside torch.compile
    profile               kernels of a forward, and where its steps lose time
    convolutions          what the network gains or loses by cuDNN for one kind of its convolutions
    rows OP               the benchmark rows of an op
    precision             PSNR of the shipped network in half precision
    training [compiled]   a training step
    check OP              contract of outputs and gradients against the reference, without pytest
    small BACKEND         every op once, forward and backward, on odd little maps (for compute-sanitizer)

A step is a list of cases, told as they begin and end. Each stands alone: what one raises is printed, with
where it was raised, and the next has its turn; one that hangs, or breaks the context of the GPU, ends the
process, and gpu.py goes on in a new one with the next. Of a step that measures each case is made ready, and
run once, before the process asks for the GPU. Rows and facts are lines of JSON.

Without a GPU Triton's interpreter and the emulated GPU of the tests take its place, so that the steps
themselves can be tried.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

# {step: the file of gpu_script/steps that has the function of this name}; the others need not be importable.
STEPS = {"environment": "environment", "network": "network", "profile": "profile", "precision": "precision"}
STEPS |= {"once": "ops", "check": "ops", "small": "ops", "convolutions": "convolutions"}
STEPS |= {"times": "network_rows", "compiled": "network_rows", "training": "network_rows", "rows": "op_rows"}


def main():
    if importlib.util.find_spec("pytest") is None:
        importlib.import_module("gpu_script.steps.no_pytest").stand_in()
    name, *arguments = sys.argv[1:]
    getattr(importlib.import_module(f"gpu_script.steps.{STEPS[name]}"), name)(*arguments)


if __name__ == "__main__":
    main()
