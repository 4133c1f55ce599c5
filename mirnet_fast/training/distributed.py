"""Several processes that train one network: what torchrun starts."""

import contextlib
import os
from collections.abc import Generator
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

Value = TypeVar("Value")

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@contextlib.contextmanager
def processes(device: torch.device | str) -> Generator[torch.device]:
    """The device of this process; inside, those that torchrun has started, if it has, know each other."""
    device = torch.device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean over the processes of a tensor."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values = values / dist.get_world_size()
    return values


def from_first(value: Value) -> Value:
    """What process 0 gave; all processes take part."""
    if dist.is_initialized():
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]
    return value


def shard(network: nn.Module) -> None:
    """Give each process its part of every weight (FSDP2).

    One unit for all: the PReLU that every DAU shares may not lie in two.
    """
    device = next(network.parameters()).device.type
    fully_shard(network, mesh=init_device_mesh(device, (dist.get_world_size(),)))


class Replica(DistributedDataParallel):
    """Every process has all weights, and gets the mean of all gradients."""

    def __init__(self, network: nn.Module) -> None:
        device = next(network.parameters()).device
        # The last column of a block leaves some of its parts without work.
        super().__init__(
            network, device_ids=[device] if device.type == "cuda" else None, find_unused_parameters=True
        )

    def set_requires_gradient_sync(self, wanted: bool) -> None:
        """The name that FSDP2 has for it: whether the next backward exchanges gradients."""
        self.require_backward_grad_sync = wanted


def whole_state(network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """State of a network, or of its optimizer, as if one process had it all: on the CPU of process 0.

    All processes take part.
    """
    if optimizer is None:
        return get_model_state_dict(network, options=WHOLE)
    return get_optimizer_state_dict(network, optimizer, options=WHOLE)


def load_whole_state(
    state: dict[str, Any], network: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """The other way; every process has the whole state."""
    options = replace(WHOLE, strict=False)
    if optimizer is None:
        # Under one of their names: torch distributes a weight of several names only once.
        once = [name for name, _ in (*network.named_parameters(), *network.named_buffers())]
        set_model_state_dict(network, {name: state[name] for name in once}, options=options)
    else:
        # A parameter that the network has and does not use, as `up` with one column, has no state.
        set_optimizer_state_dict(network, optimizer, state, options=options)
