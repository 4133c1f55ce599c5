"""The CPU engine's 1x1 convolutions, for inference: `conv1x1_into` of `mirnet_fast.engine.in_place`."""

from typing import Any

import torch

from . import _checks
from ._registration import define_for_cpu


def check_into(out: torch.Tensor, x: torch.Tensor, *layer: Any) -> None:
    op = "conv1x1"
    outputs = _checks.convolution(op, x, *layer, inputs=1, taps=1)
    _checks.like(op, "out", out, (x.shape[0], outputs, *x.shape[2:]), "x", x)
    _checks.channels_last(op, "out", out)


define_for_cpu(
    "conv1x1_into(Tensor(a!) out, Tensor x, Tensor weight, Tensor? bias, Tensor? slope) -> ()", check_into
)
