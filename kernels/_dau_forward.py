"""Kernels of dau_attention's forward; dau_attention.py tells what each is for."""

import triton
import triton.language as tl

from ._common import INTERPRETED, add_sums, at, for_any_size, pixels_of

NUMPY = tl.constexpr(INTERPRETED)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def channel_max(value):
    """The maximum of each row; a NaN wins, as in torch.max."""
    # tl.max passes over a NaN; the interpreter's tl.reduce is slow.
    if NUMPY:
        return tl.where(tl.sum((value != value).to(tl.int32), 1) > 0, float("nan"), tl.max(value, 1))
    else:
        return tl.reduce(value, 1, _larger)


@for_any_size
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
def channel_gate(
    sums,
    squeeze_weight,
    squeeze_bias,
    excite_weight,
    excite_bias,
    pixels,
    C: tl.constexpr,
    D: tl.constexpr,
    CP: tl.constexpr,
    BD: tl.constexpr,
):
    """(CP,) from the sums (C,) over the pixels of an image."""
    c = tl.arange(0, CP)
    pooled = tl.load(sums + c, mask=c < C, other=0).to(tl.float32) / pixels
    logit = tl.zeros((CP,), tl.float32)
    if excite_bias is not None:
        logit += tl.load(excite_bias + c, mask=c < C, other=0).to(tl.float32)
    for first in tl.range(0, D, BD):
        d = first + tl.arange(0, BD)
        inside = (d < D)[:, None] & (c < C)[None, :]
        # Both are asked for before either is needed.
        squeeze = tl.load(squeeze_weight + d[:, None] * C + c[None, :], mask=inside, other=0).to(tl.float32)
        excite = tl.load(excite_weight + c[None, :] * D + d[:, None], mask=inside, other=0).to(tl.float32)
        # A padded channel must not make 0 * Inf of its own.
        hidden = tl.sum(tl.where(inside, squeeze * pooled[None, :], 0), 1)
        if squeeze_bias is not None:
            hidden += tl.load(squeeze_bias + d, mask=d < D, other=0).to(tl.float32)
        hidden = tl.where(hidden <= 0, 0.0, hidden)
        logit += tl.sum(tl.where(inside, excite * hidden[:, None], 0), 0)
    return 1 / (1 + tl.exp(-logit))


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


@for_any_size
def apply_kernel(
    r,
    x,
    pooled,
    sums,
    spatial_weight,
    squeeze_weight,
    squeeze_bias,
    excite_weight,
    excite_bias,
    fuse_weight,
    fuse_bias,
    out,
    out_sums,
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
    pixels,
    C: tl.constexpr,
    D: tl.constexpr,
    TAPS: tl.constexpr,
    CP: tl.constexpr,
    BD: tl.constexpr,
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
    small = squeeze_weight, squeeze_bias, excite_weight, excite_bias
    gate = channel_gate(sums + n * C, *small, pixels, C, D, CP, BD)
    spatial = spatial_gate(pooled, spatial_weight, n, h, w, inside, height, width, TAPS, OFFSET)
    source = r + at(n, h, w, r_n, r_h, r_w, OFFSET)[:, None]
    # The spatial gate is a factor of the first product, the channel gate one of the second's weight:
    # r goes to both as it is.
    left = tl.zeros((TH * TW, BO), tl.float32)
    right = tl.zeros((TH * TW, BO), tl.float32)
    for first in tl.range(0, C, BK):
        c = first + tl.arange(0, BK)
        value = tl.load(source + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0).to(OPERAND)
        channel = tl.gather(gate, c, 0)
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
    result = total.to(out.dtype.element_ty)
    tl.store(target, result, mask=written)
    if out_sums is not None:
        add_sums(out_sums + n.to(tl.int64) * C, result.to(tl.float32), inside, o, C)
