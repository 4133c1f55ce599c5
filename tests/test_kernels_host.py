"""What the host's side of the Triton kernels decides: how float32 is multiplied, what compiles anew."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mirnet_fast.ops import OPS

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from mirnet_fast.kernels import _common

from .cases import exhaustive

ROOT = Path(__file__).parents[1]


def switches():
    """What torch multiplies float32 by, as far as Python can set it."""
    torch.backends.fp32_precision = "none"
    torch.backends.cudnn.fp32_precision = "none"
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # as in conftest.py


@pytest.fixture(autouse=True)
def restored():
    yield
    switches()


@pytest.mark.parametrize(
    ("owner", "name", "value", "precision"),
    [
        ("cudnn", "allow_tf32", True, "tf32"),
        ("cudnn", "allow_tf32", False, "ieee"),
        ("cudnn.conv", "fp32_precision", "tf32", "tf32"),
        ("cudnn.conv", "fp32_precision", "ieee", "ieee"),
        # Of matrix products alone: cuDNN's convolutions stay as they are.
        ("cuda.matmul", "fp32_precision", "tf32", "ieee"),
        ("cuda.matmul", "allow_tf32", True, "ieee"),
    ],
)
def test_float32_is_multiplied_as_by_the_convolutions_beside(owner, name, value, precision):
    torch.backends.cudnn.allow_tf32 = owner.startswith("cudnn") and precision == "ieee"
    target = torch.backends
    for part in owner.split("."):
        target = getattr(target, part)
    setattr(target, name, value)
    assert _common.product_precision() == precision


def test_float32_is_multiplied_as_by_the_convolutions_unless_torch_is_told():
    code = "from mirnet_fast.kernels import _common; print(_common.product_precision())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["tf32"] and torch.backends.cudnn.conv.fp32_precision != "tf32"


# Sides that 16 divides and that it does not, one that is 1, a tile, hundreds of tiles.
SIZES = ((256, 256), (260, 256), (256, 260), (260, 260), (484, 500), (1000, 1500), (4, 4), (16, 16), (1, 64))
LAUNCH = """
import json, sys
import torch, triton
from torch.utils._pytree import tree_map_only
from mirnet_fast.kernels import tune
from tests.audit import compile as audit

compiled = {}  # in their order

def hook(key, fn, **rest):
    compiled.setdefault(f"{fn.name} {key}")
    return True  # as if that had been done

triton.knobs.runtime.jit_cache_hook = hook
for op, channels, (height, width) in json.loads(sys.argv[1]):
    def resized(t):
        if t.dim() < 4 or t.shape[2] not in (4, 8):
            return t.to("meta")
        size = (1, t.shape[1], height * t.shape[2] // 8, width * t.shape[2] // 8)
        return torch.empty(size, dtype=t.dtype, device="meta", memory_format=torch.channels_last)

    before = set(compiled)
    with audit.circumstances(op, 90, None, "plain", "float16"):
        triton.runtime.driver.set_active(audit.Driver(90))
        args = tune.arguments(op, channels, torch.float16, side=8, device="cpu")
        for call in tune.calls_with(op, tree_map_only(torch.Tensor, resized, args)).values():
            call()
    print(json.dumps([name for name in compiled if name not in before]))
"""


def size_for(op, height, width):
    if op.startswith("residual") or op == "blur_pool":
        height = max(height, 4)  # of fewer rows the tables of the resampling are narrower
    return (2 * height, 2 * width) if op == "residual_up_tail" else (height, width)


@exhaustive
def test_a_new_size_compiles_nothing_anew():
    """By Triton's own cache, which asks before it compiles; the maps have sizes and no values."""
    calls = [(op, 64, size_for(op, *size)) for op in OPS for size in SIZES]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", LAUNCH, json.dumps(calls)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    anew = [json.loads(line) for line in done.stdout.splitlines()]
    for begin in range(0, len(calls), len(SIZES)):
        assert anew[begin], f"{calls[begin]} launches nothing"
        for call, kernels in zip(calls[begin + 1 :], anew[begin + 1 : begin + len(SIZES)], strict=False):
            assert not kernels, f"{call} compiles {kernels[0]}"
