"""A short run of tests/fuzz.py, which `make fuzz` runs for longer; and whether it sees anything."""

import subprocess
import sys

import pytest
import torch

from mirnet_fast import reference

from . import fuzz, guarded
from .cases import exhaustive
from .ops.common import needs_kernels


@needs_kernels
@pytest.mark.parametrize(
    ("kind", "first", "count"), [("ops", 0, 80), ("ops", 80, 80), ("networks", 0, 8), ("changes", 0, 8)]
)
def test_nothing_is_wrong(kind, first, count):
    assert fuzz.run(kind, range(first, first + count)) == {}


@needs_kernels
def test_what_is_wrong_is_seen(monkeypatch):
    right = reference.blur_pool
    monkeypatch.setattr(reference, "blur_pool", lambda *args: 1.01 * right(*args))
    found = fuzz.run("ops", range(40))
    assert found
    assert all(what.startswith("Wrong: blur_pool") for what in found.values())


@pytest.mark.parametrize(("at_end", "offset"), [(True, 60), pytest.param(False, -4, marks=exhaustive)])
def test_the_pages_around_a_tensor_end_the_process(at_end, offset):
    code = "from tests import guarded; import ctypes, torch\n"
    code += f"t = guarded.strided((3, 5), (5, 1), torch.float32, {at_end}); t.fill_(1)\n"
    code += f"print(t.sum().item(), flush=True); ctypes.memset(t.data_ptr() + {offset}, 0, 4)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "15.0\n"
    assert done.returncode < 0


@pytest.mark.parametrize("strides", [(0, 5, 1), (1, 0, 3), (20, 4, 0)])
def test_the_same_values(strides):
    value = torch.rand(100).as_strided((2, 3, 4), strides)
    copy = guarded.like(value)
    assert torch.equal(copy, value)
    assert copy.stride() == value.stride()
