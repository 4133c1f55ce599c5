"""The choice between backends: automatic, explicit, refused."""

import json
import os
import re
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
        mirnet_fast.BackendError, match="must be one of triton, cuda, cpu, reference; got 'gpu'"
    ):
        mirnet_fast.use_backend("gpu")
    assert mirnet_fast.current_backend() is None


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_a_backend_that_is_not_there_is_refused_with_the_reason(monkeypatch, name):
    cause = OSError("no such file")
    monkeypatch.setitem(backends._UNAVAILABLE, name, "it was not built")
    monkeypatch.setattr(backends._native, f"{name}_library_exception", cause)
    with pytest.raises(mirnet_fast.BackendError, match=f"'{name}' cannot run: it was not built") as error:
        mirnet_fast.use_backend(name)
    assert error.value.__cause__ is cause
    assert backends.pick("blur_pool", "cpu", torch.float32) in ("cpu", "reference")
    assert (name, "it was not built") in backends.explain("blur_pool", name, torch.float32)


@pytest.fixture
def two_kinds_of_gpu_kernels(monkeypatch, tmp_path):
    """As on a GPU: pretend(measured), {"op dtype": backend} as it was measured there."""

    def pretend(measured, capability=(9, 0), have=("sm_90a",)):
        for name in ("triton", "cuda"):
            monkeypatch.delitem(backends._UNAVAILABLE, name, raising=False)
        monkeypatch.setattr(backends, "PREFERENCES", tmp_path / "preferences.json")
        if measured:
            table = {"NVIDIA Some GPU": measured, "another": {"blur_pool float32": "triton"}}
            backends.PREFERENCES.write_text(json.dumps(table))
        backends._preferences.cache_clear()
        # As if of a GPU that was never seen, for what is kept of each.
        monkeypatch.setattr(torch.cuda, "current_device", object)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Some GPU")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        info = {} if have is None else {"cuda_architectures": have}
        monkeypatch.setattr(backends._native, "build_info", lambda: info)

    yield pretend
    backends._preferences.cache_clear()


def explained(op="blur_pool", dtype=torch.float16):
    return backends.pick(op, "cuda", dtype), dict(backends.explain(op, "cuda", dtype))


def test_what_was_measured_to_be_faster_runs(two_kinds_of_gpu_kernels):
    two_kinds_of_gpu_kernels({"blur_pool float16": "cuda", "skff_select float16": "triton"})
    picked, reasons = explained()
    assert picked == "cuda"
    assert list(reasons) == ["cuda", "triton", "cpu", "reference"]
    assert reasons["cuda"] is None
    assert reasons["triton"] == "cuda was measured to be faster on this GPU"
    picked, reasons = explained("skff_select")
    assert picked == "triton"
    assert reasons["cuda"] == "triton was measured to be faster on this GPU"
    assert explained(dtype=torch.float32)[0] == "triton"
    with mirnet_fast.use_backend("triton"):
        assert explained() == (
            "triton",
            dict.fromkeys(["cuda", "cpu", "reference"], "'triton' was chosen explicitly") | {"triton": None},
        )


def convolution(pixels, outputs=64, dtype=torch.float16):
    return backends.convolution("conv3x3", dtype, 64, outputs, pixels)


def test_a_convolution_that_was_measured_to_be_faster_runs(two_kinds_of_gpu_kernels, monkeypatch):
    measured = {"4096": "cudnn", "65536": "triton", "524288": "cudnn"}
    two_kinds_of_gpu_kernels({"conv3x3 float16 64 64": measured, "conv3x3 float16": "triton"})
    assert [convolution(n) for n in (1, 10_000, 20_000, 65_536, 180_000, 190_000, 10**9)] == [
        *("cudnn", "cudnn", "triton", "triton", "triton", "cudnn", "cudnn")
    ]
    assert convolution(0) == "cudnn"  # of an empty batch
    assert convolution(65_536, outputs=3) == convolution(65_536, dtype=torch.bfloat16) == "cudnn"
    with mirnet_fast.use_backend("triton"):
        assert convolution(4096) == convolution(4096, outputs=3) == "triton"
        assert convolution(4096, dtype=torch.float64) == "cudnn"  # which there is no kernel for
    with mirnet_fast.use_backend("reference"):
        assert convolution(65_536) == "cudnn"
    monkeypatch.setitem(backends._UNAVAILABLE, "triton", "Triton is not installed")
    assert convolution(65_536) == "cudnn"


def test_convolutions_are_cudnns_where_nobody_measured(two_kinds_of_gpu_kernels):
    two_kinds_of_gpu_kernels({})
    assert convolution(65_536) == "cudnn"


def test_triton_comes_first_where_nothing_was_measured(two_kinds_of_gpu_kernels, monkeypatch):
    two_kinds_of_gpu_kernels({})
    picked, reasons = explained()
    assert picked == "triton"
    assert reasons["cuda"] == "triton comes first, because which is faster on this GPU was not measured"
    monkeypatch.setitem(backends._UNAVAILABLE, "triton", "Triton is not installed")
    picked, reasons = explained()
    assert picked == "cuda"
    assert reasons["triton"] == "Triton is not installed"


