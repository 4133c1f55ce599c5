"""Reading and writing checkpoints of MIRNet: `.pth` and `.safetensors`.

Nothing in a file is trusted: only tensors are read, never code, and the model is changed only
once everything fits.
"""

import pickle
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from ._files import replaced

PREFIX = "module."  # what DataParallel and DistributedDataParallel put before every name
NAMES_SHOWN = 10

_DAU_SLOPE = re.compile(r"body\.\d+\.body\.\d+\.blocks\.\d+\.0\.body\.1\.weight")


class CheckpointError(ValueError):
    """A checkpoint cannot be read, does not fit the model, or cannot be written."""


def load_checkpoint(model, path, strict=True):
    """Load the weights in `path` into `model`, keeping the model's dtypes and devices.

    Names that stand for one tensor of the model (MIRNet shares several) may all be in the file or
    only some of them. If anything is wrong the model stays as it was.

    Args:
        model: any torch.nn.Module whose state_dict holds nothing but tensors.
        path: a `.safetensors` file, or what torch.save made of a state_dict or of a dict with
            one under "state_dict", with or without "module." before every name.
        strict: refuse missing and unexpected names. Wrong shapes are always refused.

    Returns:
        (missing_keys, unexpected_keys), both empty if `strict`.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint or would run code; names
            are missing or unexpected, shapes differ, names that share a tensor in the model have
            different values in the file, or a module refuses its values.
    """
    state = read_state_dict(path)
    targets = model.state_dict(keep_vars=True)
    problems = _fill_shared_names(targets, state)
    missing = [name for name in targets if name not in state]
    unexpected = [name for name in state if name not in targets]
    if strict:
        problems += _listing("missing", missing) + _listing("unexpected", unexpected)
    problems += _listing(
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


def save_checkpoint(model, path):
    """Write the state_dict of `model` to `path`, whole or not at all.

    `.pth` keeps all names; `.safetensors` keeps one name of each shared tensor and lists the others
    in its metadata, as safetensors does.

    Raises:
        CheckpointError: the suffix is neither `.pth` nor `.safetensors`, or there is no such folder.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".pth", ".safetensors"):
        raise CheckpointError(f"{path}: the suffix must be .pth or .safetensors")
    if not path.parent.is_dir():
        raise CheckpointError(f"{path}: there is no folder {path.parent}")
    with replaced(path) as new:
        if path.suffix == ".pth":
            torch.save(model.state_dict(), new)
        else:
            safetensors.torch.save_model(model, str(new))


def read_state_dict(path):
    """{name: tensor on the CPU} of a checkpoint, without a "module." before the names.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if all(name.startswith(PREFIX) for name in state):
        state = {name.removeprefix(PREFIX): value for name, value in state.items()}
    return state


def infer_config(state_dict, **known):
    """The arguments of `MIRNet(...)` that a state_dict was made with, from its names and shapes.

    Args:
        state_dict: {name: tensor} as `read_state_dict` returns it.
        known: arguments that are not to be inferred.

    Raises:
        CheckpointError: these are not the names of a MIRNet, or an argument that is not in
            `known` cannot be told from them.
    """
    try:
        conv_in, conv_out = state_dict["conv_in.weight"], state_dict["conv_out.weight"]
        n_feat, in_channels, kernel_size, _ = conv_in.shape
        height = _count(state_dict, r"body\.0\.body\.0\.blocks\.(\d+)\.")
        config = {
            "in_channels": in_channels,
            "out_channels": conv_out.shape[0],
            "n_feat": n_feat,
            "kernel_size": kernel_size,
            "stride": state_dict["body.0.body.0.blocks.1.0.body.0.weight"].shape[0] // n_feat
            if height > 1
            else 2,
            "n_RRG": _count(state_dict, r"body\.(\d+)\."),
            # the convolution that ends a group has the index after its last block
            "n_MSRB": _count(state_dict, r"body\.0\.body\.(\d+)\.") - 1,
            "height": height,
            "width": _count(state_dict, r"body\.0\.body\.0\.blocks\.0\.(\d+)\."),
            "bias": "conv_in.bias" in state_dict,
        }
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"these are not the names and shapes of a MIRNet: {error}") from error
    if config["width"] == 1 and "width" not in known:
        # All columns share their weights: a file without the shared names looks like one column.
        slopes = sum(_DAU_SLOPE.fullmatch(name) is not None for name in state_dict)
        if slopes < config["n_RRG"] * config["n_MSRB"] * height:
            raise CheckpointError(
                "the names of shared tensors were dropped from this checkpoint, so the number of columns "
                "cannot be told: give `width` (published networks have 2)"
            )
    return {**config, **known}


def _read_safetensors(path):
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
            shared = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a safetensors file, or is damaged: {error}") from error
    if not state:
        raise CheckpointError(f"{path} holds no tensors")
    # save_model records every name that it dropped with the name that it kept
    for dropped, kept in shared.items():
        if kept in state:
            state.setdefault(dropped, state[kept])
    return state


def _read_pickle(path):
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
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
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state_dict")
    if not content:
        raise CheckpointError(f"{path} holds no tensors")
    others = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    others += [name for name in content if not isinstance(name, str)]
    if others:
        raise CheckpointError(f"{path} is not a state_dict: " + _listing("not tensors", others)[0])
    return dict(content)


def _fill_shared_names(targets, state):
    """Give every name of a shared tensor the value that the file has under one of them.

    Returns a list of problems: tensors whose names have different values in the file.
    """
    groups = defaultdict(list)
    for name, target in targets.items():
        groups[id(target)].append(name)
    different = []
    for names in groups.values():
        present = [name for name in names if name in state]
        if not present:
            continue
        first = state[present[0]]
        different += [
            f"{name} and {present[0]}"
            for name in present[1:]
            if state[name].shape == first.shape
            and not torch.allclose(state[name].double(), first.double(), rtol=0, atol=0, equal_nan=True)
        ]
        state.update((name, first) for name in names if name not in state)
    return _listing("one tensor in the model, but with different values in the file", different)


def _listing(kind, names):
    """[] or [one line]: how many, and the first of them."""
    if not names:
        return []
    more = f", and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return [f"{len(names)} {kind}: {', '.join(map(str, names[:NAMES_SHOWN]))}{more}"]


def _count(state_dict, pattern):
    """One more than the largest index that `pattern` finds at the start of a name."""
    indices = [int(match[1]) for name in state_dict if (match := re.match(pattern, name))]
    if not indices:
        raise ValueError(f"no name begins with {pattern}")
    return 1 + max(indices)
