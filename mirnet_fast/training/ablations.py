"""The network without one of its ideas, as the paper's ablation study has it (arXiv 2003.06792, section 4).

Streams, columns and groups are arguments of the network itself.
"""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .. import reference
from .recipe import Recipe, RecipeError


class ResidualBlock(nn.Module):
    """What is left of a dual attention unit without attention: two convolutions and the skip connection."""

    SKIP = True

    def __init__(self, n_feat: int, bias: bool = False, act: nn.Module | None = None) -> None:
        super().__init__()
        first, second = (nn.Conv2d(n_feat, n_feat, 3, padding=1, bias=bias) for _ in range(2))
        self.body = nn.Sequential(first, nn.PReLU() if act is None else act, second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return self.body(x) + x if self.SKIP else self.body(x)


class Sum(nn.Module):
    """In place of a SKFF: the sum of its branches."""

    def __init__(self, channels: int, height: int) -> None:
        super().__init__()

    def forward(self, branches: list[torch.Tensor]) -> torch.Tensor:
        """[(N, C, H, W)] * height -> (N, C, H, W)."""
        return sum(branches)  # pyrefly: ignore[bad-return]


class Concat(nn.Module):
    """In place of a SKFF: a 1x1 convolution of its branches, one after the other."""

    def __init__(self, channels: int, height: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Conv2d(channels * height, channels, 1, bias=False)

    def forward(self, branches: list[torch.Tensor]) -> torch.Tensor:
        """[(N, C, H, W)] * height -> (N, C, H, W)."""
        return self.conv1x1(torch.cat(list(branches), 1))


def ablated(
    network: type[reference.MIRNet], skips: bool = True, dau: bool = True, skff: str = "skff"
) -> type[reference.MIRNet]:
    """A class like `network`, a MIRNet, fast or reference, with the same constructor.

    Args:
        skips: False leaves out the skip connections of DAUs, MSRBs and RRGs; the network's own stays.
        dau: False leaves the two convolutions of each DAU.
        skff: "sum" or "concat" takes SKFF's place.
    """
    if skips and dau and skff == "skff":
        return network
    group, block = network.RRG, network.RRG.MSRB
    unit = block.DAU if dau else ResidualBlock
    fusion = {"skff": block.SKFF, "sum": Sum, "concat": Concat}[skff]
    unit = type(unit.__name__, (unit,), {"SKIP": skips})
    block = type("MSRB", (block,), {"DAU": unit, "SKFF": fusion, "SKIP": skips})
    group = type("RRG", (group,), {"MSRB": block, "SKIP": skips})
    return type("MIRNet", (network,), {"RRG": group})


def costs(recipe: Recipe) -> tuple[int, int]:
    """(parameters, FLOPs of a patch forward) of a recipe's network, as published: nothing is computed.

    A multiplication and its addition are two FLOPs; only convolutions count.

    Raises:
        RecipeError: the arguments of the network do not fit together.
    """
    arguments = recipe.network
    try:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            network = ablated(reference.MIRNet, **recipe.ablation.model_dump())(**arguments.model_dump())
            network(torch.empty(1, arguments.in_channels, recipe.patch, recipe.patch))
    except (ArithmeticError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise RecipeError(f"network: these arguments do not fit together: {reason}") from error
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops()
