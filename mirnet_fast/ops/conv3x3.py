"""The schemas of the CPU engine's 3x3 convolutions, for inference: torch.ops.mirnet_fast_cpu.conv3x3...

`conv3x3_pack(weight)` prepares a weight (C', C, 3, 3) once, for this process's instruction set.
`conv3x3(x, packed, C', bias, slope, residual)` is conv2d with zero padding 1, then a PReLU by `slope`
(1 or C' values), then `+ residual`; `conv3x3_into` writes into `out` (which may be `residual`, not `x`)
and gives `pooled` (N, 2, H, W), the maximum and mean over the channels, and `sums` (N, C'), float64.
`conv3x3_fingerprint(weight)` is 64 bits of a weight's values, which tell a packed weight from a stale one.

All maps are float32 and channels_last. The error is below 3e-6 of the output's norm. Where an input is
NaN or infinite, outputs up to two pixels beyond its reach may be NaN too.
"""

import torch

from ._registration import define_for_cpu

EPILOGUE = "Tensor? bias, Tensor? slope, Tensor? residual"


def _packed(weight):
    outputs, inputs = weight.shape[:2]
    return weight.new_empty(36, inputs, -(-outputs // 16) * 16)


def _output(x, packed, channels, bias, slope, residual):
    n, _, h, w = x.shape
    return torch.empty(n, channels, h, w, device=x.device, memory_format=torch.channels_last)


define_for_cpu("conv3x3_fingerprint(Tensor weight) -> int", lambda weight: 0)
define_for_cpu("conv3x3_pack(Tensor weight) -> Tensor", _packed)
define_for_cpu(f"conv3x3(Tensor x, Tensor packed, int channels, {EPILOGUE}) -> Tensor", _output)
define_for_cpu(
    f"conv3x3_into(Tensor(a!) out, Tensor x, Tensor packed, {EPILOGUE}, "
    "Tensor(b!)? pooled, Tensor(c!)? sums) -> ()"
)
