"""The CPU engine's 1x1 convolutions: torch.ops.mirnet_fast_cpu.conv1x1_into, for inference.

`conv1x1_into(out, x, weight, bias, slope)` is conv2d with a weight (C', C, 1, 1), then a PReLU by `slope` (1
or C' values); it writes into `out`, not `x`. All maps are float32 and channels_last, of any strides beyond
that.
"""

from ._registration import define_for_cpu

define_for_cpu(
    "conv1x1_into(Tensor(a!) out, Tensor x, Tensor weight, Tensor? bias, Tensor? slope) -> ()",
)
