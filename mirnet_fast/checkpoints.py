"""Reading and writing checkpoints of MIRNet: `.pth` and `.safetensors`.

Nothing in a file is trusted: only tensors are read, never code, and the model is changed only
once everything fits.
"""

import io
import json
import pickle
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from ._files import replaced

# What DataParallel and DistributedDataParallel, torch.compile, FSDP and checkpoint_wrapper put into names.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
COUNTER = "n_averaged"  # what torch's AveragedModel keeps beside the weights
ARGUMENTS = "mirnet_fast.network"  # the key of our metadata in safetensors
NAMES_SHOWN = 10
WIDEST = 99  # columns; a file could ask for any number, as they share their weights

# Names that tell a MIRNet, whatever its size.
_TELLING = {"conv_in.weight", "body.0.body.0.blocks.0.0.body.1.weight"}
_DAU_SLOPE = re.compile(r"body\.\d+\.body\.\d+\.blocks\.\d+\.0\.body\.1\.weight")


class CheckpointError(ValueError):
    """A checkpoint cannot be read, does not fit the model, or cannot be written."""


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
    rename = _plain if len({_plain(name) for name in targets}) == len(targets) else str
    own_names = {rename(name): name for name in targets}
    content, _ = _read(path)
    state = _chosen(path, content, own_names, key, rename)
    state = {own_names.get(name, name): value for name, value in state.items()}
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
        data = _safetensors_of(model)
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
    return _chosen(path, _read(path)[0], _TELLING, key, _plain)


def network_arguments(path: str | Path, key: str | None = None, **known: Any) -> dict[str, Any]:
    """The arguments of `MIRNet(...)` that the network in a checkpoint was made with.

    Args:
        path, key: as `load_checkpoint` takes them.
        known: arguments as the caller knows them.

    Raises:
        CheckpointError: as `read_state_dict` and `infer_config`.
    """
    content, told = _read(path)
    state = _chosen(path, content, _TELLING, key, _plain)
    try:
        return infer_config(state, **{**told, **known})
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def infer_config(state_dict: Mapping[str, torch.Tensor], **known: Any) -> dict[str, Any]:
    """The arguments of `MIRNet(...)` that a state_dict was made with, from its names and shapes.

    Args:
        state_dict: {name: tensor} as `read_state_dict` returns it.
        known: arguments as the caller knows them.

    Raises:
        CheckpointError: these are not the names of a MIRNet, they say something else than `known`, or an
            argument that is not in `known` cannot be told from them.
    """
    try:
        conv_in, conv_out = state_dict["conv_in.weight"], state_dict["conv_out.weight"]
        n_feat, in_channels, kernel_size, _ = conv_in.shape
        if kernel_size % 2 == 0:
            raise ValueError(f"conv_in.weight must have a kernel of odd size; got {tuple(conv_in.shape)}")
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
    except (LookupError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"these are not the names and shapes of a MIRNet: {error}") from error
    # What the names leave open.
    free = {"stride"} if height == 1 else set()
    # All columns share their weights: a file without the shared names looks like one column.
    slopes = sum(_DAU_SLOPE.fullmatch(name) is not None for name in state_dict)
    if config["width"] == 1 and slopes < config["n_RRG"] * config["n_MSRB"] * height:
        free.add("width")
        if "width" not in known:
            raise CheckpointError(
                "the names of shared tensors were dropped from this checkpoint, so the number of columns "
                "cannot be told: give `width` (published networks have 2)"
            )
    for name, value in known.items():
        if name not in config:
            raise CheckpointError(f"MIRNet has no argument {name!r}")
        if value != config[name] and name not in free:
            raise CheckpointError(f"this checkpoint was made with {name}={config[name]}, not {value}")
    return {**config, **known}


def _read(path):
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


def _safetensors_of(model):
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
        arguments = infer_config({_plain(name): value for name, value in state.items()})
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


