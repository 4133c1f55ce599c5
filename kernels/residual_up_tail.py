"""residual_up_tail: PReLU and 1x1 convolution of the large map, plus the bilinear branch.

Forward: the small map is projected first (both steps are linear), then `up_kernel` multiplies the large
map, PReLU on the way in, and adds the enlarged projection and the biases. Floor: 4 + 1 + 2 maps of
the small one's size and, once written and read, half a map of projection, which the second-level
cache of a large GPU holds.

Tile: 8 x 8 pixels by all outputs up to 128: of the projection it reads 6 x 6 pixels.
"""

import triton
import triton.language as tl

from ._common import (
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
from ._products import bias_gradient, multiplied, project, slope_gradient, weight_gradient
from ._resample import resample
from ._taps import bilinear_table


@for_any_size
def up_kernel(
    top,
    slope,
    weight,
    small,
    top_bias,
    bottom_bias,
    out,
    top_strides,
    small_strides,
    out_strides,
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
    n, h, w, inside = pixels_of(tl.program_id(0), height, width, TH, TW)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    source = top + at(n, h, w, *top_strides, OFFSET)[:, None]
    total = multiplied(source, inside, weight, slope, d, C, D, SLOPES, BK, OPERAND, PRECISION)
    mask = inside[:, None] & (d < D)[None, :]
    # Bilinear, align_corners=False: three quarters of the pixel that this one lies in, a quarter of
    # the neighbour it is nearer to; at the border that is the pixel itself.
    for down in tl.static_range(2):
        row = h // 2 + down * (h % 2 * 2 - 1)
        row = tl.minimum(tl.maximum(row, 0), height // 2 - 1)
        for right in tl.static_range(2):
            col = w // 2 + right * (w % 2 * 2 - 1)
            col = tl.minimum(tl.maximum(col, 0), width // 2 - 1)
            position = small + at(n, row, col, *small_strides, OFFSET)[:, None] + d[None, :]
            share = (0.75 - 0.5 * down) * (0.75 - 0.5 * right)
            total += share * tl.load(position, mask=mask, other=0).to(tl.float32)
    if top_bias is not None:
        total += tl.load(top_bias + d, mask=d < D, other=0).to(tl.float32)[None, :]
    if bottom_bias is not None:
        total += tl.load(bottom_bias + d, mask=d < D, other=0).to(tl.float32)[None, :]
    target = out + at(n, h, w, *out_strides, OFFSET)[:, None] + d[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=mask)


def residual_up_tail(top, bottom, slope, top_weight, top_bias, bottom_weight, bottom_bias):
    """As mirnet_fast.ops.residual_up_tail."""
    n, channels, height, width = top.shape
    outputs = top_weight.shape[0]
    out = map_out((n, outputs, height, width), top)
    if n == 0:
        return laid_out_like(out, top)
    large = map_in(top)
    small = project(map_in(bottom), bottom_weight.flatten(1))
    c = config("up", top)
    bd = min(c.pop("BD"), power_of_two(outputs))
    bk = min(c.pop("BK"), power_of_two(channels))
    with on_device(top):
        up_kernel[tiles(n, height, width, c["TH"], c["TW"]), triton.cdiv(outputs, bd)](
            large,
            slope,
            top_weight.contiguous(),
            small,
            top_bias,
            bottom_bias,
            out,
            strides(large),
            strides(small),
            strides(out),
            height,
            width,
            C=channels,
            D=outputs,
            SLOPES=slope.shape[0],
            BD=bd,
            BK=bk,
            OPERAND=operand_type(top.dtype),
            PRECISION=product_precision(),
            OFFSET=offset_type(large, out),
            **c,
        )
    return laid_out_like(out, top)


def residual_up_tail_backward(grad, top, bottom, slope, top_weight, top_bias, bottom_weight, bottom_bias):
    """[gradients of top, bottom, slope, top_weight, top_bias, bottom_weight, bottom_bias]."""
    grad, large, small = map_in(grad), map_in(top), map_in(bottom)
    top_grad, sums = project(grad, top_weight.flatten(1).T, slope, large)
    tables = [bilinear_table(size, top.device, backward=True) for size in bottom.shape[2:]]
    reduced = resample(grad, *tables)
    weights = [
        weight_gradient(grad, large, top.dtype, slope).view_as(top_weight).to(top.dtype),
        *bias_gradient(grad, top_bias),
        weight_gradient(reduced, small, top.dtype).view_as(bottom_weight).to(top.dtype),
        *bias_gradient(grad, bottom_bias),
    ]
    return [
        laid_out_like(top_grad, top),
        laid_out_like(project(reduced, bottom_weight.flatten(1).T), bottom),
        slope_gradient(sums, slope),
        *weights,
    ]
