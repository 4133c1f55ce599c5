"""What the convolutions share: weights as the kernels read them, the sum over taps and inputs, launches.

A convolution is a product of matrices, outputs times (taps x inputs) times pixels, of which the last is
never there: of each tap and block of inputs a program reads the box of pixels that lies where the tap
looks. Where the GPU has boxes (sm_90, sm_100) and the map is aligned for them, a box goes by TMA to shared
memory and from there to the tensor cores, without a register on the way; what lies outside the map comes
as zeros, which is the padding. Elsewhere the same values are gathered by addresses, taps and inputs
counted as one index, so that 3 inputs with 9 taps are 27 of 32 values and not 9 times 3 of 16.

Floor of a call: x, residual and weight read once, out written once; 2 x taps x C x C' operations a pixel
(of x, for a transposed convolution).

Tile, of P pixels by B outputs: for each operation it brings (P + B) / (P B) bytes of 16-bit values from the
second-level cache, every tap anew, which limits few outputs more than the tensor cores do. So it has all
outputs up to 256, by 8 x 16 pixels, and of up to 64 outputs 16 x 16; a box is 64 inputs of each, 128 bytes,
the widest that shared memory is swizzled for. Two warpgroups share it, and up to 128 outputs a
multiprocessor has room for two, of which one computes while the other begins or ends. Where tiles would
leave half of the multiprocessors without one, they are halved, down to what an instruction of a
warpgroup takes: at most three kernels for a number of channels, whatever the sizes of images.
"""

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from . import _configs
from ._common import add_sums, at, on_device, operand_type, power_of_two, prelu, product_precision, tiles
from ._configs import config
from ._dau_forward import NUMPY, channel_max
from ._layouts import offset_type, strides

NARROW = 64  # outputs, of which one warpgroup takes a tile's products
FEWEST_PIXELS = 64  # of a tile: those of one instruction of a warpgroup's tensor core
# Products of float32 as it is, which no tensor core makes.
EXACT = {"TH": 4, "TW": 8, "BK": 16, "BN": 32, "num_warps": 4, "num_stages": 1}

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

# What changes with the size of an image, or the place of a map in a larger one: never compiled for.
SIZES = [
    *("height", "width", "rows", "first_row"),
    *(f"{m}_{side}" for m in ("x", "out", "residual", "small", "pooled") for side in ("n", "c", "h", "w")),
]


def packed(weight):
    """A convolution's weight as the kernels read it.

    Args:
        weight: (C', C, 1, 1) or (C', C, 3, 3), any strides.

    Returns:
        (C', 1 or 9, C), contiguous: a view where the weight is channels_last, as cuDNN wants it too, so that
        values changed in place are seen; else a copy.
    """
    outputs, inputs = weight.shape[:2]
    weight = weight.contiguous(memory_format=torch.channels_last)
    return weight.permute(0, 2, 3, 1).reshape(outputs, -1, inputs)


@triton.jit
def corner_of(tile, height, width, TH: tl.constexpr, TW: tl.constexpr):
    """(image, first row, first column) of a tile."""
    down, across = tl.cdiv(height, TH), tl.cdiv(width, TW)
    rest = tile % (down * across)
    return tile // (down * across), rest // across * TH, rest % across * TW


@triton.jit
def place_of(t, below, right, SIZE: tl.constexpr, TRANSPOSED: tl.constexpr):
    """(rows down, columns right, index in the weight) of tap t.

    A pixel of phase (below, right) of a transposed convolution of stride 2 is in an odd row where `below`
    is 1: then it is the sum of the last row of taps on the row that it lies in and of the first on the
    next. In an even row only the middle one meets it.
    """
    if TRANSPOSED:
        row, column = t // (1 + right), t % (1 + right)
        return row, column, (1 + below - 2 * row) * SIZE + 1 + right - 2 * column
    else:
        return t // SIZE - SIZE // 2, t % SIZE - SIZE // 2, t


@triton.jit
def steps(count):
    """The end of a loop's range, which may be no tensor where Triton 3.6 interprets it."""
    if NUMPY:
        return (count + 0 * tl.program_id(0)).handle.data.item()
    else:
        return count


