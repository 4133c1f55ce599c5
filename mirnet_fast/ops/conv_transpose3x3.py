"""The CPU engine's transposed 3x3 convolutions of stride 2.

`conv_transpose3x3(x, weight, bias, slope)` is conv_transpose2d with stride 2, padding 1 and output padding
1, then a PReLU by `slope` (1 or C' values); `conv_transpose3x3_into` writes into `out`, not `x`: where it
has fewer rows than 2H, those from `2 * first_row` on. Layout, accuracy and special values are as
conv3x3's. `conv_transpose3x3` has gradients, PyTorch's, where no slope is given.
"""

import torch

from . import _checks
from ._registration import define_for_cpu, register_cpu_gradient

EPILOGUE = "Tensor? bias, Tensor? slope"


def _output(x, weight, bias, slope):
    n, _, h, w = x.shape
    size = n, weight.shape[1], 2 * h, 2 * w
    return torch.empty(size, device=x.device, memory_format=torch.channels_last)


def check(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, slope: torch.Tensor | None
) -> None:
    _checks.convolution("conv_transpose3x3", x, weight, bias, slope, inputs=0)


def check_into(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    slope: torch.Tensor | None,
    first_row: int,
) -> None:
    op = "conv_transpose3x3"
    outputs = _checks.convolution(op, x, weight, bias, slope, inputs=0)
    _checks.feature_map(op, "out", out)
    rows = out.shape[2] // 2
    _checks.like(op, "out", out, (x.shape[0], outputs, 2 * rows, 2 * x.shape[3]), "x", x)
    _checks.channels_last(op, "out", out)
    _checks.rows(op, first_row, rows, x.shape[2])


define_for_cpu(f"conv_transpose3x3(Tensor x, Tensor weight, {EPILOGUE}) -> Tensor", check, _output)


def _keep(ctx, inputs, output):
    x, weight, bias, slope = inputs
    if slope is not None:
        raise NotImplementedError("conv_transpose3x3: there are gradients only without slope")
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _gradient(ctx, grad):
    x, weight = ctx.saved_tensors
    sizes = [weight.shape[1]] if ctx.has_bias else None
    geometry = sizes, [2, 2], [1, 1], [1, 1], True, [1, 1], 1
    wanted = list(ctx.needs_input_grad[:3])
    return *torch.ops.aten.convolution_backward(grad, x, weight, *geometry, wanted), None


register_cpu_gradient("conv_transpose3x3", _gradient, _keep)
define_for_cpu(
    f"conv_transpose3x3_into(Tensor(a!) out, Tensor x, Tensor weight, {EPILOGUE}, int first_row=0) -> ()",
    check_into,
)
