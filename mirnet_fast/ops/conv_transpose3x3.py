"""The CPU engine's transposed 3x3 convolutions of stride 2.

`torch.ops.mirnet_fast_cpu.conv_transpose3x3(x, weight, bias)` is conv_transpose2d with stride 2, padding 1
and output padding 1. Layout, accuracy and special values are as conv3x3's; the gradients are PyTorch's. For
inference there is `residual_up_tail_of_conv` of `mirnet_fast.engine.in_place`.
"""

import torch

from . import _checks
from ._registration import define_for_cpu, register_cpu_gradient


def _output(x, weight, bias):
    n, _, h, w = x.shape
    size = n, weight.shape[1], 2 * h, 2 * w
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def check(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    _checks.convolution("conv_transpose3x3", x, weight, bias, None, inputs=0)


define_for_cpu("conv_transpose3x3(Tensor x, Tensor weight, Tensor? bias) -> Tensor", check, _output)


def _keep(ctx, inputs, output):
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _gradient(ctx, grad):
    x, weight = ctx.saved_tensors
    sizes = [weight.shape[1]] if ctx.has_bias else None
    geometry = sizes, [2, 2], [1, 1], [1, 1], True, [1, 1], 1
    return torch.ops.aten.convolution_backward(grad, x, weight, *geometry, list(ctx.needs_input_grad))


register_cpu_gradient("conv_transpose3x3", _gradient, _keep)
