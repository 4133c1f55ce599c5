"""Matrix products along the channels of feature maps: 1x1 convolutions and their weights' gradients."""

import torch
import triton
import triton.language as tl

from ._common import (
    at,
    for_any_size,
    on_device,
    operand_type,
    pixels_of,
    power_of_two,
    prelu,
    product_precision,
    tiles,
)
from ._configs import config
from ._layouts import map_out, offset_type, strides

# Values of all partial sums of a weight's gradient together.
WEIGHT_VALUES = 2**22


@triton.jit
def multiplied(source, inside, weight, slope, d, C, D, SLOPES, BK: tl.constexpr, OPERAND, PRECISION):
    """(pixels, outputs d): weight (D, C) times the pixels at `source`, or with SLOPES times PReLU of them."""
    total = tl.zeros((inside.shape[0], d.shape[0]), tl.float32)
    for first in range(0, C, BK):
        c = first + tl.arange(0, BK)
        value = tl.load(source + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0)
        if SLOPES > 0:
            a = tl.load(slope + c % SLOPES, mask=c < C, other=0).to(tl.float32)
        share = tl.load(
            weight + c[:, None] + d[None, :] * C, mask=(c < C)[:, None] & (d < D)[None, :], other=0
        )
        if SLOPES > 0:
            value = prelu(value.to(tl.float32), a[None, :]).to(OPERAND)
        elif value.dtype != OPERAND:
            value = value.to(tl.float32).to(OPERAND)
        if share.dtype != OPERAND:
            share = share.to(tl.float32).to(OPERAND)
        total = tl.dot(value, share, total, input_precision=PRECISION)
    return total


@for_any_size
def project_kernel(
    x,
    weight,
    out,
    slope,
    top,
    slope_sums,
    x_strides,
    out_strides,
    top_strides,
    height,
    width,
    C: tl.constexpr,
    D: tl.constexpr,
    SLOPES: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    OFFSET: tl.constexpr,
):
    # out = weight x; with `top`, times the derivative of its PReLU. Floor: both maps once (and top).
    n, h, w, inside = pixels_of(tl.program_id(0), height, width, TH, TW)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    source = x + at(n, h, w, *x_strides, OFFSET)[:, None]
    total = multiplied(source, inside, weight, None, d, C, D, 0, BK, OPERAND, PRECISION)
    mask = inside[:, None] & (d < D)[None, :]
    if top is not None:
        a = tl.load(slope + d % SLOPES, mask=d < D, other=0).to(tl.float32)
        position = top + at(n, h, w, *top_strides, OFFSET)[:, None] + d[None, :]
        before = tl.load(position, mask=mask, other=0).to(tl.float32)
        # Outside the map 0 times an infinite weight may have left a NaN.
        through = tl.sum(tl.where((before > 0) | (inside == 0)[:, None], 0, before * total), 0)
        tl.store(slope_sums + tl.program_id(0).to(tl.int64) * D + d, through, mask=d < D)
        total = tl.where(before > 0, total, a[None, :] * total)
    target = out + at(n, h, w, *out_strides, OFFSET)[:, None] + d[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=mask)


@for_any_size
def weight_gradient_kernel(
    grad,
    x,
    slope,
    sums,
    grad_strides,
    x_strides,
    height,
    width,
    count,
    C: tl.constexpr,
    D: tl.constexpr,
    SLOPES: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    OFFSET: tl.constexpr,
):
    # sums (programs, D, C): each over every so many tiles. Floor: both maps once.
    program = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    d = tl.program_id(2) * BD + tl.arange(0, BD)
    if SLOPES > 0:
        a = tl.load(slope + c % SLOPES, mask=c < C, other=0).to(tl.float32)
    total = tl.zeros((BD, BC), tl.float32)
    tile = program
    while tile < count:
        n, h, w, inside = pixels_of(tile, height, width, TH, TW)
        source = grad + at(n, h, w, *grad_strides, OFFSET)[None, :] + d[:, None]
        g = tl.load(source, mask=(d < D)[:, None] & inside[None, :], other=0)
        source = x + at(n, h, w, *x_strides, OFFSET)[:, None] + c[None, :]
        value = tl.load(source, mask=inside[:, None] & (c < C)[None, :], other=0)
        if SLOPES > 0:
            value = prelu(value.to(tl.float32), a[None, :]).to(OPERAND)
        elif x.dtype.element_ty != OPERAND:
            value = value.to(tl.float32).to(OPERAND)
        if grad.dtype.element_ty != OPERAND:
            g = g.to(tl.float32).to(OPERAND)
        # Of a short sum of its own: one long sum would round more.
        total += tl.dot(g, value, input_precision=PRECISION)
        tile += tl.num_programs(0)
    mask = (d < D)[:, None] & (c < C)[None, :]
    tl.store(sums + (program.to(tl.int64) * D + d[:, None]) * C + c[None, :], total, mask=mask)