@pytest.mark.parametrize(
    ("have", "capability", "runs"),
    [
        (("sm_80",), (8, 0), True),
        (("sm_80",), (8, 9), True),
        (("sm_86",), (8, 0), False),
        (("sm_80",), (9, 0), False),
        (("sm_90a",), (9, 0), True),
        (("sm_100",), (10, 3), True),
        (("sm_100a",), (10, 3), False),
        (("sm_100f",), (10, 3), True),
        (("sm_80", "compute_80"), (12, 0), True),
        (("sm_80", "compute_120"), (12, 1), True),
        (("sm_80", "compute_90a"), (10, 0), False),
        (("compute_100f",), (12, 0), False),
        (("sm_80",), (7, 5), False),
        (None, (7, 5), True),
        ((), (7, 5), True),
    ],
)
def test_the_cuda_kernels_run_only_on_gpus_that_they_were_compiled_for(
    two_kinds_of_gpu_kernels, have, capability, runs
):
    two_kinds_of_gpu_kernels({"blur_pool float16": "cuda"}, capability, have)
    picked, reasons = explained()
    assert picked == ("cuda" if runs else "triton")
    if not runs:
        number = f"sm_{capability[0]}{capability[1]}"
        assert reasons["cuda"] == f"was compiled for {', '.join(have)}, and this GPU is {number}"
        with (
            mirnet_fast.use_backend("cuda"),
            pytest.raises(mirnet_fast.BackendError, match=r"'cuda' was chosen.*was compiled for"),
        ):
            backends.pick("blur_pool", "cuda", torch.float16)


def test_torch_compile_takes_what_is_known_of_a_gpu_as_constant(two_kinds_of_gpu_kernels):
    two_kinds_of_gpu_kernels({"blur_pool float16": "cuda"})

    @torch.compiler.assume_constant_result
    def marked():
        pass

    assert vars(marked).items() <= vars(backends._measured).items()

    @torch.compile(backend="eager", fullgraph=True)
    def compiled(x):
        return x + 1 if backends.pick("blur_pool", "cuda", torch.float16) == "cuda" else x

    assert compiled(torch.zeros(1)) == 1


def test_float64_has_no_kernels_on_a_gpu(two_kinds_of_gpu_kernels):
    two_kinds_of_gpu_kernels({})
    assert explained(dtype=torch.float64)[0] == "reference"


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


WITH_WRONG_VARIABLES = """
import torch, mirnet_fast
from click.testing import CliRunner
from mirnet_fast.cli import main
for arguments in (["--help"], ["restore", "--help"], ["doctor"], ["demo"]):
    result = CliRunner().invoke(main, arguments)
    print(result.exit_code, isinstance(result.exception, (SystemExit, type(None))), result.output)
mirnet_fast.release_workspace()
try:
    with torch.inference_mode():
        mirnet_fast.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1)(torch.rand(1, 3, 8, 8))
except mirnet_fast.BackendError as error:
    print("op:", mirnet_fast.packed_weights_bytes(), error)
"""
WRONG = {
    "MIRNET_FAST_BACKEND": ("gpu", ": backend must be one of triton, cuda, cpu, reference; got 'gpu'"),
    "MIRNET_FAST_WINOGRAD": ("2", " must be one of 1, on, true, yes, 0, off, false, no; got '2'"),
    "MIRNET_FAST_CPU_ISA": ("sse9", " must be one of base, avx2, avx512, avx512_bf16, amx; got 'sse9'"),
    "MIRNET_FAST_PACKED_MB": ("much", " must be a number of megabytes, 0 or more; got 'much'"),
}


def test_wrong_variables_stop_neither_the_import_nor_help_nor_doctor():
    done = run_python(WITH_WRONG_VARIABLES, **{name: value for name, (value, _) in WRONG.items()})
    assert done.returncode == 0, done.stderr
    helped, restore_helped, doctor, demo, op = re.split(r"^(?:[01] True|op: 0) ", done.stdout, flags=re.M)[1:]
    assert "Commands:" in helped and "--weights" in restore_helped
    assert "machine and versions" in doctor and "cpu, float32" in doctor
    assert demo.startswith("Error: ")
    for name, (_, complaint) in WRONG.items():
        for answer in (doctor, demo, op):
            assert f"environment variable {name}{complaint}" in answer
    assert "csrc" not in done.stdout


@pytest.mark.parametrize(
    ("value", "right"),
    [("", True), ("0", True), ("1024", True), (str(2**30 - 1), True)]
    + [(value, False) for value in ("-1", "1.5", "much", " ", "1 ", "1_0", str(2**30), "9" * 20)],
)
def test_megabytes_are_checked_as_the_kernels_check_them(value, right):
    assert (backends._native._problems({"MIRNET_FAST_PACKED_MB": value}) == []) == right


def test_a_backend_of_the_environment_that_cannot_run(monkeypatch):
    monkeypatch.setitem(backends._UNAVAILABLE, "cuda", "torch finds no GPU")
    monkeypatch.setattr(backends, "_forced", "cuda")
    wanted = "environment variable MIRNET_FAST_BACKEND: backend 'cuda' cannot run: torch finds no GPU"
    with pytest.raises(mirnet_fast.BackendError, match=wanted):
        ops.blur_pool(X)
    with mirnet_fast.use_backend("reference"):  # takes the variable's place
        ops.blur_pool(X)
    assert backends.problems() == [wanted]


def test_use_winograd_takes_the_place_of_a_wrong_variable(monkeypatch):
    monkeypatch.setenv("MIRNET_FAST_WINOGRAD", "maybe")
    monkeypatch.setattr(backends, "_winograd", None)
    with pytest.raises(mirnet_fast.BackendError, match="MIRNET_FAST_WINOGRAD must be one of"):
        ops.blur_pool(X)
    with mirnet_fast.use_winograd(False):
        ops.blur_pool(X)


def test_import_takes_no_optional_package_and_no_gpu():
    code = "import sys, mirnet_fast; print({'triton', 'cv2', 'skimage', 'click'} & set(sys.modules))"
    assert run_python(code).stdout.strip() == "set()"


def test_doubled_backward_of_the_reference():
    x = X.double().requires_grad_()
    with mirnet_fast.use_backend("reference"):
        (gradient,) = torch.autograd.grad(ops.blur_pool(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
    assert x.grad.abs().sum() > 0
