"""conv_transpose3x3: the transposed 3x3 convolution that doubles a map, alone or with all that follows it.

Stride 2 makes of an output pixel one of four phases, which are the sums of 1, 2, 2 and 4 of the nine taps
(_convolution.py): no multiplication by the zeros in between, 18 C C' operations a pixel of x. A program
makes one phase of a tile of x's pixels, those of four taps first, as they take longest.

`residual_up_tail_of_conv` is the end of a residual up-sampling (paper, figure 5b) in one kernel: PReLU, 1x1
convolution and the bilinear branch on the tile while it lies in registers, so that the large map, four
times x and the network's largest, is never there. Floor: x, the projected small map and the weights read
once, out (of half as many channels) written once; 8 C' D more operations. All four phases in one program
would read x four times, not nine, and its sums, four times a tile's, would leave registers for 64 pixels
of 128 channels: more bytes of weights for each operation than is saved.

The bilinear branch is projected before it is enlarged (both steps are linear), by whoever makes the small
map: as further outputs, with slope 1, of the 1x1 convolution that reads the same pixels, it costs no pass.
"""

import triton
import triton.language as tl

from ._common import add_sums, at, on_device, operand_type, power_of_two, prelu, product_precision, tiles
from ._convolution import (
    SIZES,
    check,
    check_map,
    check_rows,
    check_statistics,
    check_tail,
    corner_of,
    in_boxes,
    in_units,
    operands,
    options,
    products,
    slopes_of,
    unit_of,
)
from ._convolution import packed as _packed
from ._layouts import offset_type


def packed(weight):
    """A transposed convolution's weight (C, C', 3, 3) as the kernels read it: (C', 9, C), a copy."""
    return _packed(weight.transpose(0, 1))


@triton.jit
def enlarged(
    small, n, h, w, below, right, d, mask, small_n, small_h, small_w, rows, width, OFFSET: tl.constexpr
):
    """Of the bilinear enlargement of a map by 2, align_corners=False, the pixels of one phase."""
    # Three quarters of the pixel that one lies in, a quarter of the neighbour it is nearer to; at the border
    # that is the pixel itself.
    total = tl.zeros(mask.shape, tl.float32)
    for i in tl.static_range(2):
        row = tl.minimum(tl.maximum(h + i * (2 * below - 1), 0), rows - 1)
        for j in tl.static_range(2):
            column = tl.minimum(tl.maximum(w + j * (2 * right - 1), 0), width - 1)
            place = at(n, row, column, small_n, small_h, small_w, OFFSET)
            value = tl.load(small + place[:, None] + d[None, :], mask=mask, other=0).to(tl.float32)
            total += (0.75 - 0.5 * i) * (0.75 - 0.5 * j) * value
    return total


@triton.jit(do_not_specialize=SIZES)
def conv_transpose_kernel(
    x,
    weight,
    bias,
    slope,
    tail_weight,
    tail_bias,
    small,
    out,
    sums,
    x_n,
    x_h,
    x_w,
    small_n,
    small_h,
    small_w,
    out_n,
    out_h,
    out_w,
    first_row,
    rows,
    height,
    width,
    C: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    SLOPES: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    BOXES: tl.constexpr,
    X_ALIGNED: tl.constexpr,
    OUT_ALIGNED: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    OFFSET: tl.constexpr,
):
    # height x width pixels of x from first_row on. Without a tail the outputs are those of the convolution.
    BLOCKS: tl.constexpr = 1 if tail_weight is None else (K + BN - 1) // BN
    n, h0, w0 = corner_of(tl.program_id(0), height, width, TH, TW)
    phase = 3 - tl.program_id(2)
    below, right = phase // 2, phase % 2
    i = tl.arange(0, TH * TW)
    h, w = h0 + i // TW, w0 + i % TW
    inside = (h < height) & (w < width)
    place = at(
        n, 2 * h + below, 2 * w + right, out_n * OUT_ALIGNED, out_h * OUT_ALIGNED, out_w * OUT_ALIGNED, OFFSET
    )
    if tail_weight is not None:
        d = tl.program_id(1) * BD + tl.arange(0, BD)
        result = tl.zeros((TH * TW, BD), tl.float32)
    for block in tl.range(0, BLOCKS, num_stages=1):
        first = tl.program_id(1) * BN if tail_weight is None else block * BN
        o = first + tl.arange(0, BN)
        total = products(
            x,
            weight,
            x_n,
            x_h,
            x_w,
            n,
            first_row + h0,
            w0,
            first,
            below,
            right,
            rows,
            width,
            C,
            K,
            3,
            True,
            TH,
            TW,
            BK,
            BN,
            BOXES,
            X_ALIGNED,
            OPERAND,
            PRECISION,
            OFFSET,
        )
        if bias is not None:
            total += tl.load(bias + o, mask=o < K, other=0).to(tl.float32)[None, :]
        if SLOPES > 0:
            total = prelu(total, slopes_of(slope, o, K, SLOPES))
        if tail_weight is None:
            tl.store(
                out + place[:, None] + o[None, :],
                total.to(out.dtype.element_ty),
                mask=inside[:, None] & (o < K)[None, :],
            )
        else:
            if K % BN != 0:
                # Beyond the last output a pixel of infinities has NaNs.
                total = tl.where((o < K)[None, :], total, 0)
            mask = (o < K)[:, None] & (d < D)[None, :]
            share = tl.load(tail_weight + d[None, :] * K + o[:, None], mask=mask, other=0)
            if out.dtype.element_ty != OPERAND:
                share = share.to(tl.float32).to(OPERAND)
            result = tl.dot(total.to(OPERAND), share, result, input_precision=PRECISION)
    if tail_weight is not None:
        mask = inside[:, None] & (d < D)[None, :]
        small_n, small_h, small_w = small_n * OUT_ALIGNED, small_h * OUT_ALIGNED, small_w * OUT_ALIGNED
        result += enlarged(
            small, n, first_row + h, w, below, right, d, mask, small_n, small_h, small_w, rows, width, OFFSET
        )
        if tail_bias is not None:
            result += tl.load(tail_bias + d, mask=d < D, other=0).to(tl.float32)[None, :]
        value = result.to(out.dtype.element_ty)
        tl.store(out + place[:, None] + d[None, :], value, mask=mask)
        if sums is not None:
            add_sums(sums + n.to(tl.int64) * D, value.to(tl.float32), inside, d, D)


