"""The names in a file: which network is meant, under which prefix, and which of them are one tensor."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from .errors import NAMES_SHOWN, CheckpointError, listing

# What DataParallel and DistributedDataParallel, torch.compile, FSDP and checkpoint_wrapper put into names.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
COUNTER = "n_averaged"  # what torch's AveragedModel keeps beside the weights


def chosen(
    path: str | Path,
    content: Mapping[str, Any],
    names: Collection[str],
    key: str | None,
    rename: Callable[[str], str],
) -> dict[str, torch.Tensor]:
    """{name: tensor} of the one network in a file that has names among `names`.

    Args:
        content: nested mappings with tensors, and whatever else.
        key: where it is, None if there is but one.
        rename: called with every name.
    """
    groups = {where: _renamed(tensors, rename) for where, tensors in _groups(content).items()}
    if not groups:
        raise CheckpointError(f"{path} is not a state_dict: " + listing("not tensors", list(content))[0])
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
        raise CheckpointError(f"{path}: " + listing("names with two values", problems)[0])
    start = f"{prefix}." if prefix else ""
    others = [name for name in tensors if not name.startswith(start) and name != COUNTER]
    if others and key != _joined(choices[0]):
        raise CheckpointError(
            f"{path} holds more than the network {_joined(choices[0])!r}, which is chosen by that key: "
            + listing("others", others)[0]
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


def plain(name: str) -> str:
    """The name that a tensor has in a module that nothing wraps, in no part."""
    *modules, last = name.split(".")
    return ".".join([*(module for module in modules if module not in WRAPPERS), last])


def _joined(choice):
    return ".".join(part for part in choice if part)


def _named(choices):
    return ", ".join(repr(name) for name in sorted({_joined(choice) for choice in choices})[:NAMES_SHOWN])


def _same(a, b):
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=0, atol=0, equal_nan=True)


def fill_shared_names(targets: Mapping[str, torch.Tensor], state: dict[str, torch.Tensor]) -> list[str]:
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
    return listing("one tensor in the model, but with different values in the file", different)
