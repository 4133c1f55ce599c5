"""A stranger's implementation of MIRNet, for the tests of accelerate().

It has the class names and state_dict names of the published checkpoints and nothing else in
common with this package: own constructor arguments, own order of operators, parts that the
reference lacks (pooling, softmax and padding as modules). It imports nothing of mirnet_fast.
"""

import torch
import torch.nn.functional as F
from torch import nn


class SKFF(nn.Module):
    def __init__(self, width, branches=3, ratio=8, use_bias=False, nonlinearity=None):
        super().__init__()
        self.n_branches = branches
        hidden = max(width // ratio, 4)
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.conv_du = nn.Sequential(
            nn.Conv2d(width, hidden, 1, padding=0, bias=use_bias),
            nn.PReLU() if nonlinearity is None else nonlinearity,
        )
        self.fcs = nn.ModuleList()
        for _ in range(branches):
            self.fcs.append(nn.Conv2d(hidden, width, kernel_size=1, bias=use_bias))
        self.normalise = nn.Softmax(dim=0)

    def forward(self, feats):
        code = self.conv_du(self.pool(sum(feats)))
        scores = self.normalise(torch.stack([head(code) for head in self.fcs]))
        out = 0
        for feat, score in zip(feats, scores, strict=True):
            out = out + feat * score
        return out


class MaxAndMean(nn.Module):
    def forward(self, t):
        return torch.stack((t.amax(1), t.mean(1)), 1)


class GateConv(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, (k, k), stride=1, padding=(k - 1) // 2, bias=False)
        self.norm = None

    def forward(self, t):
        return self.conv(t) if self.norm is None else self.norm(self.conv(t))


class PixelGate(nn.Module):
    def __init__(self, k=5):
        super().__init__()
        self.squash = MaxAndMean()
        self.spatial = GateConv(k)

    def forward(self, t):
        return self.spatial(self.squash(t)).sigmoid() * t


class FeatureGate(nn.Module):
    def __init__(self, width, ratio, use_bias, with_pool=True):
        super().__init__()
        self.global_pool = nn.AdaptiveAvgPool2d(1) if with_pool else None
        self.conv_du = nn.Sequential(
            nn.Conv2d(width, width // ratio, 1, bias=use_bias),
            nn.ReLU(inplace=True),
            nn.Conv2d(width // ratio, width, 1, bias=use_bias),
            nn.Sigmoid(),
        )

    def forward(self, t):
        pooled = t.mean((-2, -1), keepdim=True) if self.global_pool is None else self.global_pool(t)
        return self.conv_du(pooled).expand_as(t) * t


class DAU(nn.Module):
    def __init__(self, width, k=3, ratio=8, use_bias=False, act=None, gate_k=5, with_pool=True):
        super().__init__()
        pad = k // 2
        layers = [
            nn.Conv2d(width, width, k, padding=pad, bias=use_bias),
            nn.PReLU() if act is None else act,
            nn.Conv2d(width, width, k, padding=pad, bias=use_bias),
        ]
        self.body = nn.Sequential(*layers)
        self.SA = PixelGate(gate_k)
        self.CA = FeatureGate(width, ratio, use_bias, with_pool)
        self.conv1x1 = nn.Conv2d(width * 2, width, 1, bias=use_bias)

    def forward(self, inp):
        feat = self.body(inp)
        mixed = self.conv1x1(torch.cat((self.SA(feat), self.CA(feat)), 1))
        mixed = mixed + inp
        return mixed


class Downsample(nn.Module):
    def __init__(self, width, taps=3, step=2, border="reflect", extra=0):
        super().__init__()
        self.stride = step
        self.margins = (taps - 1) // 2 + extra
        row = torch.ones(1)
        for _ in range(taps - 1):
            row = F.pad(row, (1, 0)) + F.pad(row, (0, 1))
        kernel = torch.outer(row, row)
        self.register_buffer("filt", (kernel / kernel.sum()).expand(width, 1, taps, taps).clone())
        last = taps // 2 + extra
        layers = {"reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d, "zero": nn.ZeroPad2d}
        self.border = layers[border]((self.margins, last, self.margins, last))

    def forward(self, t):
        return F.conv2d(self.border(t), self.filt, None, self.stride, groups=t.size(1))


class ResidualDownSample(nn.Module):
    def __init__(self, width, use_bias=False):
        super().__init__()
        self.top = nn.Sequential(
            nn.Conv2d(width, width, 1, bias=use_bias),
            nn.PReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=use_bias),
            nn.PReLU(),
            Downsample(width),
            nn.Conv2d(width, 2 * width, 1, bias=use_bias),
        )
        self.bot = nn.Sequential(Downsample(width), nn.Conv2d(width, 2 * width, 1, bias=use_bias))

    def forward(self, t):
        shortcut = self.bot(t)
        return shortcut + self.top(t)


class ResidualUpSample(nn.Module):
    def __init__(self, width, use_bias=False):
        super().__init__()
        half = width // 2
        self.top = nn.Sequential(
            nn.Conv2d(width, width, 1, bias=use_bias),
            nn.PReLU(),
            nn.ConvTranspose2d(width, width, 3, 2, 1, 1, bias=use_bias),
            nn.PReLU(),
            nn.Conv2d(width, half, 1, bias=use_bias),
        )
        self.bot = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(width, half, 1, bias=use_bias)
        )

    def forward(self, t):
        shortcut = self.bot(t)
        return shortcut + self.top(t)


class DownSample(nn.Module):
    def __init__(self, width, factor, growth=2):
        super().__init__()
        steps = []
        while factor > 1:
            steps.append(ResidualDownSample(width))
            width, factor = width * growth, factor // 2
        self.body = nn.Sequential(*steps)

    def forward(self, t):
        return self.body(t)


class UpSample(nn.Module):
    def __init__(self, width, factor, growth=2):
        super().__init__()
        steps = []
        while factor > 1:
            steps.append(ResidualUpSample(width))
            width, factor = width // growth, factor // 2
        self.body = nn.Sequential(*steps)

    def forward(self, t):
        return self.body(t)


class MSRB(nn.Module):
    def __init__(self, base, rows=3, columns=2, growth=2, use_bias=False, act=None):
        super().__init__()
        self.rows, self.columns = rows, columns
        self.widths = [base * growth**row for row in range(rows)]
        units = [DAU(w, use_bias=use_bias, act=act) for w in self.widths]
        self.blocks = nn.ModuleList([nn.ModuleList([unit for _ in range(columns)]) for unit in units])
        self.last_up, self.down, self.up = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for row in range(1, rows):
            self.last_up[f"{row}"] = UpSample(self.widths[row], 2**row, growth)
        for row, w in enumerate(self.widths):
            for octave in range(rows - 1 - row, 0, -1):
                self.down[f"{w}_{2**octave}"] = DownSample(w, 2**octave, growth)
        for row, w in reversed(list(enumerate(self.widths))):
            for octave in range(row, 0, -1):
                self.up[f"{w}_{2**octave}"] = UpSample(w, 2**octave, growth)
        self.conv_out = nn.Conv2d(base, base, 3, padding=1, bias=use_bias)
        self.selective_kernel = nn.ModuleList([SKFF(w, rows) for w in self.widths])

    def move(self, feat, start, end):
        if start < end:
            return self.down[f"{self.widths[start]}_{2 ** (end - start)}"](feat)
        if start > end:
            return self.up[f"{self.widths[start]}_{2 ** (start - end)}"](feat)
        return feat

    def forward(self, image):
        feats, current = [], image
        for row in range(self.rows):
            current = self.blocks[row][0](self.move(current, row - 1, row) if row else current)
            feats.append(current)
        for column in range(1, self.columns):
            gathered = [
                [self.move(f, start, end) for start, f in enumerate(feats)] for end in range(self.rows)
            ]
            feats = [self.blocks[r][column](self.selective_kernel[r](g)) for r, g in enumerate(gathered)]
        full = [feats[0], *(self.last_up[f"{r}"](feats[r]) for r in range(1, self.rows))]
        return self.conv_out(self.selective_kernel[0](full)) + image


class RRG(nn.Module):
    def __init__(self, base, blocks, **options):
        super().__init__()
        self.body = nn.Sequential(
            *[MSRB(base, **options) for _ in range(blocks)], nn.Conv2d(base, base, 3, padding=1, bias=False)
        )

    def forward(self, t):
        return t + self.body(t)


class MIRNet(nn.Module):
    def __init__(self, base=64, groups=3, blocks=2, rows=3, columns=2, colours=3):
        super().__init__()
        slope = nn.PReLU()
        self.conv_in = nn.Conv2d(colours, base, 3, padding=1, bias=False)
        options = {"rows": rows, "columns": columns, "act": slope}
        self.body = nn.Sequential(*(RRG(base, blocks, **options) for _ in range(groups)))
        self.conv_out = nn.Conv2d(base, colours, 3, padding=1, bias=False)

    def forward(self, picture):
        return picture + self.conv_out(self.body(self.conv_in(picture)))
