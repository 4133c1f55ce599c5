"""What the fused modules do with convolutions on the CPU: less arithmetic, and without gradients less memory.

3x3 convolutions in float32 run by Winograd's method; where no gradient is wanted, with what follows them
in the same pass. Others of large maps then run in bands of rows: what one convolution hands to the next
stays in the cache. The maps that remain lie in one mapping (`_arena.py`).
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from .. import backends
from ._arena import empty_map

BAND_BYTES = 2**24  # it stays in the last-level cache
TILE = 4


def slope_of(activation, like):
    """The slope argument of the ops for a PReLU, LeakyReLU or ReLU module."""
    if isinstance(activation, nn.PReLU):
        return activation.weight
    if isinstance(activation, nn.LeakyReLU):
        return like.new_full((1,), activation.negative_slope)
    return None


def may_overwrite(x, *producers):
    """Whether tensors that these modules make from x on the CPU are nobody else's."""
    return not torch.is_grad_enabled() and _may_replace(x, *producers)


def _may_replace(x, *producers):
    """Whether anything else may run on the CPU in place of these modules."""
    return (
        type(x) is torch.Tensor
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        # A hook may have kept what its module returned.
        and not _has_any_global_hook()
        and not any(module._forward_hooks or module._forward_pre_hooks for module in producers)
    )


def may_write_into(op, x, *producers):
    """Whether, beyond that, the C++ kernels' in-place form of `op` fits: it takes x as it is."""
    return (
        may_overwrite(x, *producers)
        and not torch.is_autocast_enabled("cpu")
        and x.is_contiguous(memory_format=torch.channels_last)
        and backends.pick(op, "cpu", x.dtype) == "cpu"
    )


def activated(conv, activation, x):
    """activation(conv(x)), in place where that is safe."""
    return _activate(activation, convolved(conv, x), may_overwrite(x, conv, activation))


def convolved(conv, x):
    """conv(x) of a convolution that keeps the resolution; it has gradients."""
    if _may_replace(x, conv) and _is_plain(conv) and by_winograd(conv, x):
        return torch.ops.mirnet_fast_cpu.conv3x3(x, conv.weight, conv.bias, None, None)
    return conv(x)


def activated_conv(first, activation, second, x, statistics=None):
    """second(activation(first(x))) of 1x1 and 3x3 convolutions that keep the resolution.

    statistics: a list; where they cost nothing, the result's that dau_attention_into takes are put there.
    """
    producers = (first, activation, second)
    plain = may_overwrite(x, *producers) and _is_plain(first) and _is_plain(second)
    if plain and by_winograd(second, x):
        fused = by_winograd(first, x) and type(activation) is nn.PReLU
        between = winograd(first, x, activation.weight) if fused else activated(first, activation, x)
        return winograd(second, between, statistics=statistics)
    if not plain or len(bands(x)) == 1:
        return convolved(second, activated(first, activation, x))
    out = empty_map((x.shape[0], second.out_channels, *x.shape[2:]), x)
    halo = second.padding[0]
    for begin, end in bands(x):
        above, below = max(begin - halo, 0), min(end + halo, x.shape[2])
        between = _activate(activation, _conv_rows(first, x, above, below), True)
        out[:, :, begin:end] = _conv_rows(second, between, begin - above, end - above)
    return out


def add_conv(conv, x, residual):
    """conv(x) + residual."""
    plain = may_overwrite(x, conv) and _is_plain(conv)
    if plain and by_winograd(conv, x):
        return winograd(conv, x, residual=residual)
    if not plain or len(bands(x)) == 1:
        return convolved(conv, x) + residual
    out = empty_map(residual.shape, residual)
    for begin, end in bands(x):
        rows = _conv_rows(conv, x, begin, end)
        torch.add(rows, residual[:, :, begin:end], out=out[:, :, begin:end])
    return out


def transposed_conv(conv, x):
    """conv(x) of a transposed 3x3 convolution that doubles the resolution."""
    doubles = (
        type(conv) is nn.ConvTranspose2d
        and conv.kernel_size == (3, 3)
        and conv.stride == (2, 2)
        and conv.padding == conv.output_padding == conv.dilation == (1, 1)
    )
    if not (doubles and _may_replace(x, conv) and _is_for_engine(conv, x)):
        return conv(x)
    if may_overwrite(x, conv):
        return transposed_by_winograd(conv, x)
    return torch.ops.mirnet_fast_cpu.conv_transpose3x3(x, conv.weight, conv.bias, None)


def transposed_by_winograd(conv, x):
    n, _, height, width = x.shape
    out = empty_map((n, conv.out_channels, 2 * height, 2 * width), x)
    torch.ops.mirnet_fast_cpu.conv_transpose3x3_into(out, x, conv.weight, conv.bias, None)
    return out


def by_winograd(conv, x):
    """Whether `winograd` may run a convolution that `_is_plain`."""
    return conv.kernel_size == (3, 3) and _is_for_engine(conv, x)


def winograd(conv, x, slope=None, residual=None, statistics=None):
    """A PReLU of conv(x), + residual; statistics as for `activated_conv`."""
    n, _, height, width = x.shape
    out = empty_map((n, conv.out_channels, height, width), x)
    pooled = sums = None
    if statistics is not None:
        pooled = x.new_empty(n, 2, height, width)
        sums = x.new_empty(n, conv.out_channels, dtype=torch.float64)
        statistics += pooled, sums
    torch.ops.mirnet_fast_cpu.conv3x3_into(out, x, conv.weight, conv.bias, slope, residual, pooled, sums)
    return out


def _is_for_engine(conv, x):
    return (
        backends.winograd()
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and x.dtype == conv.weight.dtype == torch.float32
        and x.numel() > 0
        and x.stride(1) == 1
        and not torch.is_autocast_enabled("cpu")
        and backends.pick("conv3x3", "cpu", x.dtype) == "cpu"
    )


def bands(x, scale=1, beyond=0):
    """[(first row, last row + 1)] of x in bands of about BAND_BYTES, `scale` bytes for each of x.

    With the rows `beyond` its end that it also reads, a band is whole tiles of Winograd's convolutions.
    """
    height = x.shape[2]
    rows = BAND_BYTES // max(scale * x[:, :, :1].nbytes, 1)
    rows = max((rows + beyond) // TILE * TILE - beyond, TILE - beyond)
    return [(begin, min(begin + rows, height)) for begin in range(0, height, rows)]


def _activate(activation, x, in_place):
    if in_place and isinstance(activation, nn.PReLU) and activation.weight.numel() == 1:
        return F.leaky_relu_(x, activation.weight.item())
    return activation(x)


def _is_plain(conv):
    """Whether a band of the rows of the convolution's output needs only a band of its input."""
    return (
        type(conv) is nn.Conv2d
        and conv.kernel_size in ((1, 1), (3, 3))
        and conv.padding == tuple(size // 2 for size in conv.kernel_size)
        and conv.padding_mode == "zeros"
        and conv.stride == conv.dilation == (1, 1)
    )


def _conv_rows(conv, x, begin, end):
    """Rows [begin, end) of conv(x) for a plain convolution."""
    halo = conv.padding[0]
    above, below = max(begin - halo, 0), min(end + halo, x.shape[2])
    rows = x[:, :, above:below]
    if above == begin - halo and below == end + halo:
        return F.conv2d(rows, conv.weight, conv.bias, padding=(0, halo), groups=conv.groups)
    # At the border of the map the zeros around it count; around other rows they are cut off.
    return conv(rows)[:, :, begin - above : end - above]