def project(x, weight, slope=None, top=None, dtype=None):
    """weight (D, C) times the channels of a channels_last x, as a channels_last map.

    With `top` and the slope of the PReLU on it, the product is that PReLU's output gradient; the result
    is (gradient of top, sums (tiles, D) for the slope's gradient).
    """
    n, channels, height, width = x.shape
    outputs = weight.shape[0]
    out = map_out((n, outputs, height, width), x, dtype)
    c = config("project", x)
    bd = min(c.pop("BD"), power_of_two(outputs))
    bk = min(c.pop("BK"), power_of_two(channels))
    count = tiles(n, height, width, c["TH"], c["TW"])
    sums = None if top is None else x.new_empty((count, outputs), dtype=torch.float32)
    if count > 0:
        with on_device(x):
            project_kernel[count, triton.cdiv(outputs, bd)](
                x,
                weight.contiguous(),
                out,
                slope,
                top,
                sums,
                strides(x),
                strides(out),
                strides(out if top is None else top),
                height,
                width,
                C=channels,
                D=outputs,
                SLOPES=0 if slope is None else slope.shape[0],
                BD=bd,
                BK=bk,
                OPERAND=operand_type(weight.dtype),
                PRECISION=product_precision(),
                OFFSET=offset_type(x, out),
                **c,
            )
    return out if top is None else (out, sums)


def weight_gradient(grad, x, dtype, slope=None):
    """(D, C) float32 sum over pixels of grad (N, D, H, W) times x (N, C, H, W), after a PReLU on x.

    dtype: of the forward's maps, in which the factors of the products are rounded.
    """
    n, channels, height, width = x.shape
    outputs = grad.shape[1]
    c = config("weight_gradient", x)
    bc, bd = (min(c.pop(side), power_of_two(size)) for side, size in (("BC", channels), ("BD", outputs)))
    count = tiles(n, height, width, c["TH"], c["TW"])
    programs = max(1, min(count, WEIGHT_VALUES // (channels * outputs), 256))
    if count == 0:
        return x.new_zeros((outputs, channels), dtype=torch.float32)
    sums = x.new_empty((programs, outputs, channels), dtype=torch.float32)
    with on_device(x):
        weight_gradient_kernel[programs, triton.cdiv(channels, bc), triton.cdiv(outputs, bd)](
            grad,
            x,
            slope,
            sums,
            strides(grad),
            strides(x),
            height,
            width,
            count,
            C=channels,
            D=outputs,
            SLOPES=0 if slope is None else slope.shape[0],
            BC=bc,
            BD=bd,
            OPERAND=operand_type(dtype),
            PRECISION=product_precision(),
            OFFSET=offset_type(grad, x),
            **c,
        )
    return sums.sum(0)


def slope_gradient(sums, slope):
    """Gradient of a PReLU's slope, (1,) or (C,), from sums (tiles, C)."""
    by_channel = sums.double().sum(0)
    total = by_channel.sum().view(1) if slope.shape[0] == 1 else by_channel
    return total.to(slope.dtype)


def bias_gradient(grad, bias):
    """[gradient of a bias], [] where there is none."""
    return [] if bias is None else [grad.sum((0, 2, 3), dtype=torch.float32).to(bias.dtype)]
