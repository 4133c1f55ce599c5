"""mirnet-fast doctor."""

import re

import numpy as np
import pytest
import torch

from mirnet_fast import backends
from mirnet_fast.ops import OPS

from .common import run


def test_doctor():
    result = run("doctor")
    assert result.exit_code == 0, result.output
    assert torch.__version__ in result.output and np.__version__ in result.output
    assert "backend: automatic" in result.output
    for section in ("cpu, float32", "cpu, bfloat16"):
        lines = result.output.split(section)[1]
        assert all(op in lines for op in OPS)
    chosen = backends.pick("blur_pool", "cpu", torch.float32)
    assert re.search(rf"^  {chosen}: .*blur_pool", result.output, re.M)
    for backend, reason in backends.explain("blur_pool", "cpu", torch.float32):
        assert reason is None or f"not {backend}: {reason}" in result.output


@pytest.mark.parametrize("computes", [True, False])
def test_doctor_tells_whether_bfloat16_is_computed_in(monkeypatch, computes):
    monkeypatch.setattr(backends, "cpu_computes", lambda dtype: computes)
    section = run("doctor").output.split("cpu, bfloat16")[1].split("cpu, float16")[0]
    wanted = "computed in bfloat16; " if computes else "computed in float32 and stored in bfloat16"
    assert wanted in section


def test_doctor_with_a_chosen_backend():
    with backends.use_backend("reference"):
        result = run("doctor")
    assert "backend: reference" in result.output
    assert re.search(rf"^  reference: .*{OPS[0]}", result.output, re.M)
    assert "was chosen explicitly" in result.output


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_doctor_names_the_load_error(monkeypatch, kind):
    monkeypatch.setattr(f"mirnet_fast._native._{kind}_library_error", "libbroken.so could not be loaded")
    assert "libbroken.so could not be loaded" in run("doctor").output


def test_doctor_tells_what_is_known_of_the_cuda_kernels(monkeypatch):
    monkeypatch.setattr("mirnet_fast._native._cuda_library_error", None)
    assert re.search(r"CUDA kernels: loaded; .*never run on a GPU", run("doctor").output)
