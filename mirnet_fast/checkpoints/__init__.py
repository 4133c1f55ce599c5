"""Reading and writing checkpoints of MIRNet: `.pth` and `.safetensors`.

Nothing in a file is trusted: only tensors are read, never code, and the model is changed only
once everything fits.
"""

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._files import replaced
from .arguments import infer_config
from .errors import CheckpointError, listing
from .files import read, safetensors_of
from .names import chosen, fill_shared_names, plain

__all__ = [
    "TELLING",
    "CheckpointError",
    "infer_config",
    "load_checkpoint",
    "network_arguments",
    "read_state_dict",
    "save_checkpoint",
]

# Names that tell a MIRNet, whatever its size.
TELLING = {"conv_in.weight", "body.0.body.0.blocks.0.0.body.1.weight"}


def load_checkpoint(
    model: nn.Module, path: str | Path, strict: bool = True, key: str | None = None
) -> tuple[list[str], list[str]]:
    """Load the weights in `path` into `model`, keeping the model's dtypes and devices.

    Names that stand for one tensor of the model (MIRNet shares several) may all be in the file or
    only some of them. Model and file may each be wrapped or not, as a whole or in parts: by DataParallel,
    DistributedDataParallel, AveragedModel, torch.compile. If anything is wrong the model stays as it was.

    Args:
        model: any torch.nn.Module whose state_dict holds nothing but tensors.
        path: a `.safetensors` file, or what torch.save made of a state_dict or of dicts with one among
            other things, as most training programs write them; under whatever names, such as "params" or
            "state_dict", and with one prefix before all names, such as "model.".
        strict: refuse missing and unexpected names. Wrong shapes are always refused.
        key: which one, if the file holds several that the model could take: "params_ema", "net_g".

    Returns:
        (missing_keys, unexpected_keys), both empty if `strict`.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint or would run code; it holds several
            networks that the model could take and `key` does not say which (the message names them), or
            none under `key`; names are missing or unexpected, shapes differ, names that share a tensor
            in the model have different values in the file, or a module refuses its values.
    """
    targets = model.state_dict(keep_vars=True)
    rename = plain if len({plain(name) for name in targets}) == len(targets) else str
    own_names = {rename(name): name for name in targets}
    content, _ = read(path)
    state = chosen(path, content, own_names, key, rename)
    state = {own_names.get(name, name): value for name, value in state.items()}
    problems = fill_shared_names(targets, state)
    missing = [name for name in targets if name not in state]
    unexpected = [name for name in state if name not in targets]
    if strict:
        problems += listing("missing", missing) + listing("unexpected", unexpected)
    problems += listing(
        "of another shape",
        [
            f"{name} {tuple(state[name].shape)}, the model has {tuple(target.shape)}"
            for name, target in targets.items()
            if name in state and state[name].shape != target.shape
        ],
    )
    if problems:
        raise CheckpointError(f"{path} does not fit the model:\n  " + "\n  ".join(problems))

    # A module may still refuse values while others have already taken theirs.
    before = {id(target): (target, target.detach().clone()) for target in targets.values()}
    try:
        return model.load_state_dict(state, strict=strict)
    except RuntimeError as error:
        with torch.no_grad():
            for target, value in before.values():
                target.copy_(value)
        raise CheckpointError(f"{path} does not fit the model: {error}") from error


def save_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Write the state_dict of `model` to `path`, whole or not at all.

    `.pth` keeps all names; `.safetensors` keeps one name of each shared tensor and lists the others
    in its metadata, as safetensors does, and with them the arguments of a MIRNet.

    Raises:
        CheckpointError: the suffix is neither `.pth` nor `.safetensors`, or there is no such folder.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".pth", ".safetensors"):
        raise CheckpointError(f"{path}: the suffix must be .pth or .safetensors")
    if not path.parent.is_dir():
        raise CheckpointError(f"{path}: there is no folder {path.parent}")
    # Made in memory: torch and safetensors have errors of their own for a file that cannot be written, and
    # safetensors makes one that nobody else may read.
    if path.suffix.lower() == ".pth":
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        data = buffer.getbuffer()
    else:
        data = safetensors_of(model)
    with replaced(path) as new:
        new.write_bytes(data)


def read_state_dict(path: str | Path, key: str | None = None) -> dict[str, torch.Tensor]:
    """{name: tensor on the CPU} of the network in a checkpoint, by the names that it has unwrapped.

    Args:
        path, key: as `load_checkpoint` takes them.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint, or would run code; it holds several
            networks and `key` does not say which, or none under `key`.
    """
    return chosen(path, read(path)[0], TELLING, key, plain)


def network_arguments(path: str | Path, key: str | None = None, **known: Any) -> dict[str, Any]:
    """The arguments of `MIRNet(...)` that the network in a checkpoint was made with.

    Args:
        path, key: as `load_checkpoint` takes them.
        known: arguments as the caller knows them.

    Raises:
        CheckpointError: as `read_state_dict` and `infer_config`.
    """
    content, told = read(path)
    state = chosen(path, content, TELLING, key, plain)
    try:
        return infer_config(state, **{**told, **known})
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
