"""Other tools make of the drop-in what they make of the reference: on the meta device, by FX, for ONNX.

And torch.export and torch.compile one graph of our ops for all sizes.
"""

import copy
import io

import pytest
import torch

import mirnet_fast
from mirnet_fast import backends, ops, reference

from .cases import exhaustive, first_of

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


# The first: two images and sides that differ, as what is 1 or the same counts as fixed.
SIZES = [(2, 3, 16, 24), (1, 3, 8, 12), (3, 3, 36, 20)]
FEW_STREAMS = {**SMALL, "height": 2, "width": 1}


def our_ops():
    """The names that a graph has for the ops that run here, whose arguments the network calls them with."""
    used = [op for op in ops.OPS if op != "blur_pool"]  # which is part of residual_down_tail
    return {
        f"mirnet_fast_cpu.{op}.default" for op in used if backends.pick(op, "cpu", torch.float32) == "cpu"
    }


@pytest.mark.untraced
def test_torch_export_of_all_sizes():
    torch.manual_seed(0)
    model = mirnet_fast.MIRNet(**FEW_STREAMS).eval()
    sides = ({0: torch.export.Dim("n"), 2: 2 * torch.export.Dim("h"), 3: 2 * torch.export.Dim("w")},)
    with torch.no_grad():
        program = torch.export.export(model, (torch.rand(SIZES[0]),), dynamic_shapes=sides, strict=True)
        assert our_ops() <= {str(node.target) for node in program.graph.nodes}
        for size in SIZES[1:]:
            image = torch.rand(size)
            torch.testing.assert_close(program.module()(image), model(image), atol=1e-5, rtol=1e-5)


@exhaustive
@pytest.mark.untraced
def test_torch_compile_of_all_sizes():
    torch.compiler.reset()
    model, graphs = mirnet_fast.MIRNet(**FEW_STREAMS).eval(), []

    def backend(graph, inputs):
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for size in (SIZES[0], SIZES[2], (5, 3, 64, 48)):
            image = torch.rand(size)
            torch.testing.assert_close(compiled(image), model(image), atol=1e-5, rtol=1e-5)
    assert len(graphs) == 1 and our_ops() <= graphs[0]


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


@exhaustive
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
