"""Networks that come with the package: of each the weights, and beside them its recipe, log and card."""

from pathlib import Path
from typing import Any

from ..checkpoints import load_checkpoint, network_arguments
from ..modules import MIRNet

# task: the network for it, here or still to come
TASKS = {"denoise": "denoise_small", "enhance": "enhance", "sharpen": "sharpen"}
DEFAULT = "denoise"


def shipped() -> dict[str, Path]:
    """{name: file with the weights} of the networks that come with the package."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.safetensors"))}


def tasks() -> dict[str, Path]:
    """{task: file with the weights of the network for it}, of the tasks whose network is here."""
    files = shipped()
    return {task: files[name] for task, name in TASKS.items() if name in files}


def weights_of(name: str = DEFAULT) -> Path:
    """The file with the weights of a network that comes with the package.

    Args:
        name: a task of `tasks()`, or the network's own name.

    Raises:
        ValueError: there is no such network.
    """
    found = {**shipped(), **tasks()}
    if name not in found:
        raise ValueError(
            f"task must be one of {', '.join(tasks())}, or name must be one of {', '.join(shipped())}; "
            f"got {name!r}"
        )
    return found[name]


def load_pretrained(name: str = DEFAULT) -> MIRNet:
    """A MIRNet in eval mode, float32, on the CPU, that comes with the package.

    Args:
        name: a task, so far "denoise" (noisy photos), or a network's own name, "denoise_small" (see
            denoise_small.md beside this file).

    Raises:
        ValueError: there is no such network.
    """
    return network_in(weights_of(name))


def network_in(path: str | Path, **arguments: Any) -> MIRNet:
    """The MIRNet in a checkpoint, in eval mode, float32, on the CPU.

    Args:
        path: .pth or .safetensors, as `load_checkpoint` takes it.
        arguments: those of MIRNet, as the caller knows them; the file tells the others.

    Raises:
        CheckpointError: the file is not a MIRNet's, or says something else than `arguments`.
    """
    network = MIRNet(**network_arguments(path, **arguments)).eval()
    load_checkpoint(network, path)
    return network
