"""dau_attention: spatial gate and channel gate on r, the 1x1 convolution of both, plus x.

Forward: `stats_kernel` reads r once and leaves each pixel's channel maximum and mean and partial
sums of each channel; `channel_gate_kernel`, one program an image, adds those in order and does the
small layers; `apply_kernel` does the k x k convolution on the two small maps, multiplies r by both
halves of the fuse weight, the gates applied on the way, and adds bias and x. Floor: 4 maps, 3 where
a producer gives the statistics (`attend_from_statistics`).

Backward: the statistics again, with the index of the maximum (1 map); `apply_backward_kernel` leaves
in r's gradient all but the pooled terms (3 maps); `weight_kernel` multiplies gradient and gated r
(2 maps); `taps_kernel` works on small maps only; `spread_kernel` adds the pooled terms (2 maps). A
bias of the 1x1 convolution, which the published network has not, costs one more map.

Tile: pixels by all channels up to 256, so that r is read once; of the products, as many pixels as
keep the float32 sums in registers, for the weights are read again by every tile, from the cache.
The statistics' tiles are 128 pixels by 64 channels, eight 16-byte loads a thread.
"""

import torch
import triton
import triton.language as tl

from ._common import (
    INTERPRETED,
    at,
    laid_out_like,
    map_in,
    map_out,
    offset_type,
    on_device,
    operand_type,
    pixels_of,
    power_of_two,
    product_precision,
    strides,
    tiles,
)
from ._configs import config

# Partial sums of one image: enough programs to fill a GPU, few enough for one program to add.
PARTIALS = 512
# Values of all partial sums of the fuse weight's gradient together.
WEIGHT_VALUES = 2**21

NUMPY = tl.constexpr(INTERPRETED)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def channel_max(value):
    """The maximum of each row; a NaN wins, as in torch.max."""
    # tl.max passes over a NaN on a GPU, but not in the interpreter, whose tl.reduce is slow.
    return tl.max(value, 1) if NUMPY else tl.reduce(value, 1, _larger)


@triton.jit
def stats_kernel(
    r,
    pooled,
    index,
    sums,
    r_n,
    r_h,
    r_w,
    height,
    width,
    count,
    C: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BC: tl.constexpr,
    OFFSET: tl.constexpr,
):
    # pooled (N, 2, H, W), index (N, H, W) of the maximum or None, sums (N, programs, C).
    BLOCKS: tl.constexpr = (C + BC - 1) // BC
    PADDED: tl.constexpr = triton.next_power_of_2(BLOCKS)
    program, n = tl.program_id(0), tl.program_id(1)
    block = tl.arange(0, PADDED)
    total = tl.zeros((PADDED, BC), tl.float32)
    tile = program
    while tile < count:
        _, h, w, inside = pixels_of(tile, height, width, TH, TW)
        largest = tl.full((TH * TW,), -float("inf"), tl.float32)
        first = tl.zeros((TH * TW,), tl.int32)
        mean = tl.zeros((TH * TW,), tl.float32)
        # Unrolled, it would load all blocks at once: more than the registers hold.
        for k in tl.range(0, BLOCKS, num_stages=1):
            c = k * BC + tl.arange(0, BC)
            source = r + at(n, h, w, r_n, r_h, r_w, OFFSET)[:, None] + c[None, :]
            value = tl.load(source, mask=inside[:, None] & (c < C)[None, :], other=0).to(tl.float32)
            total += tl.where(block[:, None] == k, tl.sum(value, 0)[None, :], 0)
            mean += tl.sum(value, 1)
            here = channel_max(tl.where((c < C)[None, :], value, -float("inf")))
            better = (here > largest) | ((here != here) & (largest == largest))
            if index is not None:
                found = (value == here[:, None]) | (value != value)
                place = tl.min(tl.where(found & (c < C)[None, :], c[None, :], C - 1), 1)
                first = tl.where(better, place, first)
            largest = tl.where(better, here, largest)
        plane = height.to(OFFSET) * width
        target = h.to(OFFSET) * width + w
        tl.store(pooled + n.to(tl.int64) * 2 * plane + target, largest, mask=inside)
        tl.store(pooled + n.to(tl.int64) * 2 * plane + plane + target, mean / C, mask=inside)
        if index is not None:
            tl.store(index + n.to(tl.int64) * plane + target, first, mask=inside)
        tile += tl.num_programs(0)
    target = sums + (n.to(tl.int64) * tl.num_programs(0) + program) * C
    c = block[:, None] * BC + tl.arange(0, BC)[None, :]
    tl.store(target + c, total, mask=c < C)


