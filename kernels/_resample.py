"""Resampling by two tables, with a PReLU before it or the derivative of one after it.

out[h, w] = sum over row taps a and column taps b of weight * x[row a, column b]: blur-pool, the gradient
of blur-pool and the gradient of the bilinear enlargement. Every input pixel is read once but for the
border of a tile. Tile: 8 x 16 output pixels by up to 64 channels; of the usual blur its 17 x 33 input
pixels are 10 % more than its own, and neighbours meet them in the cache.
"""

import torch
import triton
import triton.language as tl

from ._common import at, for_any_size, on_device, pixels_of, prelu, tiles
from ._configs import config
from ._layouts import map_out, offset_type, strides


@triton.jit
def resampled(
    x, x_strides, pixels, c, slopes, rows, cols, C, ROW_TAPS: tl.constexpr, COL_TAPS: tl.constexpr, OFFSET
):
    """(pixels, channels c), float32, of x resampled; of PReLU(x) where there are slopes of these channels.

    rows, cols: (index, weight), the tables.
    """
    n, h, w, inside = pixels
    total = tl.zeros((inside.shape[0], c.shape[0]), tl.float32)
    for i in tl.static_range(ROW_TAPS):
        row = tl.load(rows[0] + h * ROW_TAPS + i, mask=inside, other=0)
        row_share = tl.load(rows[1] + h * ROW_TAPS + i, mask=inside, other=0)
        for j in tl.static_range(COL_TAPS):
            col = tl.load(cols[0] + w * COL_TAPS + j, mask=inside, other=0)
            share = row_share * tl.load(cols[1] + w * COL_TAPS + j, mask=inside, other=0)
            # Padding of the tables is not read: NaN times 0 would be NaN.
            source = x + at(n, row, col, *x_strides, OFFSET)[:, None] + c[None, :]
            mask = (share != 0)[:, None] & (c < C)[None, :]
            value = tl.load(source, mask=mask, other=0).to(tl.float32)
            if slopes is not None:
                value = prelu(value, slopes[None, :])
            total += share[:, None] * value
    return total


@for_any_size
def resample_kernel(
    x,
    out,
    slope,
    top,
    slope_sums,
    rows,
    cols,
    x_strides,
    out_strides,
    top_strides,
    height,
    width,
    C: tl.constexpr,
    SLOPES: tl.constexpr,
    ROW_TAPS: tl.constexpr,
    COL_TAPS: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BC: tl.constexpr,
    OFFSET: tl.constexpr,
):
    pixels = pixels_of(tl.program_id(0), height, width, TH, TW)
    n, h, w, inside = pixels
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    a = tl.load(slope + c % SLOPES, mask=c < C, other=0).to(tl.float32) if SLOPES > 0 else None
    slopes = a if top is None else None
    total = resampled(x, x_strides, pixels, c, slopes, rows, cols, C, ROW_TAPS, COL_TAPS, OFFSET)
    mask = inside[:, None] & (c < C)[None, :]
    if top is not None:
        source = top + at(n, h, w, *top_strides, OFFSET)[:, None] + c[None, :]
        before = tl.load(source, mask=mask, other=0).to(tl.float32)
        through = tl.sum(tl.where(before > 0, 0, before * total), 0)
        tl.store(slope_sums + tl.program_id(0).to(tl.int64) * C + c, through, mask=c < C)
        total = tl.where(before > 0, total, a[None, :] * total)
    target = out + at(n, h, w, *out_strides, OFFSET)[:, None] + c[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=mask)


def resample(x, rows, cols, slope=None, top=None, dtype=None):
    """The resampled map, channels_last, of a channels_last x.

    slope: of a PReLU on x; with `top`, of the PReLU whose output's gradient the resampled map is: then
    the result is (gradient of top, sums (tiles, C) for the slope's gradient).
    """
    n, channels = x.shape[:2]
    height, width = rows[0].shape[0], cols[0].shape[0]
    out = map_out((n, channels, height, width), x, dtype)
    c = config("resample", x)
    bc = min(c.pop("BC"), triton.next_power_of_2(channels))
    count = tiles(n, height, width, c["TH"], c["TW"])
    sums = None if top is None else x.new_empty((count, channels), dtype=torch.float32)
    if count > 0:
        with on_device(x):
            resample_kernel[count, triton.cdiv(channels, bc)](
                x,
                out,
                slope,
                top,
                sums,
                rows,
                cols,
                strides(x),
                strides(out),
                strides(x if top is None else top),
                height,
                width,
                C=channels,
                SLOPES=0 if slope is None else slope.shape[0],
                ROW_TAPS=rows[0].shape[1],
                COL_TAPS=cols[0].shape[1],
                BC=bc,
                OFFSET=offset_type(x, out),
                **c,
            )
    return out if top is None else (out, sums)
