"""A MIRNet as an ONNX file of plain operators, for programs that run no PyTorch. Needs the extra `export`."""

import importlib.util
import warnings
from pathlib import Path

import torch
from torch import nn

from . import reference
from ._files import replaced
from .checkpoints import CheckpointError, infer_config
from .inference import size_multiple

# The largest difference to the reference that a file may show, for images from 0 to 1.
TOLERANCE = 1e-4
# (images, height, width) that a file is tried at, the last two in units of what the network needs.
TRIED = [(1, 4, 6), (2, 9, 5), (1, 16, 11)]
INPUT, OUTPUT = "image", "restored"


def export_onnx(network: nn.Module, path: str | Path) -> None:
    """Write a network to an ONNX file, whole or not at all.

    Input `image` and output `restored` are float32, (N, C, H, W) with any N, and any H and W that are
    multiples of 2**(height - 1). The file has standard operators alone, and the weights in it.

    Args:
        network: a MIRNet of this package or of `mirnet_fast.reference`, whatever its dtype and device. Its
            weights count: hooks, and layers that were put in place of others, are not in the file.
        path: the file, usually `.onnx`.

    Raises:
        ImportError: onnxscript is not there, by which torch exports.
        CheckpointError: these are not the weights of a MIRNet.
        ValueError: it has no skip connections, of which the weights tell nothing.
        OSError: the file cannot be written.
    """
    published = _published(network)
    if importlib.util.find_spec("onnxscript") is None:
        raise ImportError("an ONNX file needs onnxscript; try: pip install 'mirnet-fast[export]'")
    multiple = size_multiple(published)
    sides = (torch.export.Dim(side) for side in "hw")
    # A product with 1 would be a dimension of its own kind.
    height, width = (multiple * side if multiple > 1 else side for side in sides)
    channels = published.conv_in.in_channels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of itself
        program = torch.onnx.export(
            published,
            # Not one image, nor sides alike: the exporter takes what is 1 for fixed, and equal for equal.
            (torch.zeros(2, channels, 4 * multiple, 6 * multiple),),
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch"), 2: height, 3: width},),
            input_names=[INPUT],
            output_names=[OUTPUT],
        )
    assert program is not None  # which it may be without dynamo
    with replaced(path) as new:
        program.save(new)


def largest_difference(path: str | Path, network: nn.Module) -> float:
    """How far a file is from the reference with the weights of `network`, in ONNX Runtime on the CPU.

    Random images from 0 to 1 of three sizes; nan if one result is.

    Raises:
        ImportError: onnxruntime is not there.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    published = _published(network)
    multiple, differences = size_multiple(published), []
    draw = torch.Generator().manual_seed(0)
    for images, height, width in TRIED:
        size = images, published.conv_in.in_channels, height * multiple, width * multiple
        image = torch.rand(size, generator=draw)
        with torch.inference_mode():
            expected = published(image)
        restored = torch.from_numpy(session.run([OUTPUT], {INPUT: image.numpy()})[0])
        differences.append((restored - expected).abs().max())
    return torch.stack(differences).max().item()


def _published(network):
    """The reference in float32 on the CPU, with the network's weights."""
    if not all(getattr(module, "SKIP", True) for module in network.modules()):
        raise ValueError(
            "network must be a MIRNet as published; this one has blocks without skip connections"
        )
    state = network.state_dict()
    published = reference.MIRNet(**infer_config(state))
    try:
        published.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"these are not the weights of a MIRNet: {error}") from error
    return published.eval()
