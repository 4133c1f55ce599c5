"""MIRNet in plain PyTorch: the yardstick of this package, written for reading.

Zamir et al., "Learning Enriched Features for Real Image Restoration and Enhancement",
ECCV 2020 (arXiv 2003.06792). Constructor arguments and state_dict names are those of the
published checkpoints; section and equation numbers are the paper's. A class names the classes
of its parts in attributes, so that the fast network differs in nothing but what it runs; SKIP
is False in ablations only.
"""

from collections.abc import Callable, Iterable
from numbers import Integral

import torch
from torch import nn

from .filters import BINOMIAL, PADDING_ALIASES, PADDING_MODES, binomial_filter, pad_amounts


def check_count(owner: str, least: int = 1, **given: object) -> None:
    """Raise ValueError where an argument of a constructor is no integer of at least `least`."""
    for name, value in given.items():
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{owner}: {name} must be an integer of at least {least}; got {value!r}")


def check_odd(owner: str, **given: object) -> None:
    """Raise ValueError where an argument of a constructor is no odd integer of at least 1."""
    for name, value in given.items():
        if not isinstance(value, Integral) or value < 1 or value % 2 == 0:
            raise ValueError(f"{owner}: {name} must be an odd integer of at least 1; got {value!r}")


def conv(in_channels: int, out_channels: int, kernel_size: int, bias: bool = False) -> nn.Conv2d:
    """A convolution that keeps height and width, as those of an odd size do."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)


class SKFF(nn.Module):
    """Selective kernel feature fusion of `height` branches (section 3.1, equations 1 and 2)."""

    def __init__(self, in_channels: int, height: int = 3, reduction: int = 8, bias: bool = False) -> None:
        super().__init__()
        check_count("SKFF", in_channels=in_channels, height=height, reduction=reduction)
        squeezed = max(in_channels // reduction, 4)
        self.conv_du = nn.Sequential(nn.Conv2d(in_channels, squeezed, 1, bias=bias), nn.PReLU())
        self.fcs = nn.ModuleList(nn.Conv2d(squeezed, in_channels, 1, bias=bias) for _ in range(height))

    def forward(self, branches: list[torch.Tensor]) -> torch.Tensor:
        """[(N, C, H, W)] * height -> (N, C, H, W)."""
        stacked = torch.stack(list(branches), dim=1)
        pooled = stacked.sum(dim=1).mean(dim=(2, 3), keepdim=True)
        squeezed = self.conv_du(pooled)
        logits = torch.stack([fc(squeezed) for fc in self.fcs], dim=1)
        return (stacked * torch.softmax(logits, dim=1)).sum(dim=1)


class SpatialAttention(nn.Module):
    """One gate a pixel, from the channels' maximum and mean (section 3.2)."""

    class Gate(nn.Module):
        def __init__(self, kernel_size: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

        def forward(self, pooled: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(self.conv(pooled))

    def __init__(self, kernel_size: int = 5) -> None:
        super().__init__()
        check_odd("SpatialAttention", kernel_size=kernel_size)
        self.spatial = self.Gate(kernel_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.cat([x.max(dim=1, keepdim=True).values, x.mean(dim=1, keepdim=True)], dim=1)
        return x * self.spatial(pooled)


class ChannelAttention(nn.Module):
    """One gate a channel, from its global mean (section 3.2)."""

    def __init__(self, channels: int, reduction: int = 8, bias: bool = False) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1, bias=bias),
            nn.ReLU(),
            nn.Conv2d(channels // reduction, channels, 1, bias=bias),
            nn.Sigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.conv_du(x.mean(dim=(2, 3), keepdim=True))


class DAU(nn.Module):
    """Dual attention unit (section 3.2, equation 3)."""

    SKIP = True

    def __init__(
        self,
        n_feat: int,
        kernel_size: int = 3,
        reduction: int = 8,
        bias: bool = False,
        bn: bool = False,
        act: nn.Module | None = None,
        res_scale: float = 1,
    ) -> None:
        super().__init__()
        if bn or res_scale != 1:
            raise ValueError(f"DAU: only bn=False and res_scale=1 are published, got {bn=}, {res_scale=}")
        check_count("DAU", n_feat=n_feat, reduction=reduction)
        check_odd("DAU", kernel_size=kernel_size)
        act = nn.PReLU() if act is None else act
        self.body = nn.Sequential(
            conv(n_feat, n_feat, kernel_size, bias), act, conv(n_feat, n_feat, kernel_size, bias)
        )
        self.SA = SpatialAttention()
        self.CA = ChannelAttention(n_feat, reduction, bias)
        self.conv1x1 = nn.Conv2d(2 * n_feat, n_feat, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        r = self.body(x)
        fused = self.conv1x1(torch.cat([self.SA(r), self.CA(r)], dim=1))
        return fused + x if self.SKIP else fused


class Downsample(nn.Module):
    """Blur-pool: anti-aliased down-sampling (Zhang, ICML 2019)."""

    def __init__(
        self,
        pad_type: str = "reflect",
        filt_size: int = 3,
        stride: int = 2,
        channels: int | None = None,
        pad_off: int = 0,
    ) -> None:
        super().__init__()
        pad_type = PADDING_ALIASES.get(pad_type, pad_type)
        if pad_type not in PADDING_MODES:
            raise ValueError(f"Downsample: pad_type must be one of {[*PADDING_MODES]}; got {pad_type!r}")
        if filt_size not in BINOMIAL:
            raise ValueError(f"Downsample: filt_size must be from 1 to 7; got {filt_size}")
        if channels is None or channels < 1:
            raise ValueError(f"Downsample: channels must be at least 1; got {channels}")
        self.pad_type, self.filt_size, self.stride, self.pad_off = pad_type, filt_size, stride, pad_off
        self.channels = channels
        before, after = pad_amounts(filt_size, pad_off)
        self.pad_sizes = (before, after, before, after)
        self.register_buffer("filt", binomial_filter(filt_size).repeat(channels, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride)) for pad_off = 0."""
        padded = nn.functional.pad(x, self.pad_sizes, mode=PADDING_MODES[self.pad_type])
        return nn.functional.conv2d(padded, self.filt, stride=self.stride, groups=x.shape[1])


class ResidualDownSample(nn.Module):
    """C channels to 2C at half the resolution (section 3.3, figure 5a)."""

    Blur = Downsample

    def __init__(self, in_channels: int, bias: bool = False) -> None:
        super().__init__()
        self.top = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 1, bias=bias),
            nn.PReLU(),
            conv(in_channels, in_channels, 3, bias),
            nn.PReLU(),
            self.Blur(channels=in_channels, filt_size=3, stride=2),
            nn.Conv2d(in_channels, 2 * in_channels, 1, bias=bias),
        )
        self.bot = nn.Sequential(
            self.Blur(channels=in_channels, filt_size=3, stride=2),
            nn.Conv2d(in_channels, 2 * in_channels, 1, bias=bias),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.top(x) + self.bot(x)


class ResidualUpSample(nn.Module):
    """C channels to C/2 at double the resolution (section 3.3, figure 5b)."""

    def __init__(self, in_channels: int, bias: bool = False) -> None:
        super().__init__()
        self.top = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 1, bias=bias),
            nn.PReLU(),
            nn.ConvTranspose2d(in_channels, in_channels, 3, stride=2, padding=1, output_padding=1, bias=bias),
            nn.PReLU(),
            nn.Conv2d(in_channels, in_channels // 2, 1, bias=bias),
        )
        self.bot = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(in_channels, in_channels // 2, 1, bias=bias),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.top(x) + self.bot(x)


def octaves(scale_factor: int) -> int:
    """log2 of a power of two."""
    if not isinstance(scale_factor, Integral) or scale_factor < 2 or scale_factor & (scale_factor - 1):
        raise ValueError(f"scale_factor must be a power of two, at least 2; got {scale_factor!r}")
    return int(scale_factor).bit_length() - 1


class _Steps(nn.Module):
    """One `Step` for each number of channels, one after the other."""

    Step: Callable[[int], nn.Module]

    def __init__(self, channels: Iterable[int]) -> None:
        super().__init__()
        self.body = nn.Sequential(*map(self.Step, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class DownSample(_Steps):
    """Down-sampling by a power of two: residual steps of 2, channels times `stride` a step."""

    Step = ResidualDownSample

    def __init__(self, in_channels: int, scale_factor: int, stride: int = 2, kernel_size: int = 3) -> None:
        super().__init__(in_channels * stride**step for step in range(octaves(scale_factor)))


class UpSample(_Steps):
    """Up-sampling by a power of two: residual steps of 2, channels over `stride` a step."""

    Step = ResidualUpSample

    def __init__(self, in_channels: int, scale_factor: int, stride: int = 2, kernel_size: int = 3) -> None:
        super().__init__(in_channels // stride**step for step in range(octaves(scale_factor)))


class MSRB(nn.Module):
    """Multi-scale residual block (section 3, figure 2): `height` streams, `width` columns.

    Stream j has n_feat * stride**j channels at 1 / 2**j of the resolution. The DAUs of one
    stream are one object, used in every column, and SKFF 0 also fuses the end.
    """

    DAU, SKFF, DownSample, UpSample = DAU, SKFF, DownSample, UpSample
    SKIP = True

    def __init__(
        self, n_feat: int, height: int, width: int, stride: int, bias: bool, act: nn.Module | None = None
    ) -> None:
        super().__init__()
        check_count("MSRB", n_feat=n_feat, height=height, width=width, stride=stride)
        self.height, self.width = height, width
        self.channels = [n_feat * stride**j for j in range(height)]
        act = nn.PReLU() if act is None else act
        self.blocks = nn.ModuleList(
            nn.ModuleList([self.DAU(channels, bias=bias, act=act)] * width) for channels in self.channels
        )
        self.last_up = nn.ModuleDict(
            {str(j): self.UpSample(self.channels[j], 2**j, stride) for j in range(1, height)}
        )
        self.down = nn.ModuleDict(
            {
                f"{self.channels[j]}_{2**steps}": self.DownSample(self.channels[j], 2**steps, stride)
                for j in range(height - 1)
                for steps in range(height - 1 - j, 0, -1)
            }
        )
        self.up = nn.ModuleDict(
            {
                f"{self.channels[j]}_{2**steps}": self.UpSample(self.channels[j], 2**steps, stride)
                for j in range(height - 1, 0, -1)
                for steps in range(j, 0, -1)
            }
        )
        self.conv_out = conv(n_feat, n_feat, 3, bias)
        self.selective_kernel = nn.ModuleList(self.SKFF(channels, height) for channels in self.channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H, W); H and W are multiples of 2**(height - 1)."""
        streams = [self.blocks[0][0](x)]
        for j in range(1, self.height):
            streams.append(self.blocks[j][0](self.resample(streams[j - 1], j - 1, j)))
        for column in range(1, self.width):
            fused = [
                self.selective_kernel[j]([self.resample(s, k, j) for k, s in enumerate(streams)])
                for j in range(self.height)
            ]
            streams = [self.blocks[j][column](f) for j, f in enumerate(fused)]
        full = [streams[0]] + [self.last_up[str(j)](streams[j]) for j in range(1, self.height)]
        y = self.conv_out(self.selective_kernel[0](full))
        return x + y if self.SKIP else y

    def resample(self, stream: torch.Tensor, source: int, target: int) -> torch.Tensor:
        """A stream of scale `source`, brought to the channels and resolution of scale `target`."""
        return stream if source == target else self._resampler(source, target)(stream)

    def _resampler(self, source: int, target: int) -> nn.Module:
        resamplers = self.down if source < target else self.up
        return resamplers[f"{self.channels[source]}_{2 ** abs(target - source)}"]


class RRG(nn.Module):
    """Recursive residual group (section 3)."""

    MSRB = MSRB
    SKIP = True

    def __init__(
        self,
        n_feat: int,
        n_MSRB: int,
        height: int,
        width: int,
        stride: int,
        bias: bool = False,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_count("RRG", 0, n_MSRB=n_MSRB)
        act = nn.PReLU() if act is None else act
        blocks = [self.MSRB(n_feat, height, width, stride, bias, act) for _ in range(n_MSRB)]
        self.body = nn.Sequential(*blocks, conv(n_feat, n_feat, 3, bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + x if self.SKIP else self.body(x)


class MIRNet(nn.Module):
    """MIRNet: (N, in_channels, H, W) -> (N, out_channels, H, W), the input added at the end.

    H and W must be multiples of 2**(height - 1). One PReLU is shared by every DAU of the
    network, as the published checkpoints have it.
    """

    RRG = RRG
    SKIP = True

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        n_feat: int = 64,
        kernel_size: int = 3,
        stride: int = 2,
        n_RRG: int = 3,
        n_MSRB: int = 2,
        height: int = 3,
        width: int = 2,
        bias: bool = False,
    ) -> None:
        super().__init__()
        check_count("MIRNet", in_channels=in_channels, out_channels=out_channels, n_feat=n_feat)
        check_odd("MIRNet", kernel_size=kernel_size)
        check_count("MIRNet", stride=stride, height=height, width=width)
        check_count("MIRNet", 0, n_RRG=n_RRG, n_MSRB=n_MSRB)
        act = nn.PReLU()
        self.conv_in = conv(in_channels, n_feat, kernel_size, bias)
        self.body = nn.Sequential(
            *(self.RRG(n_feat, n_MSRB, height, width, stride, bias, act) for _ in range(n_RRG))
        )
        self.conv_out = conv(n_feat, out_channels, kernel_size, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv_out(self.body(self.conv_in(x)))
        return y + x if self.SKIP else y
