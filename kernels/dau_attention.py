"""dau_attention: spatial gate and channel gate on r, the 1x1 convolution of both, plus x.

Forward: `stats_kernel` reads r once and leaves each pixel's channel maximum and mean and partial
sums of each channel; `channel_gate_kernel`, one program an image, adds those in order and does the
small layers; `apply_kernel` does the k x k convolution on the two small maps, multiplies r by both
halves of the fuse weight, the gates applied on the way, and adds bias and x. Floor: 4 maps, 3 where
a producer gives the statistics (`attend_from_statistics`).

Backward: the statistics again, with the index of the maximum (1 map); `apply_backward_kernel` leaves
in r's gradient all but the pooled terms (3 maps); `weight_kernel` multiplies gradient and gated r
(2 maps); `taps_kernel` works on small maps only; `spread_kernel` adds the pooled terms (2 maps).

Tile: pixels by all channels up to 256, so that r is read once; of the products, as many pixels as
keep the float32 sums in registers, for the weights are read again by every tile, from the cache.
The statistics' tiles are 128 pixels by 64 channels, eight 16-byte loads a thread.
"""

import torch
import triton
import triton.language as tl

from ._common import (
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
# Output or input channels that one program keeps in registers.
WIDEST = 256


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
            here = tl.max(tl.where((c < C)[None, :], value, -float("inf")), 1)
            # The maximum of a GPU passes over a NaN, torch.max takes the first one.
            broken = tl.max((value != value).to(tl.int32), 1) > 0
            here = tl.where(broken, float("nan"), here)
            better = (here > largest) | (broken & (largest == largest))
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
    n, h, w, inside = pixels_of(tl.program_id(0), height, width, TH, TW)
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    spatial = spatial_gate(pooled, spatial_weight, n, h, w, inside, height, width, TAPS, OFFSET)
    source = r + at(n, h, w, r_n, r_h, r_w, OFFSET)[:, None]
    total = tl.zeros((TH * TW, BO), tl.float32)
    for first in tl.range(0, C, BK):
        c = first + tl.arange(0, BK)
        value = tl.load(source + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0).to(tl.float32)
        channel = tl.load(channel_gate + n * C + c, mask=c < C, other=0)
        mask = (c < C)[:, None] & (o < C)[None, :]
        weight = fuse_weight + o[None, :] * (2 * C) + c[:, None]
        half = tl.load(weight, mask=mask, other=0).to(OPERAND)
        gated = (spatial[:, None] * value).to(OPERAND)
        total = tl.dot(gated, half, total, input_precision=PRECISION)
        half = tl.load(weight + C, mask=mask, other=0).to(OPERAND)
        gated = (channel[None, :] * value).to(OPERAND)
        total = tl.dot(gated, half, total, input_precision=PRECISION)
    mask = inside[:, None] & (o < C)[None, :]
    if fuse_bias is not None:
        total += tl.load(fuse_bias + o, mask=o < C, other=0).to(tl.float32)[None, :]
    if x is not None:
        source = x + at(n, h, w, x_n, x_h, x_w, OFFSET)[:, None] + o[None, :]
        total += tl.load(source, mask=mask, other=0).to(tl.float32)
    target = out + at(n, h, w, out_n, out_h, out_w, OFFSET)[:, None] + o[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=mask)


def stats(r, with_index=False):
    """pooled (N, 2, H, W), sums (N, programs, C), index (N, H, W) of the maximum or None."""
    n, channels, height, width = r.shape
    c = config("dau_stats", r)
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
    c, bo = _product_options("dau_apply", r)
    with on_device(r):
        apply_kernel[(tiles(n, height, width, c["TH"], c["TW"]), triton.cdiv(channels, bo))](
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
            BO=bo,
            OPERAND=operand_type(r.dtype),
            PRECISION=product_precision(),
            OFFSET=offset_type(inner, out, pooled, *([] if x is None else [added])),
            **c,
        )
    return laid_out_like(out, r)


def _product_options(kernel, x):
    """The options of a kernel, and how many channels a program takes on the side that is not summed."""
    c = config(kernel, x)
    wide = power_of_two(x.shape[1])
    c["BK"] = min(c["BK"] if x.dtype.itemsize == 2 else max(16, c["BK"] // 2), wide)
    return c, min(wide, WIDEST)


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
