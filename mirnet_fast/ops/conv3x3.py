"""The schemas of the CPU engine's 3x3 convolutions, for inference: torch.ops.mirnet_fast_cpu.conv3x3...

`conv3x3(x, weight, bias, slope, residual)` is conv2d with zero padding 1, then a PReLU by `slope` (1 or
C' values), then `+ residual`; `conv3x3_into` writes into `out` (which may be `residual`, not `x`) and
gives `pooled` (N, 2, H, W), the maximum and mean over the channels, and `sums` (N, C'), float64.

All maps are float32 and channels_last. The error is below 3e-6 of the output's norm. Where an input is
NaN or infinite, outputs up to two pixels beyond its reach may be NaN too.
"""

import torch

from ._registration import define_for_cpu

EPILOGUE = "Tensor? bias, Tensor? slope, Tensor? residual"


def _output(x, weight, bias, slope, residual):
    n, _, h, w = x.shape
    return torch.empty(n, weight.shape[0], h, w, device=x.device, memory_format=torch.channels_last)


define_for_cpu(f"conv3x3(Tensor x, Tensor weight, {EPILOGUE}) -> Tensor", _output)
define_for_cpu(
    f"conv3x3_into(Tensor(a!) out, Tensor x, Tensor weight, {EPILOGUE}, "
    "Tensor(b!)? pooled, Tensor(c!)? sums) -> ()"
)
