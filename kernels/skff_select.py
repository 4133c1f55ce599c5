"""skff_select: pooled statistics of the branches' sum, softmax over the branches, weighted sum.

Forward: `pool_kernel` reads the branches once and leaves sums over pixels, a few hundred partial ones
an image, which PyTorch adds; `combine_kernel` does the small layers and the softmax, reads the
branches again and writes the output. Backward: the same pooling, each branch also multiplied by the
gradient; the small layers; one pass from the gradient to all branches. Floors, in maps: 2B + 1
forward (B + 1 where a producer gives the sums: `skff_select_into`), B + 1 and 1 + B backward.

Tile: 128 pixels by 64 channels, four 16-byte accesses a thread and branch, so that three branches
have twelve in flight; nothing is read twice, so the shape of the tile is free.

The small layers in a launch of their own, a program an image, would leave all multiprocessors but one
waiting. So each program does them: of three branches in 16 bits, 64, 128 and 256 channels (r = 8), it
reads for that 5.5, 13 and 34 KiB from the second-level cache, where a tile of all maps has 64 KiB, and
multiplies 0.25, 0.6 and 1.75 times for each value of a tile, beside the 3 of the sum. No more programs
are launched than run at a time, each for every so many tiles, so that of large images that is a small
part; of small ones it is still less than a launch. The first tile is asked for before the small layers,
which take as long as it does to come.
"""

import torch
import triton
import triton.language as tl

from ._common import at, for_any_size, on_device, pixels_of, prelu, tiles
from ._configs import config, multiprocessors
from ._layouts import laid_out_like, map_in, map_out, offset_type, strides

# Partial sums of one image by all blocks of channels: enough programs to fill a GPU.
PARTIALS = 512
# Programs for each multiprocessor, which share the tiles: as many as it has room for at a time.
PROGRAMS = 2


@for_any_size
def pool_kernel(
    xs,
    x_strides,
    grad,
    grad_strides,
    sums,
    height,
    width,
    count,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BC: tl.constexpr,
    OFFSET: tl.constexpr,
):
    # sums (N, programs, ROWS, C): row 0 of all branches together; with a gradient, rows 1... of
    # each branch times the gradient. `count` tiles an image.
    PADDED: tl.constexpr = triton.next_power_of_2(ROWS)
    program, n = tl.program_id(0), tl.program_id(2)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    row = tl.arange(0, PADDED)
    total = tl.zeros((PADDED, BC), tl.float32)
    tile = program
    while tile < count:
        _, h, w, inside = pixels_of(tile, height, width, TH, TW)
        mask = inside[:, None] & (c < C)[None, :]
        if ROWS > 1:
            source = grad + at(n, h, w, grad_strides[0], grad_strides[1], grad_strides[2], OFFSET)[:, None]
            g = tl.load(source + c[None, :], mask=mask, other=0).to(tl.float32)
        everything = tl.zeros((TH * TW, BC), tl.float32)
        for b in tl.static_range(len(xs)):
            s = x_strides[b]
            source = xs[b] + at(n, h, w, s[0], s[1], s[2], OFFSET)[:, None] + c[None, :]
            x = tl.load(source, mask=mask, other=0).to(tl.float32)
            everything += x
            if ROWS > 1:
                total += tl.where(row[:, None] == b + 1, tl.sum(g * x, 0)[None, :], 0)
        total += tl.where(row[:, None] == 0, tl.sum(everything, 0)[None, :], 0)
        tile += tl.num_programs(0)
    first = (n.to(tl.int64) * tl.num_programs(0) + program) * ROWS * C
    mask = (row < ROWS)[:, None] & (c < C)[None, :]
    tl.store(sums + first + row[:, None] * C + c[None, :], total, mask=mask)


