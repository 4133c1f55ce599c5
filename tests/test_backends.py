"""The choice between backends: automatic, explicit, refused."""

import os
import subprocess
import sys

import pytest
import torch

import mirnet_fast
from mirnet_fast import backends, ops

X = torch.arange(48.0).reshape(1, 1, 6, 8)


@pytest.fixture(autouse=True)
def automatic():
    with mirnet_fast.use_backend(None):
        yield


def test_use_backend_holds_for_good_and_for_a_block():
    assert mirnet_fast.current_backend() is None
    mirnet_fast.use_backend("reference")
    assert mirnet_fast.current_backend() == "reference"
    with mirnet_fast.use_backend(None):
        assert mirnet_fast.current_backend() is None
        with pytest.raises(ZeroDivisionError), mirnet_fast.use_backend("reference"):
            raise ZeroDivisionError
        assert mirnet_fast.current_backend() is None
    assert mirnet_fast.current_backend() == "reference"


def test_an_unknown_backend_changes_nothing():
    with pytest.raises(
        mirnet_fast.BackendError, match="must be one of cuda, triton, cpu, reference; got 'gpu'"
    ):
        mirnet_fast.use_backend("gpu")
    assert mirnet_fast.current_backend() is None


def test_a_backend_that_is_not_there_is_refused_with_the_reason(monkeypatch):
    cause = OSError("no such file")
    monkeypatch.setitem(backends._UNAVAILABLE, "cpu", "it was not built")
    monkeypatch.setattr(backends._native, "cpu_library_exception", cause)
    with pytest.raises(mirnet_fast.BackendError, match="'cpu' cannot run: it was not built") as error:
        mirnet_fast.use_backend("cpu")
    assert error.value.__cause__ is cause
    assert backends.pick("blur_pool", "cpu", torch.float32) == "reference"


def test_without_kernels_the_ops_run_in_plain_pytorch(monkeypatch):
    expected = ops.blur_pool(X)
    monkeypatch.setitem(backends._UNAVAILABLE, "cpu", "it was not built")
    torch.testing.assert_close(ops.blur_pool(X), expected)


def test_explain_names_what_runs_and_why_the_others_do_not():
    reasons = dict(backends.explain("blur_pool", "cpu", torch.float16))
    assert reasons["reference"] is None
    assert all(reasons[backend] for backend in ("cuda", "triton", "cpu"))
    with mirnet_fast.use_backend("reference"):
        assert "chosen explicitly" in dict(backends.explain("blur_pool", "cpu", torch.float32))["cpu"] or (
            "cpu" in backends._UNAVAILABLE
        )


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_triton_needs_a_gpu_or_its_interpreter():
    code = "import mirnet_fast; mirnet_fast.use_backend('triton')"
    failed = run_python(code, TRITON_INTERPRET="0", CUDA_VISIBLE_DEVICES="")
    assert failed.returncode != 0
    assert "backend 'triton' cannot run: " in failed.stderr
    assert "torch finds no GPU" in failed.stderr or "Triton is not installed" in failed.stderr


@pytest.mark.skipif("triton" in backends._UNAVAILABLE, reason="neither a GPU nor Triton's interpreter here")
def test_the_interpreter_runs_only_where_it_was_chosen(monkeypatch):
    monkeypatch.setattr(backends, "_INTERPRETED", True)
    assert backends.pick("blur_pool", "cpu", torch.float32) != "triton"
    assert "chosen explicitly" in dict(backends.explain("blur_pool", "cpu", torch.float32))["triton"]
    with mirnet_fast.use_backend("triton"):
        assert backends.pick("blur_pool", "cpu", torch.float32) == "triton"
    monkeypatch.setattr(backends, "_INTERPRETED", False)
    with (
        mirnet_fast.use_backend("triton"),
        pytest.raises(mirnet_fast.BackendError, match=r"'triton' was chosen.*no kernels for device 'cpu'"),
    ):
        ops.blur_pool(X)


def test_the_environment_variable_chooses():
    code = "import mirnet_fast; print(mirnet_fast.current_backend())"
    assert run_python(code, MIRNET_FAST_BACKEND="reference").stdout.strip() == "reference"
    failed = run_python(code, MIRNET_FAST_BACKEND="gpu")
    assert failed.returncode != 0
    assert "environment variable MIRNET_FAST_BACKEND: backend must be one of" in failed.stderr


def test_import_takes_no_optional_package_and_no_gpu():
    code = "import sys, mirnet_fast; print({'triton', 'cv2', 'skimage', 'click'} & set(sys.modules))"
    assert run_python(code).stdout.strip() == "set()"


def test_doubled_backward_of_the_reference():
    x = X.double().requires_grad_()
    with mirnet_fast.use_backend("reference"):
        (gradient,) = torch.autograd.grad(ops.blur_pool(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
    assert x.grad.abs().sum() > 0
