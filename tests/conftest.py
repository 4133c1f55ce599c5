import os
import sys

if "PYTEST_XDIST_WORKER" in os.environ:
    # Processes side by side have a thread each: more would only wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

from .cases import combine as pytest_generate_tests  # noqa: F401

if not torch.cuda.is_available():
    # Before anything imports Triton: without a GPU its interpreter runs the kernels.
    os.environ.setdefault("TRITON_INTERPRET", "1")
# The reference's own error is the yardstick: that of float32, not of TF32.
torch.backends.cudnn.allow_tf32 = False


def pytest_make_parametrize_id(val):
    """A file's bytes name no case: a library may write other ones in each of two processes side by side."""
    return "file" if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def precision_of_every_machine(monkeypatch):
    """`restore` computes in fp32 if not told, whatever the machine is good at: `as_on` says what it is."""
    monkeypatch.setattr("mirnet_fast.precision.candidates_on", lambda device: ((), "this is a test"))


@pytest.fixture
def one_thread():
    """For tiny maps: on a busy machine more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """pytest-cov's own mark for this, no_cover, does nothing in a process of pytest-xdist."""
    tracer = sys.gettrace()
    if item.get_closest_marker("untraced"):
        sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)