@triton.jit
def shares_of(
    sums,
    reduce_weight,
    reduce_bias,
    slope,
    select_weights,
    select_biases,
    pixels,
    n,
    c,
    C: tl.constexpr,
    D: tl.constexpr,
    SLOPES: tl.constexpr,
    CP: tl.constexpr,
    DP: tl.constexpr,
):
    """Of image n the share of each branch in the channels c; `sums` are parts of those over the pixels."""
    every, d = tl.arange(0, CP), tl.arange(0, DP)
    inside = (d < D)[:, None] & (every < C)[None, :]
    weight = tl.load(reduce_weight + d[:, None] * C + every[None, :], mask=inside, other=0).to(tl.float32)
    total = tl.zeros((CP,), tl.float32)
    for part in tl.static_range(len(sums)):
        total += tl.load(sums[part] + n * C + every, mask=every < C, other=0).to(tl.float32)
    pooled = total / pixels
    # A padded channel must not make 0 * Inf of its own.
    z = tl.sum(tl.where(inside, weight * pooled[None, :], 0), 1)
    if reduce_bias is not None:
        z += tl.load(reduce_bias + d, mask=d < D, other=0).to(tl.float32)
    if SLOPES == 0:
        z = tl.where(z <= 0, 0.0, z)
    else:
        z = prelu(z, tl.load(slope + d % SLOPES, mask=d < D, other=0).to(tl.float32))
    across = (c < C)[:, None] & (d < D)[None, :]
    logits = ()
    for b in tl.static_range(len(select_weights)):
        source = select_weights[b] + c[:, None] * D + d[None, :]
        weight = tl.load(source, mask=across, other=0).to(tl.float32)
        logit = tl.sum(tl.where(across, weight * z[None, :], 0), 1)
        if len(select_biases) > 0:
            logit += tl.load(select_biases[b] + c, mask=c < C, other=0).to(tl.float32)
        logits += (logit,)
    largest = logits[0]
    for b in tl.static_range(1, len(select_weights)):
        largest = tl.maximum(largest, logits[b])
    exponentials = tl.zeros_like(largest)
    for b in tl.static_range(len(select_weights)):
        exponentials += tl.exp(logits[b] - largest)
    shares = ()
    for b in tl.static_range(len(select_weights)):
        shares += (tl.exp(logits[b] - largest) / exponentials,)
    return shares


