"""A second stranger's MIRNet, for the tests of accelerate(): with names of its own for all classes and parts.

The parts are registered in another order, the tables of resamplers have other keys or none, and what
tests/lookalike.py has as modules (the pooling, the padding) stands in the forwards. It imports nothing of
mirnet_fast.
"""

import torch
import torch.nn.functional as F
from torch import nn


def same(incoming, outgoing, size):
    return nn.Conv2d(incoming, outgoing, size, padding="same", bias=False)


class AntiAlias(nn.Module):
    def __init__(self, width):
        super().__init__()
        row = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("kernel", torch.outer(row, row).repeat(width, 1, 1, 1))

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.kernel, stride=2, groups=x.shape[1])


class Halve(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.skip = nn.Sequential(AntiAlias(width), same(width, 2 * width, 1))
        self.main = nn.Sequential(
            same(width, width, 1),
            nn.PReLU(),
            same(width, width, 3),
            nn.PReLU(),
            AntiAlias(width),
            same(width, 2 * width, 1),
        )

    def forward(self, x):
        return self.main(x) + self.skip(x)


class Double(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.skip = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False), same(width, width // 2, 1)
        )
        self.main = nn.Sequential(
            same(width, width, 1),
            nn.PReLU(),
            nn.ConvTranspose2d(width, width, 3, stride=2, padding=1, output_padding=1, bias=False),
            nn.PReLU(),
            same(width, width // 2, 1),
        )

    def forward(self, x):
        return self.main(x) + self.skip(x)


class Octaves(nn.Module):
    """From one stream to another one."""

    def __init__(self, base, start, end):
        super().__init__()
        if start < end:
            self.path = nn.Sequential(*[Halve(base * 2**j) for j in range(start, end)])
        else:
            self.path = nn.Sequential(*[Double(base * 2**j) for j in range(start, end, -1)])

    def forward(self, x):
        return self.path(x)


class Blend(nn.Module):
    def __init__(self, width, count):
        super().__init__()
        narrow = max(width // 8, 4)
        self.heads = nn.ModuleList([same(narrow, width, 1) for _ in range(count)])
        self.neck = nn.Sequential(same(width, narrow, 1), nn.PReLU())

    def forward(self, branches):
        code = self.neck(sum(branches).mean((2, 3), keepdim=True))
        weights = torch.stack([head(code) for head in self.heads]).softmax(0)
        return sum(branch * weight for branch, weight in zip(branches, weights, strict=True))


class PixelGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.look = same(2, 1, 5)

    def forward(self, x):
        return x * self.look(torch.stack([x.amax(1), x.mean(1)], 1)).sigmoid()


class ChannelGate(nn.Module):
    def __init__(self, width):
        super().__init__()
        narrow = width // 8
        self.weigh = nn.Sequential(same(width, narrow, 1), nn.ReLU(), same(narrow, width, 1), nn.Sigmoid())

    def forward(self, x):
        return x * self.weigh(x.mean((2, 3), keepdim=True))


class Unit(nn.Module):
    def __init__(self, width, act):
        super().__init__()
        self.channels, self.pixels = ChannelGate(width), PixelGate()
        self.join = same(2 * width, width, 1)
        self.convs = nn.Sequential(same(width, width, 3), act, same(width, width, 3))

    def forward(self, x):
        y = self.convs(x)
        return x + self.join(torch.cat([self.pixels(y), self.channels(y)], 1))


class Scales(nn.Module):
    def __init__(self, base, act, scales, columns):
        super().__init__()
        self.scales, self.columns = scales, columns
        every = range(scales)
        self.tail = same(base, base, 3)
        self.blends = nn.ModuleList([Blend(base * 2**j, scales) for j in every])
        units = [Unit(base * 2**j, act) for j in every]
        self.units = nn.ModuleList([nn.ModuleList([unit] * columns) for unit in units])
        self.sink = nn.ModuleDict({f"{i} to {j}": Octaves(base, i, j) for i in every for j in every if i < j})
        self.rise = nn.ModuleDict({f"{i} to {j}": Octaves(base, i, j) for i in every for j in every if i > j})
        self.finish = nn.ModuleList([Octaves(base, j, 0) for j in every[1:]])

    def bring(self, x, start, end):
        if start == end:
            return x
        return (self.sink if start < end else self.rise)[f"{start} to {end}"](x)

    def forward(self, x):
        streams = [self.units[0][0](x)]
        for j in range(1, self.scales):
            streams.append(self.units[j][0](self.bring(streams[-1], j - 1, j)))
        for column in range(1, self.columns):
            blended = [
                blend([self.bring(stream, i, j) for i, stream in enumerate(streams)])
                for j, blend in enumerate(self.blends)
            ]
            streams = [row[column](y) for row, y in zip(self.units, blended, strict=True)]
        raised = [up(stream) for up, stream in zip(self.finish, streams[1:], strict=True)]
        return x + self.tail(self.blends[0]([streams[0], *raised]))


class Group(nn.Module):
    def __init__(self, base, blocks, act, scales, columns):
        super().__init__()
        inner = [Scales(base, act, scales, columns) for _ in range(blocks)]
        self.layers = nn.Sequential(*inner, same(base, base, 3))

    def forward(self, x):
        return self.layers(x).add(x)


class Restorer(nn.Module):
    def __init__(self, base=64, groups=3, blocks=2, scales=3, columns=2, colours=3):
        super().__init__()
        self.last = same(base, colours, 3)
        act = nn.PReLU()
        self.trunk = nn.Sequential(*[Group(base, blocks, act, scales, columns) for _ in range(groups)])
        self.first = same(colours, base, 3)

    def forward(self, x):
        return x + self.last(self.trunk(self.first(x)))
