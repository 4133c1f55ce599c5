"""The schemas of the CPU engine's transposed 3x3 convolutions of stride 2, for inference.

`conv_transpose3x3(x, weight, bias, slope)` is conv_transpose2d with stride 2, padding 1 and output padding
1, then a PReLU by `slope` (1 or C' values); `conv_transpose3x3_into` writes into `out`, not `x`. Layout,
accuracy and special values are as conv3x3's.
"""

import torch

from ._registration import define_for_cpu

EPILOGUE = "Tensor? bias, Tensor? slope"


def _output(x, weight, bias, slope):
    n, _, h, w = x.shape
    size = n, weight.shape[1], 2 * h, 2 * w
    return torch.empty(size, device=x.device, memory_format=torch.channels_last)


define_for_cpu(f"conv_transpose3x3(Tensor x, Tensor weight, {EPILOGUE}) -> Tensor", _output)
define_for_cpu(f"conv_transpose3x3_into(Tensor(a!) out, Tensor x, Tensor weight, {EPILOGUE}) -> ()")