@triton.jit
def tile_of(
    xs,
    x_strides,
    tile,
    n,
    c,
    height,
    width,
    C: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Of each branch the values in a tile of image n."""
    _, h, w, inside = pixels_of(tile, height, width, TH, TW)
    mask = inside[:, None] & (c < C)[None, :]
    values = ()
    for b in tl.static_range(len(xs)):
        s = x_strides[b]
        source = xs[b] + at(n, h, w, s[0], s[1], s[2], OFFSET)[:, None] + c[None, :]
        values += (tl.load(source, mask=mask, other=0),)
    return values


@for_any_size
def combine_kernel(
    xs,
    x_strides,
    sums,
    reduce_weight,
    reduce_bias,
    slope,
    select_weights,
    select_biases,
    out,
    out_n,
    out_h,
    out_w,
    height,
    width,
    count,
    pixels,
    C: tl.constexpr,
    D: tl.constexpr,
    SLOPES: tl.constexpr,
    CP: tl.constexpr,
    DP: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BC: tl.constexpr,
    OFFSET: tl.constexpr,
):
    # `count` tiles an image.
    tile, n = tl.program_id(0), tl.program_id(2)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    values = tile_of(xs, x_strides, tile, n, c, height, width, C, TH, TW, OFFSET)
    weights = reduce_weight, reduce_bias, slope, select_weights, select_biases
    shares = shares_of(sums, *weights, pixels, n, c, C, D, SLOPES, CP, DP)
    while tile < count:
        total = tl.zeros((TH * TW, BC), tl.float32)
        for b in tl.static_range(len(xs)):
            total += shares[b][None, :] * values[b].to(tl.float32)
        _, h, w, inside = pixels_of(tile, height, width, TH, TW)
        target = out + at(n, h, w, out_n, out_h, out_w, OFFSET)[:, None] + c[None, :]
        tl.store(target, total.to(out.dtype.element_ty), mask=inside[:, None] & (c < C)[None, :])
        tile += tl.num_programs(0)
        if tile < count:
            values = tile_of(xs, x_strides, tile, n, c, height, width, C, TH, TW, OFFSET)


@for_any_size
def spread_kernel(
    grad,
    grad_n,
    grad_h,
    grad_w,
    attention,
    shift,
    outs,
    out_n,
    out_h,
    out_w,
    height,
    width,
    C: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BC: tl.constexpr,
    OFFSET: tl.constexpr,
):
    # Of each branch: its share of the gradient, and what came through the pooling.
    n, h, w, inside = pixels_of(tl.program_id(0), height, width, TH, TW)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    mask = inside[:, None] & (c < C)[None, :]
    source = grad + at(n, h, w, grad_n, grad_h, grad_w, OFFSET)[:, None] + c[None, :]
    g = tl.load(source, mask=mask, other=0).to(tl.float32)
    pooled = tl.load(shift + n * C + c, mask=c < C, other=0)
    target = at(n, h, w, out_n, out_h, out_w, OFFSET)[:, None] + c[None, :]
    for b in tl.static_range(len(outs)):
        share = tl.load(attention + (n * len(outs) + b) * C + c, mask=c < C, other=0)
        value = share[None, :] * g + pooled[None, :]
        tl.store(outs[b] + target, value.to(outs[b].dtype.element_ty), mask=mask)


def pool(branches, grad=None):
    """(N, programs, 1, C) sums over the pixels; with a gradient (N, programs, 1 + B, C)."""
    first = branches[0]
    n, channels, height, width = first.shape
    c = config("skff_pool", first)
    bc = min(c.pop("BC"), triton.next_power_of_2(channels))
    rows = 1 if grad is None else 1 + len(branches)
    count = tiles(1, height, width, c["TH"], c["TW"])
    blocks = triton.cdiv(channels, bc)
    programs = min(count, max(1, PARTIALS // (n * blocks)))
    sums = first.new_empty((n, programs, rows, channels), dtype=torch.float32)
    maps = branches if grad is None else [*branches, grad]
    with on_device(first):
        pool_kernel[(programs, blocks, n)](
            tuple(branches),
            tuple(map(strides, branches)),
            grad,
            None if grad is None else strides(grad),
            sums,
            height,
            width,
            count,
            C=channels,
            ROWS=rows,
            BC=bc,
            OFFSET=offset_type(*maps),
            **c,
        )
    return sums


def skff_select_into(
    out, branches, reduce_weight, reduce_bias, slope, select_weights, select_biases, sums=(), pixels=None
):
    """skff_select of channels_last maps, into one.

    Args:
        out: as the branches, written; may be one of them.
        branches: B maps (N, C, H, W).
        sums: parts (N, C), float64, contiguous, whose total is that of all branches over their pixels; none:
            they are taken of the branches here.
        pixels: of an image, where the sums are over more than the rows that are given.
    """
    n, channels, height, width = out.shape
    squeezed = reduce_weight.shape[0]
    parts = sums or [pool(branches).sum((1, 2), dtype=torch.float64)]
    c = config("skff_combine", out)
    bc = min(c.pop("BC"), triton.next_power_of_2(channels))
    count, blocks = tiles(1, height, width, c["TH"], c["TW"]), triton.cdiv(channels, bc)
    programs = min(count, max(1, PROGRAMS * multiprocessors(out) // (n * blocks)))
    with on_device(out):
        combine_kernel[(programs, blocks, n)](
            tuple(branches),
            tuple(map(strides, branches)),
            tuple(parts),
            reduce_weight.contiguous(),
            reduce_bias,
            slope,
            tuple(w.contiguous() for w in select_weights),
            tuple(b.contiguous() for b in select_biases),
            out,
            *strides(out),
            height,
            width,
            count,
            pixels or height * width,
            C=channels,
            D=squeezed,
            SLOPES=0 if slope is None else slope.shape[0],
            CP=triton.next_power_of_2(channels),
            DP=triton.next_power_of_2(squeezed),
            BC=bc,
            OFFSET=offset_type(*branches, out),
            **c,
        )


def skff_select(branches, reduce_weight, reduce_bias, slope, select_weights, select_biases):
    """As mirnet_fast.ops.skff_select."""
    first = branches[0]
    if first.shape[0] == 0:
        return laid_out_like(map_out(first.shape, first), first)
    maps = [map_in(x) for x in branches]
    weights = reduce_weight, reduce_bias, slope, select_weights, select_biases
    out = map_out(first.shape, first)
    skff_select_into(out, maps, *weights)
    return laid_out_like(out, first)


def skff_select_backward(grad, branches, reduce_weight, reduce_bias, slope, select_weights, select_biases):
    """[gradients of the branches, reduce_weight, reduce_bias, slope, select_weights, select_biases]."""
    weights = reduce_weight, reduce_bias, slope, select_weights, select_biases
    first = branches[0]
    n, channels, height, width = first.shape
    maps, grad = [map_in(x) for x in branches], map_in(grad)
    outs = [map_out(first.shape, first) for _ in branches]
    if n == 0:
        sums = first.new_zeros((0, 1, 1 + len(branches), channels), dtype=torch.float32)
    else:
        sums = pool(maps, grad)
    small, attention, shift = _small_backward(sums.double().sum(1), height * width, *weights)
    c = config("skff_spread", first)
    bc = min(c.pop("BC"), triton.next_power_of_2(channels))
    if n > 0:
        with on_device(first):
            spread_kernel[(tiles(n, height, width, c["TH"], c["TW"]), triton.cdiv(channels, bc))](
                grad,
                *strides(grad),
                attention.float().contiguous(),
                shift.float().contiguous(),
                tuple(outs),
                *strides(outs[0]),
                height,
                width,
                C=channels,
                BC=bc,
                OFFSET=offset_type(grad, outs[0]),
                **c,
            )
    return [*(laid_out_like(out, x) for out, x in zip(outs, branches, strict=True)), *small]


def _small_backward(sums, pixels, reduce_weight, reduce_bias, slope, select_weights, select_biases):
    """Gradients of the weights, attention (N, B, C), and what every pixel gets through the pooling (N, C).

    On a few thousand numbers, in float64.
    """
    pooled, attention_grad = sums[:, 0] / pixels, sums[:, 1:]
    reduce = reduce_weight.flatten(1).double()
    select = torch.stack([w.flatten(1).double() for w in select_weights])
    before = pooled @ reduce.T
    if reduce_bias is not None:
        before = before + reduce_bias.double()
    a = 0 if slope is None else slope.double()
    after = (
        torch.where(before <= 0, 0, before) if slope is None else torch.where(before > 0, before, a * before)
    )
    logits = torch.einsum("bcd,nd->nbc", select, after)
    if len(select_biases):
        logits = logits + torch.stack([b.double() for b in select_biases])
    attention = logits.softmax(1)
    mean = (attention * attention_grad).sum(1, keepdim=True)
    logit_grad = attention * (attention_grad - mean)
    after_grad = torch.einsum("nbc,bcd->nd", logit_grad, select)
    if slope is None:
        before_grad = torch.where(before <= 0, 0, after_grad)
    else:
        before_grad = torch.where(before > 0, after_grad, a * after_grad)
        slope_grad = torch.where(before > 0, 0, before * after_grad)
    result = [(before_grad.T @ pooled).view_as(reduce_weight)]
    if reduce_bias is not None:
        result.append(before_grad.sum(0))
    if slope is not None:
        result.append(slope_grad.sum().view(1) if slope.shape[0] == 1 else slope_grad.sum(0))
    select_grad = torch.einsum("nbc,nd->bcd", logit_grad, after)
    result += [g.view_as(w) for g, w in zip(select_grad, select_weights, strict=True)]
    result += logit_grad.sum(0).unbind() if len(select_biases) else []
    return [g.to(reduce_weight.dtype) for g in result], attention, before_grad @ reduce / pixels
