"""What is in a file, and the bytes of one. Only tensors and plain values are read, never code."""

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from .arguments import infer_config
from .errors import CheckpointError
from .names import plain

ARGUMENTS = "mirnet_fast.network"  # the key of our metadata in safetensors
WIDEST = 99  # columns; a file could ask for any number, as they share their weights


def read(path: str | Path) -> tuple[Any, dict[str, Any]]:
    """(what is in the file, the arguments of MIRNet that it tells of or {})."""
    path = Path(path)
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: there is no such file")
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path} is empty")
        return _read_safetensors(path) if path.suffix.lower() == ".safetensors" else (_read_pickle(path), {})
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_safetensors(path):
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file, or is damaged: {error}") from error
    if not state:
        raise CheckpointError(f"{path} holds no tensors")
    # Every name that was dropped is there with the name that was kept.
    for dropped, kept in metadata.items():
        if kept in state:
            state.setdefault(dropped, state[kept])
    return state, _arguments_in(path, metadata)


def _arguments_in(path, metadata):
    if ARGUMENTS not in metadata:
        return {}
    try:
        told = json.loads(metadata[ARGUMENTS])
    except (ValueError, RecursionError):
        told = None
    if (
        not isinstance(told, dict)
        or not all(isinstance(value, int) for value in told.values())
        or not 1 <= told.get("width", 1) <= WIDEST
    ):
        raise CheckpointError(f"{path} is damaged: its metadata have no arguments of a network")
    return told


def safetensors_of(model: nn.Module) -> bytes:
    """The bytes of a safetensors file of the model's state_dict."""
    names, kept, metadata = {}, {}, {}
    state = model.state_dict(keep_vars=True)
    for name, value in state.items():
        if id(value) in names:
            metadata[name] = names[id(value)]
        else:
            names[id(value)] = name
            # A copy, as safetensors refuses tensors that lie in one memory.
            kept[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    try:
        arguments = infer_config({plain(name): value for name, value in state.items()})
    except CheckpointError:
        pass  # another network
    else:
        metadata[ARGUMENTS] = json.dumps(arguments)
    return safetensors.torch.save(kept, metadata or None)


class _Ignored:
    """Takes the place of an object in a file that is no tensor: whatever it was made of, it holds nothing."""

    __slots__ = ()

    def __new__(cls, *args):
        return super().__new__(cls)

    def __setstate__(self, state):
        pass


# What training programs keep beside the weights; never the thing itself.
_IGNORED = [
    (_Ignored, name)
    for name in (
        *(
            f"numpy.{core}.multiarray.{made}"
            for core in ("core", "_core")
            for made in ("scalar", "_reconstruct")
        ),
        "numpy.dtype",
        "numpy.ndarray",
        "argparse.Namespace",
        *(
            f"{module}.{kind}Path"
            for module in ("pathlib", "pathlib._local")
            for kind in ("Posix", "Windows")
        ),
    )
]


def _read_pickle(path):
    try:
        with torch.serialization.safe_globals(_IGNORED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        # torch's own message advises to switch the protection off
        name = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if name:
            raise CheckpointError(
                f"{path} was refused: reading it would run code ({name[1]}); "
                "only tensors are read, so save a state_dict"
            ) from error
        raise CheckpointError(
            f"{path} is not a checkpoint, or is damaged ({type(error).__name__})"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state_dict")
    if not content:
        raise CheckpointError(f"{path} holds no tensors")
    return content
