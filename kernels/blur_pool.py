"""blur_pool: every output pixel is the weighted sum of the few input pixels its two tables name.

Fuses padding, filter and stride; the backward is the same kernel on the transposed tables.
Floor: 1 + 1/4 maps. Tile: 8 x 16 output pixels by up to 64 channels; of the usual filter its
17 x 33 input pixels are 10 % more than the tile's own, and neighbours meet them in the cache.
"""

import triton
import triton.language as tl

from ._common import at, laid_out_like, map_in, map_out, offset_type, on_device, pixels_of, strides, tiles
from ._configs import config
from ._taps import blur_table


@triton.jit
def resample_kernel(
    x,
    out,
    row_index,
    row_weight,
    col_index,
    col_weight,
    x_n,
    x_h,
    x_w,
    out_n,
    out_h,
    out_w,
    height,
    width,
    C: tl.constexpr,
    ROW_TAPS: tl.constexpr,
    COL_TAPS: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BC: tl.constexpr,
    OFFSET: tl.constexpr,
):
    n, h, w, inside = pixels_of(tl.program_id(0), height, width, TH, TW)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    total = tl.zeros((TH * TW, BC), tl.float32)
    for a in tl.static_range(ROW_TAPS):
        row = tl.load(row_index + h * ROW_TAPS + a, mask=inside, other=0)
        row_share = tl.load(row_weight + h * ROW_TAPS + a, mask=inside, other=0)
        for b in tl.static_range(COL_TAPS):
            col = tl.load(col_index + w * COL_TAPS + b, mask=inside, other=0)
            share = row_share * tl.load(col_weight + w * COL_TAPS + b, mask=inside, other=0)
            # Padding of the tables is not read: NaN times 0 would be NaN.
            source = x + at(n, row, col, x_n, x_h, x_w, OFFSET)[:, None] + c[None, :]
            mask = (share != 0)[:, None] & (c < C)[None, :]
            total += share[:, None] * tl.load(source, mask=mask, other=0).to(tl.float32)
    target = out + at(n, h, w, out_n, out_h, out_w, OFFSET)[:, None] + c[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=inside[:, None] & (c < C)[None, :])


def resample(x, rows, cols):
    """channels_last sum over row taps and column taps of a channels_last map."""
    n, channels = x.shape[:2]
    height, width = rows[0].shape[0], cols[0].shape[0]
    out = map_out((n, channels, height, width), x)
    if out.numel() == 0:
        return out
    c = config("blur_pool", x)
    bc = min(c.pop("BC"), triton.next_power_of_2(channels))
    grid = (tiles(n, height, width, c["TH"], c["TW"]), triton.cdiv(channels, bc))
    with on_device(x):
        resample_kernel[grid](
            x,
            out,
            *rows,
            *cols,
            *strides(x),
            *strides(out),
            height,
            width,
            C=channels,
            ROW_TAPS=rows[0].shape[1],
            COL_TAPS=cols[0].shape[1],
            BC=bc,
            OFFSET=offset_type(x, out),
            **c,
        )
    return out


def _tables(x, *settings, backward=False):
    return [blur_table(size, *settings, x.device, backward) for size in x.shape[2:]]


def blur_pool(x, filt_size, pad_type, stride, pad_off):
    """As mirnet_fast.ops.blur_pool."""
    tables = _tables(x, filt_size, pad_type, stride, pad_off)
    return laid_out_like(resample(map_in(x), *tables), x)


def blur_pool_backward(grad, x, filt_size, pad_type, stride, pad_off):
    """[gradient of x]."""
    tables = _tables(x, filt_size, pad_type, stride, pad_off, backward=True)
    return [laid_out_like(resample(map_in(grad), *tables), x)]
