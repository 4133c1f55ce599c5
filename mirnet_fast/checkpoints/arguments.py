"""The arguments of a MIRNet, from the names and shapes of its weights."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from .errors import CheckpointError

_DAU_SLOPE = re.compile(r"body\.\d+\.body\.\d+\.blocks\.\d+\.0\.body\.1\.weight")


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


def _count(state_dict, pattern):
    """One more than the largest index that `pattern` finds at the start of a name."""
    indices = [int(match[1]) for name in state_dict if (match := re.match(pattern, name))]
    if not indices:
        raise ValueError(f"no name begins with {pattern}")
    return 1 + max(indices)