def _chosen(path, content, names, key, rename):
    """{name: tensor} of the one network in a file that has names among `names`.

    Args:
        content: nested mappings with tensors, and whatever else.
        key: where it is, None if there is but one.
        rename: called with every name.
    """
    groups = {where: _renamed(tensors, rename) for where, tensors in _groups(content).items()}
    if not groups:
        raise CheckpointError(f"{path} is not a state_dict: " + _listing("not tensors", list(content))[0])
    found = Counter()  # {(where, prefix): names of the network}
    for where, (tensors, _) in groups.items():
        for name in tensors:
            parts = name.split(".")
            # The longest end of it that is a name: networks within networks have names that end alike.
            for i in range(min(len(parts), 9)):
                if ".".join(parts[i:]) in names:
                    found[where, ".".join(parts[:i])] += 1
                    break
    # Nothing of the network: what is there is returned, for the caller to say what does not fit.
    choices = found or Counter({(where, ""): len(tensors) for where, (tensors, _) in groups.items()})
    if key is not None:
        wanted = {c: n for c, n in choices.items() if f"{_joined(c)}.".startswith(f"{key}." if key else ".")}
        if not wanted:
            raise CheckpointError(f"{path}: there is no {key!r}; key may be {_named(choices)}")
        choices = wanted
    most = max(choices.values())
    # One with few of them is another network; an average may lack the buffers.
    choices = [choice for choice, count in choices.items() if 2 * count > most]
    if len(choices) > 1:
        raise CheckpointError(f"{path} holds several networks; choose one by its key: {_named(choices)}")
    ((where, prefix),) = choices
    tensors, problems = groups[where]
    if problems:
        raise CheckpointError(f"{path}: " + _listing("names with two values", problems)[0])
    start = f"{prefix}." if prefix else ""
    others = [name for name in tensors if not name.startswith(start) and name != COUNTER]
    if others and key != _joined(choices[0]):
        raise CheckpointError(
            f"{path} holds more than the network {_joined(choices[0])!r}, which is chosen by that key: "
            + _listing("others", others)[0]
        )
    state = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
    if COUNTER not in names:
        state.pop(COUNTER, None)
    return state


def _groups(content):
    """{where: {name: tensor}} of every mapping in nested ones that holds tensors."""
    groups, seen, waiting = {}, set(), [("", content)]
    while waiting:
        where, mapping = waiting.pop()
        # A pickle may hold itself. What has param_groups is an optimiser's.
        if id(mapping) in seen or "param_groups" in mapping:
            continue
        seen.add(id(mapping))
        named = {name: value for name, value in mapping.items() if isinstance(name, str)}
        tensors = {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}
        if tensors:
            # A name with a dot in it may look like two names.
            groups[f"{where}#{len(groups)}" if where in groups else where] = tensors
        for name, value in named.items():
            inside = _joined((where, name))
            if isinstance(value, Mapping):
                waiting.append((inside, value))
            elif isinstance(value, tuple):
                # Our own last.pt has the average's weights beside how many they are of.
                parts = [part for part in value if isinstance(part, Mapping)]
                waiting += [(f"{inside}.{i}" if len(parts) > 1 else inside, p) for i, p in enumerate(parts)]
    return groups


def _renamed(tensors, rename):
    """(the tensors by their new names, ["name and name"] of those with one new name and two values)."""
    renamed, before, problems = {}, {}, []
    for name, value in tensors.items():
        new = rename(name)
        if new in renamed and not _same(renamed[new], value):
            problems.append(f"{before[new]} and {name}")
        renamed[new], before[new] = value, name
    return renamed, problems


def _plain(name):
    """The name that a tensor has in a module that nothing wraps, in no part."""
    *modules, last = name.split(".")
    return ".".join([*(module for module in modules if module not in WRAPPERS), last])


def _joined(choice):
    return ".".join(part for part in choice if part)


def _named(choices):
    return ", ".join(repr(name) for name in sorted({_joined(choice) for choice in choices})[:NAMES_SHOWN])


def _same(a, b):
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=0, atol=0, equal_nan=True)


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
            if state[name].shape == first.shape and not _same(state[name], first)
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
