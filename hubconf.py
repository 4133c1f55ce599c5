"""What torch.hub finds here: `torch.hub.load(REPOSITORY, "mirnet", "model.pth")`."""

from pathlib import Path
from typing import Any

from mirnet_fast import MIRNet, load_pretrained
from mirnet_fast.pretrained import network_in

dependencies = ["torch", "numpy", "safetensors", "tqdm"]


def mirnet(weights: str | Path | None = None, **arguments: Any) -> MIRNet:
    """A MIRNet in eval mode, float32, on the CPU.

    Args:
        weights: a checkpoint (.pth, .safetensors), which tells the network's arguments; None: random weights.
        arguments: those of MIRNet, as the caller knows them.

    Raises:
        CheckpointError: the file is not a MIRNet's, or says something else than `arguments`.
    """
    return MIRNet(**arguments).eval() if weights is None else network_in(weights, **arguments)


def pretrained(task: str = "denoise") -> MIRNet:
    """The network that comes along for a task, in eval mode, float32, on the CPU.

    Raises:
        ValueError: there is none.
    """
    return load_pretrained(task)
