"""Other tools make of the drop-in what they make of the reference: on the meta device, by FX, for ONNX."""

import copy
import io

import pytest
import torch

import mirnet_fast
from mirnet_fast import reference

from .cases import first_of

SMALL = {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1}
SIZE = (1, 8, 8, 12)
# class: (constructor arguments, sizes of its inputs)
BLOCKS = {
    "MIRNet": (SMALL, [(1, 3, 8, 12)]),
    "DAU": ({"n_feat": 8, "kernel_size": 3, "reduction": 8, "bias": False, "act": torch.nn.PReLU()}, [SIZE]),
    "SKFF": ({"in_channels": 8, "height": 2}, [[SIZE, SIZE]]),
    "MSRB": ({"n_feat": 8, "height": 2, "width": 2, "stride": 2, "bias": False}, [SIZE]),
    "Downsample": ({"channels": 8}, [SIZE]),
    "ResidualDownSample": ({"in_channels": 8}, [SIZE]),
    "ResidualUpSample": ({"in_channels": 8}, [SIZE]),
}
each_block = pytest.mark.parametrize("name", first_of(list(BLOCKS)))
with_and_without = pytest.mark.parametrize("grad", [False, True])


def made(name):
    """(the drop-in block, the reference's with the same weights, inputs)."""
    arguments, sizes = BLOCKS[name]
    torch.manual_seed(0)
    published = getattr(reference, name)(**copy.deepcopy(arguments)).eval()
    ours = getattr(mirnet_fast, name)(**copy.deepcopy(arguments)).eval()
    ours.load_state_dict(published.state_dict())
    inputs = [[torch.rand(s) for s in size] if isinstance(size, list) else torch.rand(size) for size in sizes]
    return ours, published, inputs


def on_meta(values):
    return torch.utils._pytree.tree_map(lambda value: value.to("meta"), values)


@with_and_without
@each_block
def test_forward_on_the_meta_device(name, grad):
    ours, published, inputs = made(name)
    with torch.set_grad_enabled(grad):
        output, expected = (block.to("meta")(*on_meta(inputs)) for block in (ours, published))
    assert output.device == expected.device == torch.device("meta")
    assert (output.shape, output.dtype) == (expected.shape, expected.dtype)
    assert output.requires_grad == expected.requires_grad


@with_and_without
@pytest.mark.parametrize("name", first_of([n for n in BLOCKS if n != "SKFF"]))  # which takes a list
def test_symbolic_trace(name, grad):
    ours, published, inputs = made(name)
    with torch.set_grad_enabled(grad):
        output, expected = torch.fx.symbolic_trace(ours)(*inputs), published(*inputs)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:Constant folding:UserWarning")
def test_onnx_export_by_tracing():
    ours, published, inputs = made("MIRNet")
    files = io.BytesIO(), io.BytesIO()
    try:
        for network, file in zip((ours, published), files, strict=True):
            torch.onnx.export(network, tuple(inputs), file, dynamo=False)
    except torch.onnx.OnnxExporterError as error:
        # The package is asked for last: by then every operator has been converted.
        assert "Module onnx is not installed" in str(error)
    else:
        check_sizes(*files, published)


def test_onnx_export():
    pytest.importorskip("onnxscript")
    ours, published, inputs = made("MIRNet")
    files = io.BytesIO(), io.BytesIO()
    for network, file in zip((ours, published), files, strict=True):
        torch.onnx.export(network, tuple(inputs), dynamo=True, verbose=False).save(file)
    check_sizes(*files, published)


def check_sizes(file, published_file, published):
    size, expected = len(file.getvalue()), len(published_file.getvalue())
    assert sum(p.nbytes for p in published.parameters()) < size < 1.2 * expected
