"""The reference and the fast network on one input: their errors, times, memory and outputs."""

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import measure, reference
from .modules import MIRNet

NETWORKS = {"reference": reference.MIRNet, "mirnet_fast": MIRNet}

# Contract: our error is at most FACTOR times the reference's own, plus a few ulp.
FACTOR = 2
FLOOR = 4


@dataclass(frozen=True)
class StageError:
    """Relative errors (2-norms) in a dtype against the reference in float64 at one point of the network."""

    stage: str
    reference: float
    mirnet_fast: float
    dtype: torch.dtype = torch.float32

    @property
    def agrees(self) -> bool:
        return self.mirnet_fast <= FACTOR * self.reference + FLOOR * torch.finfo(self.dtype).eps


def build(
    config: Mapping[str, Any],
    load: Callable[[nn.Module], object] | None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, nn.Module]:
    """{name: network in eval mode}, all with the same weights.

    Args:
        config: arguments of MIRNet.
        load: called with the reference network, to fill in its weights; None for random ones.
    """
    torch.manual_seed(seed)
    yardstick = reference.MIRNet(**config)
    if load is not None:
        load(yardstick)
    networks = {"reference": yardstick, "mirnet_fast": MIRNet(**config)}
    networks["mirnet_fast"].load_state_dict(yardstick.state_dict())
    return {name: network.eval().to(device) for name, network in networks.items()}


def lowered(networks: Mapping[str, nn.Module], dtype: torch.dtype) -> dict[str, nn.Module]:
    """Copies of the networks in a dtype."""
    return {name: copy.deepcopy(network).to(dtype) for name, network in networks.items()}


def stage_errors(
    networks: Mapping[str, nn.Module], image: torch.Tensor, dtype: torch.dtype = torch.float32
) -> tuple[list[StageError], dict[str, torch.Tensor]]:
    """([StageError], {name: output}) of networks made by `build`, as computed in a dtype.

    Stages are conv_in, each recursive residual group, conv_out, and the output of the network,
    each with the errors of all before it.

    Args:
        image: (N, in_channels, H, W) float32, H and W multiples of 2**(height - 1).
        dtype: of copies of them and of the image: float32, or a lower one, to which both are rounded.
    """
    same = lowered(networks, dtype)
    results = {name: _stages(network, image.to(dtype)) for name, network in same.items()}
    exact = _stages(copy.deepcopy(networks["reference"]).double(), image.double())
    errors = [
        StageError(
            stage, **{name: _relative(results[name][stage], exact[stage]) for name in networks}, dtype=dtype
        )
        for stage in exact
    ]
    return errors, {name: stages["output"].float() for name, stages in results.items()}


def times(networks: Mapping[str, nn.Module], image: torch.Tensor, rounds: int) -> dict[str, float]:
    """{name: median seconds} of `rounds` interleaved forward passes."""
    with torch.inference_mode():
        seconds = measure.interleave(
            {name: lambda network=network: network(image) for name, network in networks.items()},
            rounds,
            synchronize=torch.cuda.synchronize if image.is_cuda else None,
        )
    return {name: statistics.median(values) for name, values in seconds.items()}


def memory(
    config: Mapping[str, Any],
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, int | None]:
    """{name: bytes of one forward pass above the network and its input}, each in a fresh process.

    None where the process was killed.
    """
    peaks: dict[str, int | None] = {}
    for name in NETWORKS:
        arguments = (name, config, tuple(shape), str(device), dtype, torch.get_num_threads())
        try:
            peaks[name] = measure.peak_memory(_forward_pass, *arguments, device=device)
        except BrokenProcessPool:
            peaks[name] = None
    return peaks


def _forward_pass(name, config, shape, device, dtype, threads):
    torch.set_num_threads(threads)
    network = NETWORKS[name](**config).eval().to(device, dtype)
    image = torch.rand(shape, device=device, dtype=dtype)

    def forward():
        with torch.inference_mode():
            network(image)

    return forward


def _stages(network, image):
    names = ["conv_in", *(f"body.{i}" for i in range(len(network.body))), "conv_out"]
    outputs = {}

    def keep(name):
        return lambda module, inputs, output: outputs.__setitem__(name, output)

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        with torch.inference_mode():
            outputs["output"] = network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _relative(actual, exact):
    return ((actual.double() - exact).norm() / exact.norm()).item()