@triton.jit
def channel_gate_kernel(
    sums,
    squeeze_weight,
    squeeze_bias,
    excite_weight,
    excite_bias,
    gate,
    count,
    pixels,
    C: tl.constexpr,
    D: tl.constexpr,
    CP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # gate (N, C) from `count` partial sums an image.
    n = tl.program_id(0)
    c, block = tl.arange(0, CP), tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, CP), tl.float32)
    first = 0
    while first < count:
        rows = first + block
        source = sums + (n.to(tl.int64) * count + rows)[:, None] * C + c[None, :]
        total += tl.load(source, mask=(rows < count)[:, None] & (c < C)[None, :], other=0)
        first += BLOCK
    pooled = tl.sum(total, 0) / pixels
    logit = tl.zeros((CP,), tl.float32)
    if excite_bias is not None:
        logit += tl.load(excite_bias + c, mask=c < C, other=0).to(tl.float32)
    first = 0
    while first < D:
        d = first + block
        inside = (d < D)[:, None] & (c < C)[None, :]
        weight = tl.load(squeeze_weight + d[:, None] * C + c[None, :], mask=inside, other=0).to(tl.float32)
        # A padded channel must not make 0 * Inf of its own.
        hidden = tl.sum(tl.where(inside, weight * pooled[None, :], 0), 1)
        if squeeze_bias is not None:
            hidden += tl.load(squeeze_bias + d, mask=d < D, other=0).to(tl.float32)
        hidden = tl.where(hidden <= 0, 0.0, hidden)
        weight = tl.load(excite_weight + c[None, :] * D + d[:, None], mask=inside, other=0).to(tl.float32)
        logit += tl.sum(tl.where(inside, weight * hidden[:, None], 0), 0)
        first += BLOCK
    tl.store(gate + n * C + c, 1 / (1 + tl.exp(-logit)), mask=c < C)


