"""MIRNetv2 as a stranger would write it down from its paper, for the tests of accelerate().

Zamir et al., "Learning Enriched Features for Fast Image Restoration and Enhancement", TPAMI 2022 (arXiv
2205.01649): three streams of residual contextual blocks, fused in pairs from the coarsest up. What the paper
leaves open (how streams are resampled, where activations stand) was chosen here, so this is its structure and
cost, not its numbers. It imports nothing of mirnet_fast.
"""

import torch
from torch import nn


def conv(inputs, outputs, size, groups=1):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)


class Context(nn.Module):
    """What all pixels say, weighted by a softmax over them, added to each."""

    def __init__(self, width):
        super().__init__()
        self.mask = nn.Conv2d(width, 1, 1, bias=False)
        self.transform = nn.Sequential(conv(width, width, 1), nn.LeakyReLU(0.2), conv(width, width, 1))

    def forward(self, x):
        weights = self.mask(x).flatten(2).softmax(2)  # (N, 1, H * W)
        context = x.flatten(2) @ weights.transpose(1, 2)  # (N, C, 1)
        return x + self.transform(context[..., None])


class ContextualBlock(nn.Module):
    """RCB: two convolutions, in groups, and the context, around a residual."""

    def __init__(self, width, groups):
        super().__init__()
        self.body = nn.Sequential(
            conv(width, width, 3, groups), nn.LeakyReLU(0.2), conv(width, width, 3, groups)
        )
        self.context, self.act = Context(width), nn.LeakyReLU(0.2)

    def forward(self, x):
        return x + self.act(self.context(self.body(x)))


class Fusion(nn.Module):
    """SKFF, of two streams."""

    def __init__(self, width):
        super().__init__()
        narrow = max(width // 8, 4)
        self.squeeze = nn.Sequential(conv(width, narrow, 1), nn.LeakyReLU(0.2))
        self.heads = nn.ModuleList(conv(narrow, width, 1) for _ in range(2))

    def forward(self, streams):
        code = self.squeeze(sum(streams).mean((2, 3), keepdim=True))
        shares = torch.stack([head(code) for head in self.heads]).softmax(0)
        return streams[0] * shares[0] + streams[1] * shares[1]


class Down(nn.Sequential):
    def __init__(self, width, wider):
        super().__init__(nn.AvgPool2d(2), conv(width, wider, 1))


class Up(nn.Sequential):
    def __init__(self, width, narrower):
        super().__init__(conv(width, narrower, 1), nn.Upsample(scale_factor=2, mode="bilinear"))


class Block(nn.Module):
    """MRB: twice the contextual blocks of all streams, then their fusion."""

    def __init__(self, widths):
        super().__init__()
        fine, middle, coarse = widths
        groups = (1, 2, 4)
        self.down = nn.ModuleList([Down(fine, middle), Down(middle, coarse)])
        self.columns = nn.ModuleList(
            nn.ModuleList(ContextualBlock(width, g) for width, g in zip(widths, groups, strict=True))
            for _ in range(2)
        )
        self.up = nn.ModuleList(nn.ModuleList([Up(coarse, middle), Up(middle, fine)]) for _ in range(2))
        self.fuse = nn.ModuleList(nn.ModuleList([Fusion(middle), Fusion(fine)]) for _ in range(2))
        self.last = conv(fine, fine, 1)

    def forward(self, x):
        middle = self.down[0](x)
        streams = [x, middle, self.down[1](middle)]
        for column, up, fuse in zip(self.columns, self.up, self.fuse, strict=True):
            fine, middle, coarse = (block(s) for block, s in zip(column, streams, strict=True))
            middle = fuse[0]([middle, up[0](coarse)])
            streams = [fuse[1]([fine, up[1](middle)]), middle, coarse]
        return x + self.last(streams[0])


class Group(nn.Module):
    """RRG: blocks and a convolution around a residual."""

    def __init__(self, widths, blocks):
        super().__init__()
        self.body = nn.Sequential(*(Block(widths) for _ in range(blocks)), conv(widths[0], widths[0], 3))

    def forward(self, x):
        return x + self.body(x)


class MIRNetv2(nn.Module):
    def __init__(self, width=80, groups=4, blocks=2):
        super().__init__()
        widths = [width, int(1.5 * width), int(1.5**2 * width)]
        self.head = conv(3, width, 3)
        self.groups = nn.Sequential(*(Group(widths, blocks) for _ in range(groups)))
        self.tail = conv(width, 3, 3)

    def forward(self, image):
        return image + self.tail(self.groups(self.head(image)))
