"""mirnet-fast doctor."""

import json
import re

import numpy as np
import pytest
import torch

from mirnet_fast import backends
from mirnet_fast.ops import OPS

from ..ops.common import needs_kernels
from .common import SMALL, run


def test_doctor():
    result = run("doctor", *SMALL)
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
@pytest.mark.parametrize("winograd", [pytest.param(True, marks=needs_kernels), False])
def test_doctor_tells_whether_bfloat16_is_computed_in(monkeypatch, computes, winograd):
    monkeypatch.setattr(backends, "cpu_computes", lambda dtype: computes)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with backends.use_winograd(winograd):
        section = run("doctor", *SMALL).output.split("cpu, bfloat16")[1].split("cpu, float16")[0]
    stored = "computed in float32 and stored in bfloat16"
    otherwise = "computed in bfloat16; " if computes else f"{stored}, in which this CPU does not compute"
    assert (f"{stored}, which here is faster" if winograd else otherwise) in section


def test_doctor_with_a_chosen_backend():
    with backends.use_backend("reference"):
        result = run("doctor", *SMALL)
    assert "backend: reference" in result.output
    assert re.search(rf"^  reference: .*{OPS[0]}", result.output, re.M)
    assert "was chosen explicitly" in result.output


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_doctor_names_the_load_error(monkeypatch, kind):
    monkeypatch.setattr(f"mirnet_fast._native._{kind}_library_error", "libbroken.so could not be loaded")
    assert "libbroken.so could not be loaded" in run("doctor", *SMALL).output


def test_doctor_tells_what_is_known_of_the_cuda_kernels(monkeypatch):
    monkeypatch.setattr("mirnet_fast._native._cuda_library_error", None)
    assert re.search(r"CUDA kernels: loaded; .*never run on a GPU", run("doctor", *SMALL).output)


def forward_section(*arguments):
    result = run("doctor", *arguments)
    assert result.exit_code == 0, result.output
    return re.split(r"^the network", result.output, flags=re.M)[1]


@needs_kernels
def test_doctor_tells_what_a_forward_does(weights):
    published = forward_section()
    assert published.startswith(", with random weights\na forward without gradients, input (1, 3, 256, 256)")
    (calls, peak) = re.search(
        r"planned: the model itself \(MIRNet\), (\d+) kernel calls, (\S+) MB", published
    ).groups()
    assert int(calls) > 250 and float(peak) > 50
    small = forward_section("--weights", weights, "--size", "30")
    assert small.startswith(
        f" of {weights}\na forward without gradients, input (1, 3, 32, 32), torch.float32, cpu"
    )
    assert re.search(r"planned: the model itself \(MIRNet\), \d\d kernel calls", small)
    lower = forward_section(*SMALL, "--height", "2", "--size", "30")
    assert "input (1, 3, 30, 30)" in lower


def test_doctor_tells_why_a_forward_is_no_plan():
    with backends.use_backend("reference"):
        section = forward_section(*SMALL, "--size", "8")
    assert "without a plan: the model itself (MIRNet): the backend is 'reference'" in section


def test_doctor_in_json(weights):
    result = run("doctor", "--weights", weights, "--size", 8, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["problems"], told["backend"], told["weights"]) == ([], "automatic", str(weights))
    assert told["machine"]["torch"] == torch.__version__ and "compiled" in told["build"]
    for dtype in ("float32", "bfloat16", "float16"):
        ops = told["ops"]["cpu"][dtype]["ops"]
        assert [*ops] == list(OPS)
        chosen = backends.pick("blur_pool", "cpu", getattr(torch, dtype))
        assert ops["blur_pool"]["runs"] == chosen and chosen not in ops["blur_pool"]["not"]
    assert told["forward"]["given"].startswith("(1, 3, 8, 8)")
    assert told["precision"]["cpu"]["precision"] == "fp32"


def test_doctor_in_json_where_nothing_runs(monkeypatch):
    monkeypatch.setenv(backends.WINOGRAD_VARIABLE, "perhaps")
    monkeypatch.setattr(backends, "_winograd", None)
    told = json.loads(run("doctor", *SMALL, "--json").stdout)
    assert ["got 'perhaps'" in sentence for sentence in told["problems"]] == [True]
    assert told["winograd"] is None and "forward" not in told


def test_doctor_and_a_forward_that_cannot_be(monkeypatch):
    def refuse(*args):
        raise backends.BackendError("no kernels")

    monkeypatch.setattr("mirnet_fast.engine.explain", refuse)
    assert "fails: no kernels" in forward_section(*SMALL)


@pytest.mark.parametrize("arguments", [["--weights", "none.pth"], ["--key", "params"], ["--size", "0"]])
def test_doctor_with_bad_arguments(arguments):
    result = run("doctor", *arguments)
    assert result.exit_code != 0 and "Traceback" not in result.output
    assert arguments[0] in result.output or "there is no such file" in result.output
