"""mirnet-fast export: one file, compared at three sizes in ONNX Runtime and OpenVINO."""

import importlib.util
import sys

import numpy as np
import pytest
import torch

from mirnet_fast import exporting, reference
from mirnet_fast.checkpoints import CheckpointError
from mirnet_fast.training import ablated

from ..cases import exhaustive
from ..foreign import needs
from .common import CONFIG, SMALL, run

SIZES = [(1, 3, 8, 12), (3, 3, 20, 16), (1, 3, 68, 100)]


@pytest.fixture(scope="module")
def network():
    """Of few weights, and a height for which sides are multiples of four."""
    torch.manual_seed(3)
    return reference.MIRNet(**CONFIG).eval()


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    """(the file that the command wrote, what it printed)."""
    folder = tmp_path_factory.mktemp("export")
    torch.save(network.state_dict(), folder / "net.pth")
    path = folder / "new" / "net.onnx"
    result = run("export", path, "--weights", folder / "net.pth")
    assert result.exit_code == 0, result.output
    assert [found.name for found in path.parent.iterdir()] == ["net.onnx"]
    return path, result.output


def in_onnxruntime(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})[0]


def in_openvino(path):
    import openvino

    compiled = openvino.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: compiled(image)["restored"]


@exhaustive
@needs("onnxscript")
@pytest.mark.parametrize(
    "runtime",
    [
        pytest.param(in_onnxruntime, marks=needs("onnxruntime")),
        pytest.param(in_openvino, marks=needs("openvino")),
    ],
)
def test_one_file_runs_at_every_size(network, exported, runtime):
    restored = runtime(exported[0])
    for size in SIZES:
        image = torch.rand(size, generator=torch.Generator().manual_seed(size[2]))
        with torch.no_grad():
            expected = network(image).numpy()
        assert np.abs(expected - image.numpy()).max() > 0.01
        np.testing.assert_allclose(restored(image.numpy()), expected, atol=1e-4, rtol=0)


@exhaustive
@needs("onnxscript")
@needs("onnxruntime")
def test_command_tells_what_it_checked(exported):
    path, printed = exported
    assert f"{path}: {path.stat().st_size / 1e6:.1f} MB" in printed
    assert "H and W multiples of 4; in ONNX Runtime at three sizes at most" in printed


@exhaustive
@needs("onnxscript")
@needs("onnxruntime")
def test_a_file_of_other_weights_is_not_taken(exported):
    torch.manual_seed(4)
    assert exporting.largest_difference(exported[0], reference.MIRNet(**CONFIG)) > 0.01


@exhaustive
@needs("onnxscript")
@needs("onnx")
def test_the_file_has_standard_operators_and_all_weights(network, exported):
    import onnx

    model = onnx.load(exported[0])
    assert {node.domain for node in model.graph.node} == {""}
    parameters = sum(p.numel() for p in network.parameters())
    assert sum(np.prod(tensor.dims) for tensor in model.graph.initializer) >= parameters
    sides = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert sides == ["batch", 3, "4*h", "4*w"]


@pytest.fixture
def exports(monkeypatch):
    """Exports are a few bytes: what is around them is tested."""
    monkeypatch.setattr(exporting, "export_onnx", lambda network, path: path.write_bytes(b"new"))


def test_without_onnxruntime_it_says_so(tmp_path, weights, exports, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = run("export", tmp_path / "net.onnx", "--weights", weights)
    assert result.exit_code == 0 and "not checked, as onnxruntime is not installed" in result.output


@pytest.mark.parametrize("difference", [1e-3, float("nan")])
def test_what_differs_is_not_written(tmp_path, weights, exports, monkeypatch, difference):
    (tmp_path / "net.onnx").write_bytes(b"old")
    monkeypatch.setattr(exporting, "largest_difference", lambda path, network: difference)
    result = run("export", tmp_path / "net.onnx", "--weights", weights)
    assert result.exit_code == 1 and "not written: in ONNX Runtime it differs" in result.output
    assert (tmp_path / "net.onnx").read_bytes() == b"old"
    assert {path.suffix for path in tmp_path.iterdir()} == {".onnx", ".safetensors"}


@pytest.mark.parametrize("left_out", [{"skips": False}, {"dau": False}, {"skff": "concat"}, {"skff": "sum"}])
def test_a_network_that_is_not_as_published(tmp_path, left_out):
    network = ablated(reference.MIRNet, **left_out)(**CONFIG)
    with pytest.raises(
        ValueError if "skips" in left_out else CheckpointError, match=r"of a MIRNet|as published"
    ):
        exporting.export_onnx(network, tmp_path / "net.onnx")
    assert [*tmp_path.iterdir()] == []


def test_bad_input(tmp_path, weights, monkeypatch):
    for arguments, told in [
        ([tmp_path / "net.pb"], "must end in .onnx; got"),
        (
            [tmp_path / "a.onnx", "--weights", weights, "--task", "denoise"],
            "--task and --weights both choose",
        ),
        ([tmp_path / "a.onnx", "--task", "paint"], "--task must be one of"),
        ([tmp_path / "a.onnx", "--weights", tmp_path / "none.pth"], "none.pth: there is no such file"),
        ([tmp_path / "a.onnx", "--weights", weights, *SMALL[:1], 16], "was made with n_feat=8, not 16"),
        ([tmp_path, "--weights", weights], "is a directory"),
    ]:
        result = run("export", *arguments)
        assert result.exit_code != 0 and told in result.output, result.output
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = run("export", tmp_path / "a.onnx", "--weights", weights)
    assert result.exit_code == 1 and "pip install 'mirnet-fast[export]'" in result.output
