"""residual_down_tail: both halves blurred, projected and added, as one product with K = 2C.

Forward: `down_kernel` gathers each operand block of the product by the blur's tables, PReLU on the way
in for the top half. Floor: 2 + 1/2 maps. Backward: two products give the gradients of the blurred
maps (a quarter map each), the transposed blur with the PReLU's derivative brings them to full
resolution; the weights' gradients come from the blurred maps, made again (a quarter map each).

Tile: 8 x 8 output pixels, so that 17 x 17 input pixels are 13 % more than its own, which its
neighbours find in the cache; all outputs up to 256, for another block of them would blur again.
"""

import triton
import triton.language as tl

from ._common import (
    add_sums,
    at,
    for_any_size,
    on_device,
    operand_type,
    pixels_of,
    power_of_two,
    product_precision,
    tiles,
)
from ._configs import config
from ._layouts import laid_out_like, map_in, map_out, offset_type, strides
from ._products import bias_gradient, project, slope_gradient, weight_gradient
from ._resample import resample, resampled
from ._taps import blur_table


@for_any_size
def down_kernel(
    maps,
    map_strides,
    weights,
    biases,
    slope,
    out,
    sums,
    rows,
    cols,
    out_strides,
    height,
    width,
    C: tl.constexpr,
    D: tl.constexpr,
    SLOPES: tl.constexpr,
    ROW_TAPS: tl.constexpr,
    COL_TAPS: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    OFFSET: tl.constexpr,
):
    pixels = pixels_of(tl.program_id(0), height, width, TH, TW)
    n, h, w, inside = pixels
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    total = tl.zeros((TH * TW, BD), tl.float32)
    for half in tl.static_range(2):
        for first in range(0, C, BK):
            c = first + tl.arange(0, BK)
            a = tl.load(slope + c % SLOPES, mask=c < C, other=0).to(tl.float32) if half == 0 else None
            x, x_strides = maps[half], map_strides[half]
            blurred = resampled(x, x_strides, pixels, c, a, rows, cols, C, ROW_TAPS, COL_TAPS, OFFSET)
            across = (c < C)[:, None] & (d < D)[None, :]
            weight = tl.load(weights[half] + c[:, None] + d[None, :] * C, mask=across, other=0)
            if weights[half].dtype.element_ty != OPERAND:
                weight = weight.to(tl.float32).to(OPERAND)
            total = tl.dot(blurred.to(OPERAND), weight, total, input_precision=PRECISION)
    for half in tl.static_range(2):
        if biases[half] is not None:
            total += tl.load(biases[half] + d, mask=d < D, other=0).to(tl.float32)[None, :]
    target = out + at(n, h, w, *out_strides, OFFSET)[:, None] + d[None, :]
    value = total.to(out.dtype.element_ty)
    tl.store(target, value, mask=inside[:, None] & (d < D)[None, :])
    if sums is not None:
        add_sums(sums + n.to(tl.int64) * D, value.to(tl.float32), inside, d, D)


def blur_tables(size, device, backward=False):
    """Both axes' tables of the blur of maps of this size (H, W)."""
    return [blur_table(length, 3, "reflect", 2, 0, device, backward) for length in size]


def residual_down_tail(top, bottom, slope, top_weight, top_bias, bottom_weight, bottom_bias):
    """As mirnet_fast.ops.residual_down_tail."""
    n, _, height, width = top.shape
    out = map_out((n, top_weight.shape[0], (height + 1) // 2, (width + 1) // 2), top)
    if n:
        weights = top_weight, top_bias, bottom_weight, bottom_bias
        residual_down_tail_into(out, map_in(top), map_in(bottom), slope, *weights)
    return laid_out_like(out, top)


def residual_down_tail_into(
    out, top, bottom, slope, top_weight, top_bias, bottom_weight, bottom_bias, sums=None, tables=None
):
    """The same of channels_last maps, into one.

    Args:
        out: (N, D, ceil(H / 2), ceil(W / 2)), written; may not share memory with the inputs.
        sums: (N, D) float64, contiguous, to which the sums over the pixels of out are added; or None.
        tables: those of `blur_tables`, where the caller has to hold them; or None.
    """
    maps, (n, channels) = (top, bottom), top.shape[:2]
    outputs, height, width = out.shape[1:]
    rows, cols = blur_tables(top.shape[2:], top.device) if tables is None else tables
    c = config("down", top)
    bd = min(c.pop("BD"), power_of_two(outputs))
    bk = min(c.pop("BK"), power_of_two(channels))
    with on_device(top):
        down_kernel[tiles(n, height, width, c["TH"], c["TW"]), triton.cdiv(outputs, bd)](
            maps,
            tuple(map(strides, maps)),
            (top_weight.contiguous(), bottom_weight.contiguous()),
            (top_bias, bottom_bias),
            slope,
            out,
            sums,
            rows,
            cols,
            strides(out),
            height,
            width,
            C=channels,
            D=outputs,
            SLOPES=slope.shape[0],
            ROW_TAPS=rows[0].shape[1],
            COL_TAPS=cols[0].shape[1],
            BD=bd,
            BK=bk,
            OPERAND=operand_type(top.dtype),
            PRECISION=product_precision(),
            OFFSET=offset_type(*maps, out),
            **c,
        )


def residual_down_tail_backward(grad, top, bottom, slope, top_weight, top_bias, bottom_weight, bottom_bias):
    """[gradients of top, bottom, slope, top_weight, top_bias, bottom_weight, bottom_bias]."""
    grad, upper, lower = map_in(grad), map_in(top), map_in(bottom)
    tables, back = (blur_tables(top.shape[2:], top.device, backward) for backward in (False, True))
    top_grad, sums = resample(project(grad, top_weight.flatten(1).T), *back, slope, upper)
    bottom_grad = resample(project(grad, bottom_weight.flatten(1).T), *back)
    return [
        laid_out_like(top_grad, top),
        laid_out_like(bottom_grad, bottom),
        slope_gradient(sums, slope),
        weight_gradient(grad, resample(upper, *tables, slope), top.dtype).view_as(top_weight).to(top.dtype),
        *bias_gradient(grad, top_bias),
        weight_gradient(grad, resample(lower, *tables), top.dtype).view_as(bottom_weight).to(top.dtype),
        *bias_gradient(grad, bottom_bias),
    ]