@triton.jit
def spatial_gate(pooled, weight, n, h, w, inside, height, width, TAPS: tl.constexpr, OFFSET: tl.constexpr):
    """sigmoid of the TAPS x TAPS convolution on pooled (N, 2, H, W); 0 outside."""
    # A row of taps at once: fewer pixels than threads would be loaded by many threads each.
    dx = tl.arange(0, triton.next_power_of_2(TAPS))
    column = w[:, None] + (dx - TAPS // 2)[None, :]
    column_inside = inside[:, None] & (dx < TAPS)[None, :] & (column >= 0) & (column < width)
    plane = height.to(OFFSET) * width
    image = pooled + n.to(tl.int64) * 2 * plane
    logit = tl.zeros_like(column).to(tl.float32)
    for dy in tl.static_range(TAPS):
        row = h + (dy - TAPS // 2)
        mask = column_inside & ((row >= 0) & (row < height))[:, None]
        source = image + row.to(OFFSET)[:, None] * width + column
        for i in tl.static_range(2):
            tap = tl.load(weight + (i * TAPS + dy) * TAPS + dx, mask=dx < TAPS, other=0).to(tl.float32)
            logit += tap[None, :] * tl.load(source + i * plane, mask=mask, other=0)
    return tl.where(inside, 1 / (1 + tl.exp(-tl.sum(logit, 1))), 0)


@triton.jit
def apply_kernel(
    r,
    x,
    pooled,
    spatial_weight,
    channel_gate,
    fuse_weight,
    fuse_bias,
    out,
    r_n,
    r_h,
    r_w,
    x_n,
    x_h,
    x_w,
    out_n,
    out_h,
    out_w,
    height,
    width,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BK: tl.constexpr,
    BO: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    OFFSET: tl.constexpr,
):
    EARLY: tl.constexpr = r.dtype.element_ty.primitive_bitwidth == 16 and BO <= 128
    n, h, w, inside = pixels_of(tl.program_id(0), height, width, TH, TW)
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    written = inside[:, None] & (o < C)[None, :]
    if x is not None:
        residual = x + at(n, h, w, x_n, x_h, x_w, OFFSET)[:, None] + o[None, :]
        # Asked for before everything else, where the registers hold it: read last, it would be waited for.
        if EARLY:
            added = tl.load(residual, mask=written, other=0)
    spatial = spatial_gate(pooled, spatial_weight, n, h, w, inside, height, width, TAPS, OFFSET)
    source = r + at(n, h, w, r_n, r_h, r_w, OFFSET)[:, None]
    # The spatial gate is a factor of the first product, the channel gate one of the second's weight:
    # r goes to both as it is.
    left = tl.zeros((TH * TW, BO), tl.float32)
    right = tl.zeros((TH * TW, BO), tl.float32)
    for first in tl.range(0, C, BK):
        c = first + tl.arange(0, BK)
        value = tl.load(source + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0).to(OPERAND)
        channel = tl.load(channel_gate + n * C + c, mask=c < C, other=0)
        mask = (c < C)[:, None] & (o < C)[None, :]
        weight = fuse_weight + o[None, :] * (2 * C) + c[:, None]
        half = tl.load(weight, mask=mask, other=0).to(OPERAND)
        left = tl.dot(value, half, left, input_precision=PRECISION)
        half = tl.load(weight + C, mask=mask, other=0).to(tl.float32)
        half = (channel[:, None] * half).to(OPERAND)
        right = tl.dot(value, half, right, input_precision=PRECISION)
    total = spatial[:, None] * left + right
    if fuse_bias is not None:
        total += tl.load(fuse_bias + o, mask=o < C, other=0).to(tl.float32)[None, :]
    if x is not None:
        if EARLY:
            total += added.to(tl.float32)
        else:
            total += tl.load(residual, mask=written, other=0).to(tl.float32)
    target = out + at(n, h, w, out_n, out_h, out_w, OFFSET)[:, None] + o[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=written)


@triton.jit
def apply_backward_kernel(
    grad,
    r,
    pooled,
    spatial_weight,
    channel_gate,
    fuse_weight,
    gates,
    r_grad,
    sums,
    grad_n,
    grad_h,
    grad_w,
    r_n,
    r_h,
    r_w,
    out_n,
    out_h,
    out_w,
    height,
    width,
    count,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BK: tl.constexpr,
    BC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    OFFSET: tl.constexpr,
):
    # With u and v the gradient times both halves of the weight: r_grad = spatial u + channel v;
    # gates (N, 2, H, W), the spatial gate and the gradient of its logit, which is u . r times the
    # sigmoid's slope; sums (N, programs, C) of v r, the channel gate's gradient.
    BLOCKS: tl.constexpr = (C + BC - 1) // BC
    PADDED: tl.constexpr = triton.next_power_of_2(BLOCKS)
    program, n = tl.program_id(0), tl.program_id(1)
    block = tl.arange(0, PADDED)
    total = tl.zeros((PADDED, BC), tl.float32)
    tile = program
    while tile < count:
        _, h, w, inside = pixels_of(tile, height, width, TH, TW)
        spatial = spatial_gate(pooled, spatial_weight, n, h, w, inside, height, width, TAPS, OFFSET)
        along = tl.zeros((TH * TW,), tl.float32)
        for b in tl.range(0, BLOCKS, num_stages=1):
            c = b * BC + tl.arange(0, BC)
            u = tl.zeros((TH * TW, BC), tl.float32)
            v = tl.zeros((TH * TW, BC), tl.float32)
            for first in tl.range(0, C, BK):
                o = first + tl.arange(0, BK)
                given = grad + at(n, h, w, grad_n, grad_h, grad_w, OFFSET)[:, None] + o[None, :]
                g = tl.load(given, mask=inside[:, None] & (o < C)[None, :], other=0).to(OPERAND)
                both = (o < C)[:, None] & (c < C)[None, :]
                weight = fuse_weight + o[:, None] * (2 * C) + c[None, :]
                half = tl.load(weight, mask=both, other=0).to(OPERAND)
                u = tl.dot(g, half, u, input_precision=PRECISION)
                half = tl.load(weight + C, mask=both, other=0).to(OPERAND)
                v = tl.dot(g, half, v, input_precision=PRECISION)
            mask = inside[:, None] & (c < C)[None, :]
            source = r + at(n, h, w, r_n, r_h, r_w, OFFSET)[:, None] + c[None, :]
            value = tl.load(source, mask=mask, other=0).to(tl.float32)
            channel = tl.load(channel_gate + n * C + c, mask=c < C, other=0)
            # Outside, u and v are 0 times weights, NaN where those are infinite.
            along += tl.sum(tl.where(mask, u * value, 0), 1)
            total += tl.where(block[:, None] == b, tl.sum(tl.where(mask, v * value, 0), 0)[None, :], 0)
            target = r_grad + at(n, h, w, out_n, out_h, out_w, OFFSET)[:, None] + c[None, :]
            result = spatial[:, None] * u + channel[None, :] * v
            tl.store(target, result.to(r_grad.dtype.element_ty), mask=mask)
        plane = height.to(OFFSET) * width
        target = gates + n.to(tl.int64) * 2 * plane + h.to(OFFSET) * width + w
        tl.store(target, spatial, mask=inside)
        tl.store(target + plane, along * spatial * (1 - spatial), mask=inside)
        tile += tl.num_programs(0)
    target = sums + (n.to(tl.int64) * tl.num_programs(0) + program) * C
    c = block[:, None] * BC + tl.arange(0, BC)[None, :]
    tl.store(target + c, total, mask=c < C)


@triton.jit
def weight_kernel(
    grad,
    r,
    gates,
    channel_gate,
    weight_sums,
    grad_n,
    grad_h,
    grad_w,
    r_n,
    r_h,
    r_w,
    height,
    width,
    count,
    C: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BO: tl.constexpr,
    BC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    OFFSET: tl.constexpr,
):
    # weight_sums (programs, C, 2 C) of all `count` tiles.
    BLOCKS: tl.constexpr = (C + BC - 1) // BC
    program = tl.program_id(1)
    o = tl.program_id(0) // BLOCKS * BO + tl.arange(0, BO)
    c = tl.program_id(0) % BLOCKS * BC + tl.arange(0, BC)
    left = tl.zeros((BO, BC), tl.float32)
    right = tl.zeros((BO, BC), tl.float32)
    tile = program
    while tile < count:
        n, h, w, inside = pixels_of(tile, height, width, TH, TW)
        source = grad + at(n, h, w, grad_n, grad_h, grad_w, OFFSET)[:, None] + o[None, :]
        g = tl.load(source, mask=inside[:, None] & (o < C)[None, :], other=0).to(OPERAND)
        source = r + at(n, h, w, r_n, r_h, r_w, OFFSET)[:, None] + c[None, :]
        value = tl.load(source, mask=inside[:, None] & (c < C)[None, :], other=0).to(tl.float32)
        plane = height.to(OFFSET) * width
        source = gates + n.to(tl.int64) * 2 * plane + h.to(OFFSET) * width + w
        spatial = tl.load(source, mask=inside, other=0)
        channel = tl.load(channel_gate + n * C + c, mask=c < C, other=0)
        g = tl.trans(g)
        left = tl.dot(g, (spatial[:, None] * value).to(OPERAND), left, input_precision=PRECISION)
        right = tl.dot(g, (channel[None, :] * value).to(OPERAND), right, input_precision=PRECISION)
        tile += tl.num_programs(1)
    target = weight_sums + (program * C + o)[:, None] * (2 * C) + c[None, :]
    mask = (o < C)[:, None] & (c < C)[None, :]
    tl.store(target, left, mask=mask)
    tl.store(target + C, right, mask=mask)


@triton.jit
def taps_kernel(
    gates,
    pooled,
    sums,
    height,
    width,
    count,
    TAPS: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    OFFSET: tl.constexpr,
):
    # sums (programs, 2, TAPS, TAPS), the spatial weight's gradient; a program does one row of taps.
    i, dy = tl.program_id(1) // TAPS, tl.program_id(1) % TAPS
    dx = tl.arange(0, triton.next_power_of_2(TAPS))
    plane = height.to(OFFSET) * width
    total = tl.zeros((TH * TW, triton.next_power_of_2(TAPS)), tl.float32)
    tile = tl.program_id(0)
    while tile < count:
        n, h, w, inside = pixels_of(tile, height, width, TH, TW)
        image = n.to(tl.int64) * 2 * plane
        g = tl.load(gates + image + plane + h.to(OFFSET) * width + w, mask=inside, other=0)
        row = h + (dy - TAPS // 2)
        column = w[:, None] + (dx - TAPS // 2)[None, :]
        mask = (inside & (row >= 0) & (row < height))[:, None] & (dx < TAPS)[None, :]
        mask = mask & (column >= 0) & (column < width)
        source = pooled + image + i * plane + row.to(OFFSET)[:, None] * width + column
        value = tl.load(source, mask=mask, other=0)
        total += tl.where(mask, g[:, None] * value, 0)
        tile += tl.num_programs(0)
    target = sums + ((tl.program_id(0) * 2 + i) * TAPS + dy) * TAPS + dx
    tl.store(target, tl.sum(total, 0), mask=dx < TAPS)


@triton.jit
def spread_kernel(
    r_grad,
    gates,
    index,
    spatial_weight,
    shift,
    out_n,
    out_h,
    out_w,
    height,
    width,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BC: tl.constexpr,
    OFFSET: tl.constexpr,
):
    # r_grad += what came through the maximum, the mean and, shift (N, C), the global pooling.
    n, h, w, inside = pixels_of(tl.program_id(0), height, width, TH, TW)
    plane = height.to(OFFSET) * width
    image = gates + n.to(tl.int64) * 2 * plane + plane
    dx = tl.arange(0, triton.next_power_of_2(TAPS))
    # The pixel was read through the mirrored taps.
    column = w[:, None] - (dx - TAPS // 2)[None, :]
    column_inside = inside[:, None] & (dx < TAPS)[None, :] & (column >= 0) & (column < width)
    largest = tl.zeros_like(column).to(tl.float32)
    mean = tl.zeros_like(column).to(tl.float32)
    for dy in tl.static_range(TAPS):
        row = h - (dy - TAPS // 2)
        within = column_inside & ((row >= 0) & (row < height))[:, None]
        g = tl.load(image + row.to(OFFSET)[:, None] * width + column, mask=within, other=0)
        tap = spatial_weight + dy * TAPS + dx
        largest += tl.load(tap, mask=dx < TAPS, other=0).to(tl.float32)[None, :] * g
        mean += tl.load(tap + TAPS * TAPS, mask=dx < TAPS, other=0).to(tl.float32)[None, :] * g
    to_first = tl.sum(largest, 1)
    to_all = tl.sum(mean, 1) / C
    first = tl.load(index + n.to(tl.int64) * plane + h.to(OFFSET) * width + w, mask=inside, other=0)
    pixel = r_grad + at(n, h, w, out_n, out_h, out_w, OFFSET)[:, None]
    for k in tl.range(0, (C + BC - 1) // BC, num_stages=1):
        c = k * BC + tl.arange(0, BC)
        mask = inside[:, None] & (c < C)[None, :]
        value = tl.load(pixel + c[None, :], mask=mask, other=0).to(tl.float32)
        pooled = tl.load(shift + n * C + c, mask=c < C, other=0)
        value += pooled[None, :] + to_all[:, None]
        value += tl.where(c[None, :] == first[:, None], to_first[:, None], 0)
        tl.store(pixel + c[None, :], value.to(r_grad.dtype.element_ty), mask=mask)


def stats(r, with_index=False):
    """pooled (N, 2, H, W), sums (N, programs, C), index (N, H, W) of the maximum or None."""
    n, channels, height, width = r.shape
    c = config("dau_stats", r)
    if r.dtype.itemsize > 2:
        _shrink(c, 4)  # the registers hold no more
    bc = min(c.pop("BC"), triton.next_power_of_2(channels))
    count = tiles(1, height, width, c["TH"], c["TW"])
    programs = min(count, max(1, PARTIALS // n))
    pooled = r.new_empty((n, 2, height, width), dtype=torch.float32)
    sums = r.new_empty((n, programs, channels), dtype=torch.float32)
    index = r.new_empty((n, height, width), dtype=torch.int32) if with_index else None
    with on_device(r):
        stats_kernel[(programs, n)](
            r,
            pooled,
            index,
            sums,
            *strides(r),
            height,
            width,
            count,
            C=channels,
            BC=bc,
            OFFSET=offset_type(r, pooled),
            **c,
        )
    return pooled, sums, index


def channel_gate(sums, pixels, squeeze_weight, squeeze_bias, excite_weight, excite_bias):
    """(N, C) float32 from partial sums (N, any number, C)."""
    n, count, channels = sums.shape
    gate = sums.new_empty((n, channels))
    with on_device(sums):
        channel_gate_kernel[(n,)](
            sums,
            squeeze_weight.contiguous(),
            None if squeeze_bias is None else squeeze_bias.contiguous(),
            excite_weight.contiguous(),
            None if excite_bias is None else excite_bias.contiguous(),
            gate,
            count,
            pixels,
            C=channels,
            D=squeeze_weight.shape[0],
            CP=triton.next_power_of_2(channels),
            **config("dau_channel_gate", sums),
        )
    return gate


def attend_from_statistics(r, x, pooled, sums, spatial_weight, *weights):
    """dau_attention where the statistics, as `stats` gives them, are there already."""
    *gate_weights, fuse_weight, fuse_bias = weights
    n, channels, height, width = r.shape
    inner, added = map_in(r), None if x is None else map_in(x)
    gate = channel_gate(sums, height * width, *gate_weights)
    out = map_out(r.shape, r)
    c = _product_options("dau_apply", r, "BO")
    with on_device(r):
        apply_kernel[(tiles(n, height, width, c["TH"], c["TW"]), triton.cdiv(channels, c["BO"]))](
            inner,
            added,
            pooled,
            spatial_weight.contiguous(),
            gate,
            fuse_weight.contiguous(),
            None if fuse_bias is None else fuse_bias.contiguous(),
            out,
            *strides(inner),
            *((0, 0, 0) if x is None else strides(added)),
            *strides(out),
            height,
            width,
            C=channels,
            TAPS=spatial_weight.shape[2],
            OPERAND=operand_type(r.dtype),
            PRECISION=product_precision(),
            OFFSET=offset_type(inner, out, pooled, *([] if x is None else [added])),
            **c,
        )
    return laid_out_like(out, r)


def _shrink(c, times):
    """Tiles so many times smaller, where they are held in registers."""
    if not INTERPRETED:
        c["TH"] = max(1, c["TH"] // times)


def _product_options(kernel, x, side):
    """The options of a kernel for x; `side` names that of how many channels a program keeps in registers."""
    c = config(kernel, x)
    wide = power_of_two(x.shape[1])
    if x.dtype.itemsize > 2:
        # Twice the room for everything, and products outside the tensor cores want more registers.
        _shrink(c, 2)
        c["BK"] = max(16, c["BK"] // 2)
    elif wide <= 64:
        c["BK"] = wide
    return c | {"BK": min(c["BK"], wide), side: min(c[side], wide)}


def dau_attention(
    r,
    x,
    spatial_weight,
    squeeze_weight,
    squeeze_bias,
    excite_weight,
    excite_bias,
    fuse_weight,
    fuse_bias,
):
    """As mirnet_fast.ops.dau_attention."""
    if r.shape[0] == 0:
        return laid_out_like(map_out(r.shape, r), r)
    inner = map_in(r)
    pooled, sums, _ = stats(inner)
    weights = squeeze_weight, squeeze_bias, excite_weight, excite_bias, fuse_weight, fuse_bias
    return laid_out_like(attend_from_statistics(inner, x, pooled, sums, spatial_weight, *weights), r)


def dau_attention_backward(
    grad,
    r,
    spatial_weight,
    squeeze_weight,
    squeeze_bias,
    excite_weight,
    excite_bias,
    fuse_weight,
    fuse_bias,
):
    """[gradients of r and of every weight and bias that is not None]."""
    n, channels, height, width = r.shape
    taps = spatial_weight.shape[2]
    small_weights = squeeze_weight, squeeze_bias, excite_weight, excite_bias
    r_grad = map_out(r.shape, r)
    if n == 0:
        weights = spatial_weight, *small_weights, fuse_weight, fuse_bias
        return [laid_out_like(r_grad, r), *(torch.zeros_like(w) for w in weights if w is not None)]
    inner, grad = map_in(r), map_in(grad)
    spatial = spatial_weight.contiguous()
    fuse = fuse_weight.contiguous()
    pooled, r_sums, index = stats(inner, with_index=True)
    gate = channel_gate(r_sums, height * width, *small_weights)
    gates = torch.empty_like(pooled)
    shared = {"C": channels, "OFFSET": offset_type(inner, grad, r_grad, pooled)}
    product = {"OPERAND": operand_type(r.dtype), "PRECISION": product_precision()}

    c = _product_options("dau_apply_backward", r, "BC")
    if r.dtype.itemsize > 2:
        c["num_stages"] = 1  # loads ahead of their use would not fit the registers
    count = tiles(1, height, width, c["TH"], c["TW"])
    programs = min(count, max(1, PARTIALS // n))
    gate_sums = gate.new_empty((n, programs, channels))
    with on_device(r):
        apply_backward_kernel[(programs, n)](
            grad,
            inner,
            pooled,
            spatial,
            gate,
            fuse,
            gates,
            r_grad,
            gate_sums,
            *strides(grad),
            *strides(inner),
            *strides(r_grad),
            height,
            width,
            count,
            TAPS=taps,
            **shared,
            **product,
            **c,
        )

    c = config("dau_weight", r)
    if r.dtype.itemsize > 2:
        # The product sums over the pixels, unrolled where it is not on the tensor cores.
        _shrink(c, 4)
        c["num_warps"] *= 2
    bc = min(c.pop("BC"), power_of_two(channels))
    count = tiles(n, height, width, c["TH"], c["TW"])
    programs = min(count, max(1, WEIGHT_VALUES // (2 * channels**2)), PARTIALS)
    weight_sums = gate.new_empty((programs, channels, 2 * channels))
    with on_device(r):
        weight_kernel[(triton.cdiv(channels, bc) ** 2, programs)](
            grad,
            inner,
            gates,
            gate,
            weight_sums,
            *strides(grad),
            *strides(inner),
            height,
            width,
            count,
            BO=bc,
            BC=bc,
            **shared,
            **product,
            **c,
        )

    c = config("dau_taps", r)
    count = tiles(n, height, width, c["TH"], c["TW"])
    programs = min(count, PARTIALS // 4)
    tap_sums = gate.new_empty((programs, 2, taps, taps))
    with on_device(r):
        taps_kernel[(programs, 2 * taps)](
            gates,
            pooled,
            tap_sums,
            height,
            width,
            count,
            TAPS=taps,
            OFFSET=shared["OFFSET"],
            **c,
        )

    small, shift = _small_backward(r_sums, gate_sums, height * width, *small_weights)
    c = config("dau_spread", r)
    bc = min(c.pop("BC"), triton.next_power_of_2(channels))
    with on_device(r):
        spread_kernel[(tiles(n, height, width, c["TH"], c["TW"]),)](
            r_grad,
            gates,
            index,
            spatial,
            shift,
            *strides(r_grad),
            height,
            width,
            TAPS=taps,
            BC=bc,
            **shared,
            **c,
        )

    gradients = [(tap_sums.sum(0), spatial_weight), *small, (weight_sums.sum(0), fuse_weight)]
    if fuse_bias is not None:
        gradients.append((grad.sum((0, 2, 3), dtype=torch.float32), fuse_bias))
    return [laid_out_like(r_grad, r), *(_gradient(value, weight) for value, weight in gradients)]


def _gradient(value, weight):
    """The value in the shape, dtype and memory format of the weight."""
    value = value.to(weight.dtype).view(weight.shape)
    if weight.dim() < 4:
        return value
    return laid_out_like(value.contiguous(memory_format=torch.channels_last), weight)


def _small_backward(r_sums, gate_sums, pixels, squeeze_weight, squeeze_bias, excite_weight, excite_bias):
    """[(gradient, its weight)] and what every pixel gets through the pooling (N, C).

    On a few thousand numbers, in float64.
    """
    pooled = r_sums.double().sum(1) / pixels
    squeeze, excite = squeeze_weight.flatten(1).double(), excite_weight.flatten(1).double()
    before = pooled @ squeeze.T
    if squeeze_bias is not None:
        before = before + squeeze_bias.double()
    hidden = torch.where(before <= 0, 0, before)
    logit = hidden @ excite.T
    if excite_bias is not None:
        logit = logit + excite_bias.double()
    gate = logit.sigmoid()
    logit_grad = gate_sums.double().sum(1) * gate * (1 - gate)
    before_grad = torch.where(before <= 0, 0, logit_grad @ excite)
    gradients = [
        (before_grad.T @ pooled, squeeze_weight),
        (before_grad.sum(0), squeeze_bias),
        (logit_grad.T @ hidden, excite_weight),
        (logit_grad.sum(0), excite_bias),
    ]
    shift = (before_grad @ squeeze / pixels).float()
    return [(value, weight) for value, weight in gradients if weight is not None], shift