def conv_transpose3x3(out, x, weight, bias=None, slope=None, first_row=0):
    """conv_transpose2d of x with stride 2, padding 1 and output padding 1, PReLU by `slope`, into `out`.

    Args:
        out: (N, C', 2H', 2W), channels_last of any strides beyond that, written; may not share memory with x.
            Where it has fewer rows than 2H: those from `2 * first_row` on.
        x: (N, C, H, W), likewise; float16, bfloat16 or float32, as all the others.
        weight: (C', 9, C), as `packed` gives it.
        bias: (C',) or None.
        slope: (1,) or (C',), what multiplies values that are not positive; or None.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    _launch("conv_transpose3x3", out, x, weight, bias, slope, None, None, None, first_row, None)


def residual_up_tail_of_conv(
    out, x, conv_weight, conv_bias, small, slope, top_weight, top_bias, first_row=0, sums=None
):
    """conv1x1(PReLU(conv_transpose3x3(x))) + bilinear x2 of `small`, into `out`.

    Args:
        out: (N, D, 2H', 2W), channels_last of any strides beyond that, written; may not share memory with x
            and small. Where it has fewer rows than 2H: those from `2 * first_row` on.
        x: (N, C, H, W), likewise; float16, bfloat16 or float32, as all that have no dtype here.
        conv_weight: (C', 9, C), as `packed` gives it.
        conv_bias: (C',) or None.
        small: (N, D, H, W), channels_last: the residual branch's 1x1 convolution, with its bias, of the
            module's input.
        slope: (1,) or (C',), what multiplies values that are not positive.
        top_weight: (D, C', 1, 1).
        top_bias: (D,) or None.
        sums: (N, D) float64, contiguous, to which the sums over the pixels of out are added, for
            skff_select: as conv3x3's; or None.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.

    Source: MIRNet (arXiv 2003.06792) section 3.3, figure 5b.
    """
    tail = top_weight, top_bias, small
    _launch("residual_up_tail_of_conv", out, x, conv_weight, conv_bias, slope, *tail, first_row, sums)


def _launch(op, out, x, weight, bias, slope, tail_weight, tail_bias, small, first_row, sums):
    n, inputs, rows, width = x.shape
    channels = check(op, x, weight, bias, slope)
    height = out.shape[2] // 2
    outputs = channels if tail_weight is None else tail_weight.shape[0]
    check_map(op, "out", out, (n, outputs, 2 * height, 2 * width), x)
    check_rows(op, first_row, height, rows)
    if tail_weight is not None:
        check_tail(op, x, channels, tail_weight, tail_bias, small)
        check_statistics(op, out, None, sums)
    if n == 0:
        return
    by_boxes = in_boxes(x, weight)
    c = options("conv_transpose3x3", x, channels, 9, by_boxes, (n, height, width), tail_weight is not None)
    bd = min(c.pop("BD"), power_of_two(outputs))
    side = c["BN"] if tail_weight is None else bd
    added = out if small is None else small
    x_unit, out_unit = unit_of(x), unit_of(out, added)
    with on_device(x):
        conv_transpose_kernel[tiles(n, height, width, c["TH"], c["TW"]), triton.cdiv(outputs, side), 4](
            *operands(x, weight, by_boxes, c),
            bias,
            slope,
            None if tail_weight is None else tail_weight.contiguous(),
            tail_bias,
            small,
            out,
            sums,
            *in_units(x, x_unit),
            *in_units(added, out_unit),
            *in_units(out, out_unit),
            first_row,
            rows,
            height,
            width,
            C=inputs,
            K=channels,
            D=outputs,
            SLOPES=0 if slope is None else slope.shape[0],
            BD=bd,
            BOXES=by_boxes,
            X_ALIGNED=x_unit,
            OUT_ALIGNED=out_unit,
            OPERAND=operand_type(x.dtype),
            PRECISION=product_precision(),
            OFFSET=offset_type(x, out, added),
            **c,
        )
