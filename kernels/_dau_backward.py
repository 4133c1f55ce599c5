"""Kernels of dau_attention's backward; dau_attention.py tells what each is for."""

import triton
import triton.language as tl

from ._common import at, for_any_size, pixels_of
from ._dau_forward import spatial_gate


@for_any_size
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


@for_any_size
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


@for_any_size
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


@for_any_size
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
