"""The CPU engine's 3x3 convolutions, by Winograd's method.

`torch.ops.mirnet_fast_cpu.conv3x3(x, weight, bias, slope, residual)` is conv2d with zero padding 1, then a
PReLU by `slope` (1 or C' values), then `+ residual`. It has gradients where neither slope nor residual is
given; x's is such a convolution itself, the weight's is PyTorch's. For inference there is `conv3x3_into` of
`mirnet_fast.engine.in_place`.

All maps are channels_last, and all tensors float32 or all bfloat16. The error is below 3e-6 of the output's
norm, beside the output's rounding to bfloat16. NaN and infinity reach the outputs that PyTorch's convolution
has them at, and no others.
"""

import torch

from . import _checks
from ._registration import define_for_cpu, register_cpu_gradient

EPILOGUE = "Tensor? bias, Tensor? slope, Tensor? residual"


def _output(x, weight, bias, slope, residual):
    n, _, h, w = x.shape
    size = n, weight.shape[0], h, w
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    slope: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> None:
    op = "conv3x3"
    outputs = _checks.convolution(op, x, weight, bias, slope, inputs=1)
    _check_residual(op, residual, (x.shape[0], outputs, *x.shape[2:]), x)


def check_into(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    slope: torch.Tensor | None,
    residual: torch.Tensor | None,
    pooled: torch.Tensor | None,
    sums: torch.Tensor | None,
    first_row: int,
) -> None:
    op = "conv3x3"
    outputs = _checks.convolution(op, x, weight, bias, slope, inputs=1)
    _checks.feature_map(op, "out", out)
    n, height, width = x.shape[0], out.shape[2], x.shape[3]
    _checks.like(op, "out", out, (n, outputs, height, width), "x", x)
    _checks.channels_last(op, "out", out)
    _check_residual(op, residual, out.shape, x)
    _checks.rows(op, first_row, height, x.shape[2])
    _checks.statistics(op, pooled, sums, out.shape, "x", x)


def _check_residual(op, residual, shape, x):
    if residual is not None:
        _checks.like(op, "residual", residual, shape, "x", x)
        _checks.channels_last(op, "residual", residual)


define_for_cpu(f"conv3x3(Tensor x, Tensor weight, {EPILOGUE}) -> Tensor", check, _output)


def _keep(ctx, inputs, output):
    x, weight, bias, slope, residual = inputs
    if slope is not None or residual is not None:
        raise NotImplementedError("conv3x3: there are gradients only without slope and residual")
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _gradient(ctx, grad):
    x, weight = ctx.saved_tensors
    x_grad = None
    if ctx.needs_input_grad[0]:
        turned = weight.flip(2, 3).transpose(0, 1).contiguous()
        grad = grad.contiguous(memory_format=torch.channels_last)
        x_grad = torch.ops.mirnet_fast_cpu.conv3x3(grad, turned, None, None, None)
    sizes = [weight.shape[0]] if ctx.has_bias else None
    wanted = [False, ctx.needs_input_grad[1], ctx.needs_input_grad[2]]
    geometry = sizes, [1, 1], [1, 1], [1, 1], False, [0, 0], 1
    _, *others = torch.ops.aten.convolution_backward(grad, x, weight, *geometry, wanted)
    return x_grad, *others, None, None


register_cpu_gradient("conv3x3", _gradient, _keep)
define_for_cpu(
    f"conv3x3_into(Tensor(a!) out, Tensor x, Tensor weight, {EPILOGUE}, "
    "Tensor(b!)? pooled, Tensor(c!)? sums, int first_row=0) -> ()",
    check_into,
)
