"""The schemas of the CPU engine's transposed 3x3 convolutions of stride 2, for inference.

`conv_transpose3x3_pack(weight)` prepares a weight (C, C', 3, 3) once, for this process's instruction set.
`conv_transpose3x3(x, packed, C', bias, slope)` is conv_transpose2d with stride 2, padding 1 and output
padding 1, then a PReLU by `slope` (1 or C' values); `conv_transpose3x3_into` writes into `out`, not `x`.
Layout, accuracy and special values are as conv3x3's.
"""

import torch

from ._registration import define_for_cpu

EPILOGUE = "Tensor? bias, Tensor? slope"


def _packed(weight):
    inputs, outputs = weight.shape[:2]
    return weight.new_empty(36, inputs, -(-outputs // 16) * 16)


def _output(x, packed, channels, bias, slope):
    n, _, h, w = x.shape
    return torch.empty(n, channels, 2 * h, 2 * w, device=x.device, memory_format=torch.channels_last)


define_for_cpu("conv_transpose3x3_pack(Tensor weight) -> Tensor", _packed)
define_for_cpu(f"conv_transpose3x3(Tensor x, Tensor packed, int channels, {EPILOGUE}) -> Tensor", _output)
define_for_cpu(f"conv_transpose3x3_into(Tensor(a!) out, Tensor x, Tensor packed, {EPILOGUE}) -> ()")
