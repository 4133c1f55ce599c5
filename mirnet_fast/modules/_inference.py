"""What the fused modules do with convolutions on the CPU: less arithmetic, and without gradients less memory.

In float32 3x3 convolutions run by Winograd's method; where no gradient is wanted, with what follows them
in the same pass. Large maps then run in bands of rows: what one convolution hands to the next stays in
the cache, and is never there as a whole. The maps that remain lie in one mapping (`_arena.py`).
"""

import torch
from torch import nn
from torch.nn import functional as F

from .. import backends
from ._arena import empty_map

BAND_BYTES = 2**24  # what one convolution hands to the next stays in the last-level cache
TILE = 4
# With fewer pixels a convolution of 64 to 256 channels takes longer to bring its weights into
# Winograd's form than oneDNN takes for all of it (two cores with AVX-512; benches/bench_conv3x3.py).
FEWEST_PIXELS = {nn.Conv2d: 64, nn.ConvTranspose2d: 512}


def slope_of(activation, like):
    """The slope argument of the ops for a PReLU, LeakyReLU or ReLU module."""
    if isinstance(activation, nn.PReLU):
        return activation.weight
    if isinstance(activation, nn.LeakyReLU):
        return like.new_full((1,), activation.negative_slope)
    return None


def may_overwrite(x):
    """Whether tensors that fused modules make from x on the CPU are nobody else's."""
    return not torch.is_grad_enabled() and may_replace(x)


def may_replace(x):
    """Whether anything else may run on the CPU in place of published layers."""
    return (
        type(x) is torch.Tensor
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not backends.is_transformed()
    )


def may_write_into(op, x):
    """Whether the C++ kernels' in-place form of `op` fits, which takes x as it is."""
    return (
        may_overwrite(x)
        and not torch.is_autocast_enabled("cpu")
        and x.is_contiguous(memory_format=torch.channels_last)
        and backends.pick(op, "cpu", x.dtype) == "cpu"
    )


def activated(conv, activation, x):
    """activation(conv(x)), in place where that is safe."""
    if runs_in_rows(x, conv) and _is_for_engine(conv, activation, x):
        return rows(conv, activation, x, 0, x.shape[2])
    return _activate(activation, convolved(conv, x), may_overwrite(x))


def convolved(conv, x):
    """conv(x) of a convolution that keeps the resolution; it has gradients."""
    if not (may_replace(x) and _is_small(conv) and _is_for_engine(conv, None, x)):
        return _call(conv, x)
    if may_overwrite(x):
        return rows(conv, None, x, 0, x.shape[2])
    if conv.kernel_size == (1, 1):
        return conv(x)
    return torch.ops.mirnet_fast_cpu.conv3x3(x, conv.weight, conv.bias, None, None)


def activated_conv(first, activation, second, x, statistics=None):
    """second(activation(first(x))) of 1x1 and 3x3 convolutions that keep the resolution.

    statistics: a list; where they cost nothing, the result's that dau_attention_into takes are put there.
    """
    by_engine = _is_for_engine(first, activation, x) and _is_for_engine(second, None, x)
    if not (runs_in_rows(x, first, second) and (by_engine or len(bands(x)) > 1)):
        return convolved(second, activated(first, activation, x))
    n, _, height, width = x.shape
    out = empty_map((n, second.out_channels, height, width), x)
    every, pooled, sums = bands(x), None, None
    if statistics is not None and by_engine and second.kernel_size == (3, 3):
        pooled = x.new_empty(n, 2, height, width)
        sums = x.new_empty(len(every), n, second.out_channels, dtype=torch.float64)
    halo = second.kernel_size[0] // 2
    for i, (begin, end) in enumerate(every):
        above, below = max(begin - halo, 0), min(end + halo, height)
        between = rows(first, activation, x, above, below)
        parts = [None if whole is None else whole[:, :, begin:end] for whole in (out, pooled)]
        parts.append(None if sums is None else sums[i])
        rows(second, None, between, begin - above, end - above, *parts)
    if pooled is not None:
        statistics += pooled, sums.sum(0) if len(every) > 1 else sums[0]
    return out


def add_conv(conv, x, residual):
    """conv(x) + residual."""
    if not runs_in_rows(x, conv) or residual.shape[1] != conv.out_channels:
        return convolved(conv, x) + residual
    out = empty_map(residual.shape, residual)
    for begin, end in [(0, x.shape[2])] if _is_for_engine(conv, None, x) else bands(x):
        rows(conv, None, x, begin, end, out[:, :, begin:end], residual=residual[:, :, begin:end])
    return out


