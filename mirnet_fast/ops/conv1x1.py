"""The CPU engine's 1x1 convolutions: torch.ops.mirnet_fast_cpu.conv1x1_into, for inference.

`conv1x1_into(out, x, weight, bias, slope)` is conv2d with a weight (C', C, 1, 1), then a PReLU by `slope` (1
or C' values); it writes into `out`, not `x`. All maps are float32 and channels_last, of any strides beyond
that.
"""

import torch

from . import _checks
from ._registration import define_for_cpu


def check_into(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    slope: torch.Tensor | None,
) -> None:
    op = "conv1x1"
    outputs = _checks.convolution(op, x, weight, bias, slope, inputs=1, taps=1)
    _checks.like(op, "out", out, (x.shape[0], outputs, *x.shape[2:]), "x", x)
    _checks.channels_last(op, "out", out)


define_for_cpu(
    "conv1x1_into(Tensor(a!) out, Tensor x, Tensor weight, Tensor? bias, Tensor? slope) -> ()", check_into
)
