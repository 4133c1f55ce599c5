"""Networks that come with the package: of each the weights, and beside them its recipe, log and card."""

from pathlib import Path

from ..checkpoints import load_checkpoint, network_arguments
from ..modules import MIRNet

DEFAULT = "denoise_small"


def shipped():
    """{name: file with the weights} of the networks that come with the package."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.safetensors"))}


def weights_of(name=DEFAULT):
    """The file with the weights of a network that comes with the package.

    Raises:
        ValueError: there is no such network.
    """
    files = shipped()
    if name not in files:
        raise ValueError(f"name must be one of {', '.join(files)}; got {name!r}")
    return files[name]


def load_pretrained(name=DEFAULT):
    """A MIRNet in eval mode, float32, on the CPU, that comes with the package.

    Args:
        name: "denoise_small", for noisy photos (see denoise_small.md beside this file).

    Raises:
        ValueError: there is no such network.
    """
    path = weights_of(name)
    network = MIRNet(**network_arguments(path)).eval()
    load_checkpoint(network, path)
    return network