@triton.jit
def products(
    x,
    weight,
    x_n,
    x_h,
    x_w,
    n,
    h0,
    w0,
    first,
    below,
    right,
    rows,
    width,
    C: tl.constexpr,
    K: tl.constexpr,
    SIZE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
    BOXES: tl.constexpr,
    ALIGNED: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """(TH * TW, BN): of a tile of x's pixels the outputs from `first` on, 0 from K on, of one phase."""
    # Outputs times pixels: of few outputs the tensor cores then read less for each operation, and the
    # compiler leaves a box, which has to be reshaped, in shared memory only on the right side.
    taps = (1 + below) * (1 + right) if TRANSPOSED else SIZE * SIZE
    total = tl.zeros((BN, TH * TW), tl.float32)
    if BOXES:
        BLOCKS: tl.constexpr = C // BK
        for step in range(0, steps(taps * BLOCKS)):
            dy, dx, tap = place_of(step // BLOCKS, below, right, SIZE, TRANSPOSED)
            c = step % BLOCKS * BK
            value = x.load([n, h0 + dy, w0 + dx, c]).reshape(TH * TW, BK)
            share = weight.load([first, tap * C + c])
            if x.dtype != OPERAND:
                value, share = value.to(OPERAND), share.to(OPERAND)
            total = tl.dot(share, value.T, total, input_precision=PRECISION)
    else:
        i, o = tl.arange(0, TH * TW), first + tl.arange(0, BN)
        h, w = h0 + i // TW, w0 + i % TW
        for begin in range(0, steps(taps * C), BK):
            k = begin + tl.arange(0, BK)
            dy, dx, tap = place_of(k // C, below, right, SIZE, TRANSPOSED)
            row, column = h[:, None] + dy[None, :], w[:, None] + dx[None, :]
            inside = (row >= 0) & (row < rows) & (column >= 0) & (column < width)
            source = x + at(n, row, column, x_n * ALIGNED, x_h * ALIGNED, x_w * ALIGNED, OFFSET)
            value = tl.load(source + (k % C)[None, :], mask=inside & (k < taps * C)[None, :], other=0)
            place = o[:, None] * (SIZE * SIZE * C) + (tap * C + k % C)[None, :]
            share = tl.load(weight + place, mask=(k < taps * C)[None, :] & (o < K)[:, None], other=0)
            if x.dtype.element_ty != OPERAND:
                value, share = value.to(tl.float32).to(OPERAND), share.to(tl.float32).to(OPERAND)
            total = tl.dot(share, value.T, total, input_precision=PRECISION)
    return total.T


@triton.jit
def slopes_of(slope, o, K: tl.constexpr, SLOPES: tl.constexpr):
    """A PReLU's slopes for these outputs: one for all, or one for each."""
    if SLOPES == 1:
        return tl.load(slope).to(tl.float32)
    else:
        return tl.load(slope + o, mask=o < K, other=0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=SIZES)
def conv_kernel(
    x,
    weight,
    bias,
    slope,
    residual,
    out,
    pooled,
    sums,
    x_n,
    x_h,
    x_w,
    residual_n,
    residual_h,
    residual_w,
    out_n,
    out_h,
    out_w,
    pooled_n,
    pooled_c,
    pooled_h,
    first_row,
    rows,
    height,
    width,
    C: tl.constexpr,
    K: tl.constexpr,
    SIZE: tl.constexpr,
    SLOPES: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
    BOXES: tl.constexpr,
    X_ALIGNED: tl.constexpr,
    OUT_ALIGNED: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    OFFSET: tl.constexpr,
):
    # A pixel's maximum and mean are of all its outputs: then one program has these, block after block.
    BLOCKS: tl.constexpr = 1 if pooled is None else (K + BN - 1) // BN
    n, h0, w0 = corner_of(tl.program_id(0), height, width, TH, TW)
    i = tl.arange(0, TH * TW)
    h, w = h0 + i // TW, w0 + i % TW
    inside = (h < height) & (w < width)
    if pooled is not None:
        largest = tl.full((TH * TW,), -float("inf"), tl.float32)
        mean = tl.zeros((TH * TW,), tl.float32)
    for block in tl.range(0, BLOCKS, num_stages=1):
        first = (tl.program_id(1) + block) * BN
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
            0,
            0,
            rows,
            width,
            C,
            K,
            SIZE,
            False,
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
        mask = inside[:, None] & (o < K)[None, :]
        if residual is not None:
            place = at(
                n, h, w, residual_n * OUT_ALIGNED, residual_h * OUT_ALIGNED, residual_w * OUT_ALIGNED, OFFSET
            )
            total += tl.load(residual + place[:, None] + o[None, :], mask=mask, other=0).to(tl.float32)
        value = total.to(out.dtype.element_ty)
        place = at(n, h, w, out_n * OUT_ALIGNED, out_h * OUT_ALIGNED, out_w * OUT_ALIGNED, OFFSET)
        tl.store(out + place[:, None] + o[None, :], value, mask=mask)
        # The statistics are of the values as they were written.
        if sums is not None:
            add_sums(sums + n.to(tl.int64) * K, value.to(tl.float32), inside, o, K)
        if pooled is not None:
            value = value.to(tl.float32)
            here = channel_max(tl.where((o < K)[None, :], value, -float("inf")))
            largest = tl.where((here > largest) | (here != here), here, largest)
            mean += tl.sum(tl.where((o < K)[None, :], value, 0), 1)
    if pooled is not None:
        place = pooled + at(n, h, w, pooled_n, pooled_h, 1, OFFSET)
        tl.store(place, largest, mask=inside)
        tl.store(place + pooled_c.to(tl.int64), mean / K, mask=inside)


def convolve(op, out, x, weight, bias, slope, residual, pooled, sums, first_row):
    """What conv1x1 and conv3x3 say of themselves; `op` is which of them."""
    n, inputs, rows, _ = x.shape
    outputs, taps = check(op, x, weight, bias, slope), weight.shape[1]
    height, width = out.shape[2:]
    check_map(op, "out", out, (n, outputs, height, x.shape[3]), x)
    if residual is not None:
        check_map(op, "residual", residual, out.shape, x)
    check_statistics(op, out, pooled, sums)
    check_rows(op, first_row, height, rows)
    if n == 0:
        return
    by_boxes = in_boxes(x, weight)
    name = op if outputs > NARROW else f"{op}_narrow"
    c = options(name, x, outputs, taps, by_boxes, (n, height, width), pooled is not None)
    added = out if residual is None else residual
    out_unit, x_unit = unit_of(out, added), unit_of(x)
    blocks = 1 if pooled is not None else triton.cdiv(outputs, c["BN"])
    with on_device(x):
        conv_kernel[tiles(n, height, width, c["TH"], c["TW"]), blocks](
            *operands(x, weight, by_boxes, c),
            bias,
            slope,
            residual,
            out,
            pooled,
            sums,
            *in_units(x, x_unit),
            *in_units(added, out_unit),
            *in_units(out, out_unit),
            *((0, 0, 0) if pooled is None else pooled.stride()[:3]),
            first_row,
            rows,
            height,
            width,
            C=inputs,
            K=outputs,
            SIZE=3 if taps == 9 else 1,
            SLOPES=0 if slope is None else slope.shape[0],
            BOXES=by_boxes,
            X_ALIGNED=x_unit,
            OUT_ALIGNED=out_unit,
            OPERAND=operand_type(x.dtype),
            PRECISION=product_precision(),
            OFFSET=offset_type(x, out, added, *([] if pooled is None else [pooled])),
            **c,
        )


def options(kernel, x, outputs, taps, by_boxes, size, whole):
    """Tile and launch options.

    Args:
        size: (N, H, W) of what tiles cover.
        whole: whether a program has all outputs of its pixels.
    """
    c = config(kernel, x)
    if x.dtype == torch.float32 and product_precision() == "ieee" and not _configs.INTERPRETED:
        c |= EXACT
    # A box of the weight is of one tap, so that no number of the next meets the zeros beyond the inputs.
    c["BK"] = math.gcd(c["BK"], x.shape[1]) if by_boxes else min(c["BK"], power_of_two(taps * x.shape[1]))
    c["BN"] = min(c["BN"], power_of_two(outputs))
    # Tiles of half the pixels or, where no program needs all of them, of half the outputs.
    side, least = ("TH", FEWEST_PIXELS // c["TW"]) if whole else ("BN", NARROW)
    while c[side] > least:
        blocks = 1 if whole else triton.cdiv(outputs, c["BN"])
        if 2 * blocks * tiles(*size, c["TH"], c["TW"]) > _configs.multiprocessors(x):
            break
        c[side] //= 2
    return c


def in_boxes(x, weight):
    """Whether a map and a packed weight are read in boxes.

    The GPU must have them, the tensor cores must take the values as they lie there, no box of the weight may
    be of two taps, and all lines of values must start at multiples of 16 bytes.
    """
    if not _configs.has_boxes(x) or (x.dtype == torch.float32 and product_precision() == "ieee"):
        return False
    steps = [x.itemsize * x.stride(i) for i in (0, 2, 3) if x.shape[i] > 1]
    aligned = all(p % 16 == 0 for p in (x.data_ptr(), weight.data_ptr(), *steps))
    return x.shape[1] % 16 == 0 and aligned and all(s > 0 for s in steps)


def operands(x, weight, by_boxes, c):
    """x and weight as `products` takes them."""
    if not by_boxes:
        return x, weight
    n, channels, height, width = x.shape
    # Of a single pixel, row or image the distance to the next may be any number, which TMA would not take.
    pixel = x.stride(3) if width > 1 else channels
    row = x.stride(2) if height > 1 else width * pixel
    image = x.stride(0) if n > 1 else height * row
    box = [1, c["TH"], c["TW"], c["BK"]]
    return (
        TensorDescriptor(x, [n, height, width, channels], [image, row, pixel, 1], box),
        TensorDescriptor.from_tensor(weight.flatten(1), [c["BN"], c["BK"]]),
    )


def unit_of(*maps):
    """What divides every distance of these maps' pixels: the 8 values of a wide load, or 1."""
    # The channels speak for a single pixel, which has no distance: a kernel for it alone is not compiled.
    distances = [d for m in maps for d, size in zip(m.stride(), m.shape, strict=True) if size > 1 and d > 1]
    return 8 if all(d % 8 == 0 for d in (*distances, *(m.shape[1] for m in maps))) else 1


def in_units(x, unit):
    """Strides of image, row and pixel, divided."""
    return tuple(s // unit for s in strides(x))


def check(op, x, weight, bias, slope):
    """The number of outputs, of a weight as `packed` gives it and others that fit it."""
    if x.dim() != 4 or min(x.shape[1:]) < 1 or (x.shape[1] > 1 and x.stride(1) != 1):
        raise ValueError(f"{op}: x must be a channels_last (N, C, H, W); got {described(x)}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{op}: x must be float16, bfloat16 or float32; got {x.dtype}")
    taps, outputs = 1 if op == "conv1x1" else 9, weight.shape[0]
    _expect(op, "weight, as `packed` gives it,", weight, (outputs, taps, x.shape[1]), x)
    if outputs < 1:
        raise ValueError(f"{op}: weight must have an output; got {described(weight)}")
    if bias is not None:
        _expect(op, "bias", bias, (outputs,), x)
    if slope is not None:
        _expect(op, "slope", slope, (1 if slope.numel() == 1 else outputs,), x)
    return outputs


def check_tail(op, x, channels, weight, bias, small):
    """A 1x1 convolution behind so many channels, and what is added to it, at x's size."""
    _expect(op, "top_weight", weight, (weight.shape[0], channels, 1, 1), x, dense=False)
    if bias is not None:
        _expect(op, "top_bias", bias, weight.shape[:1], x)
    check_map(op, "small", small, (x.shape[0], weight.shape[0], *x.shape[2:]), x)


def check_map(op, name, value, shape, x):
    """A channels_last map of x's dtype and device."""
    if value.dim() == 4 and shape[1] > 1 and value.stride(1) != 1:
        raise ValueError(f"{op}: {name} must be channels_last; got strides {value.stride()}")
    _expect(op, name, value, shape, x, dense=False)


def check_statistics(op, out, pooled, sums):
    """Of a map `out`, each of them if it is there."""
    n, channels, height, width = out.shape
    if pooled is not None:
        _expect(op, "pooled", pooled, (n, 2, height, width), out, torch.float32, dense=False)
        if width > 1 and pooled.stride(3) != 1:
            raise ValueError(f"{op}: pooled's rows must be contiguous; got strides {pooled.stride()}")
    if sums is not None:
        _expect(op, "sums", sums, (n, channels), out, torch.float64)


def check_rows(op, first, count, every):
    """Rows [first, first + count) of `every`."""
    if first < 0 or first + count > every:
        raise ValueError(
            f"{op}: the rows from first_row on must lie inside the {every} there are; "
            f"got first_row = {first} and {count} rows"
        )


def described(tensor):
    """For a message."""
    return f"{tuple(tensor.shape)} with strides {tensor.stride()}, {tensor.dtype} on {tensor.device}"


def _expect(op, name, value, shape, like, dtype=None, dense=True):
    dtype = dtype or like.dtype
    fits = (tuple(value.shape), value.dtype, value.device) == (tuple(shape), dtype, like.device)
    if not fits or (dense and not value.is_contiguous()):
        wanted = f"{tuple(shape)}, {'contiguous, ' if dense else ''}{dtype} on {like.device}"
        raise ValueError(f"{op}: {name} must be {wanted}; got {described(value)}")