def rows(conv, activation, x, begin, end, out=None, pooled=None, sums=None, residual=None):
    """Rows [begin, end) of activation(conv(x)) + residual for what `runs_in_rows`, in `out` if given.

    pooled and sums are those of conv3x3_into, for a 3x3 convolution.
    """
    if not _fits_engine(conv, activation, x):
        result = _conv_rows(conv, x, begin, end)
        if activation is not None:
            result = _activate(activation, result, True)
        if residual is not None:
            return torch.add(result, residual, out=out)
        return result if out is None else out.copy_(result)
    if out is None:
        out = empty_map((x.shape[0], conv.out_channels, end - begin, x.shape[3]), x)
    slope = None if activation is None else slope_of(activation, x)
    if conv.kernel_size == (1, 1):
        torch.ops.mirnet_fast_cpu.conv1x1_into(out, x[:, :, begin:end], conv.weight, conv.bias, slope)
        return out if residual is None else out.add_(residual)
    arguments = conv.weight, conv.bias, slope, residual, pooled, sums
    torch.ops.mirnet_fast_cpu.conv3x3_into(out, x, *arguments, first_row=begin)
    return out


def transposed_conv(conv, x):
    """conv(x) of a transposed 3x3 convolution that doubles the resolution; it has gradients."""
    if not (may_replace(x) and _is_for_engine(conv, None, x)):
        return _call(conv, x)
    if may_overwrite(x):
        return transposed_rows(conv, x, x.shape[2])
    return torch.ops.mirnet_fast_cpu.conv_transpose3x3(x, conv.weight, conv.bias, None)


def is_fused_with_tail(conv, x):
    """Whether residual_up_tail_of_conv can run conv(x), and is faster."""
    return _is_for_engine(conv, None, x)


def transposed_rows(conv, x, count):
    """conv(x) of a transposed convolution as above, of x's first `count` rows."""
    if not is_fused_with_tail(conv, x):
        return _call(conv, x)[:, :, : 2 * count]
    out = empty_map((x.shape[0], conv.out_channels, 2 * count, 2 * x.shape[3]), x)
    torch.ops.mirnet_fast_cpu.conv_transpose3x3_into(out, x, conv.weight, conv.bias, None)
    return out


def runs_in_rows(x, *convs):
    """Whether convolutions may run on rows of x."""
    return may_overwrite(x) and all(map(_is_small, convs))


def _is_for_engine(conv, activation, x):
    """Whether the engine can run it, and is faster."""
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    enough = conv.kernel_size == (1, 1) or pixels >= FEWEST_PIXELS.get(type(conv), 0)
    return enough and _fits_engine(conv, activation, x)


def _fits_engine(conv, activation, x):
    return (
        (conv.kernel_size == (1, 1) or backends.winograd())
        and (activation is None or type(activation) in (nn.PReLU, nn.LeakyReLU))
        and x.dtype == conv.weight.dtype == torch.float32
        and x.numel() > 0
        and x.stride(1) == 1
        and not torch.is_autocast_enabled("cpu")
        and backends.pick("conv3x3", "cpu", x.dtype) == "cpu"
    )


def bands(x, scale=1, beyond=0):
    """[(first row, last row + 1)] of x in bands of about BAND_BYTES, `scale` bytes for each of x.

    With the rows `beyond` its end that it also reads, a band is whole tiles of Winograd's convolutions.
    They are of like size: the smallest would cost more than their share.
    """
    height = x.shape[2]
    number = max(round(scale * x.nbytes / BAND_BYTES), 1)
    count = -(-max(height, 1) // number) + beyond
    count = -(-count // TILE) * TILE - beyond
    return [(begin, min(begin + count, height)) for begin in range(0, height, count)]


def _activate(activation, x, in_place):
    if in_place and isinstance(activation, nn.PReLU) and activation.weight.numel() == 1:
        return F.leaky_relu_(x, activation.weight.item())
    return activation(x)


def _is_small(conv):
    """Whether a published convolution is of the sizes that the engine and the bands of rows know."""
    return conv.kernel_size in ((1, 1), (3, 3))


def _conv_rows(conv, x, begin, end):
    """Rows [begin, end) of conv(x)."""
    halo = conv.kernel_size[0] // 2
    above, below = max(begin - halo, 0), min(end + halo, x.shape[2])
    rows = x[:, :, above:below]
    if above == begin - halo and below == end + halo and not _is_only_stored(conv, x):
        return F.conv2d(rows, conv.weight, conv.bias, padding=(0, halo), groups=conv.groups)
    # At the border of the map the zeros around it count; around other rows they are cut off.
    return _call(conv, rows)[:, :, begin - above : end - above]


def _is_only_stored(conv, x):
    return (
        may_replace(x)
        and x.dtype == conv.weight.dtype
        and not backends.cpu_computes(x.dtype)
        and not torch.is_autocast_enabled("cpu")
    )


def _call(conv, x):
    """conv(x), in float32 where this CPU does not compute in x's dtype."""
    if not _is_only_stored(conv, x):
        return conv(x)
    parameters = {name: p.float() for name, p in conv.named_parameters()}
    return torch.func.functional_call(conv, parameters, (x.float(),)).to(x.dtype)
