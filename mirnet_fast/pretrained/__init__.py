"""Networks that come with the package: of each the weights, and beside them its recipe, log and card."""

from pathlib import Path
from typing import Any

from ..checkpoints import load_checkpoint, network_arguments
from ..modules import MIRNet

# The network for each is called as it is, and here or still to come.
TASKS = ("denoise", "enhance", "sharpen")
DEFAULT = "denoise"


def tasks() -> dict[str, Path]:
    """{task: file with the weights of the network for it}, of the tasks whose network is here."""
    files = {task: Path(__file__).with_name(f"{task}.safetensors") for task in TASKS}
    return {task: path for task, path in files.items() if path.is_file()}


def weights_of(task: str = DEFAULT) -> Path:
    """The file with the weights of the network for one of `tasks()`.

    Raises:
        ValueError: there is no such network.
    """
    found = tasks()
    if task not in found:
        raise ValueError(f"task must be one of {', '.join(found)}; got {task!r}")
    return found[task]


def load_pretrained(task: str = DEFAULT) -> MIRNet:
    """A MIRNet in eval mode, float32, on the CPU, that comes with the package.

    Args:
        task: what it is for, of `mirnet_fast.pretrained.tasks()`; beside this file each has a card, such as
            denoise.md.

    Raises:
        ValueError: there is no such network.
    """
    return network_in(weights_of(task))


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
