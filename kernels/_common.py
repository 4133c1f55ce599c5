"""What the Triton kernels share: the interpreter, products, tiles of pixels, launches.

A tile is TH x TW pixels of one image, so that an operator that looks at neighbours reads little
more than the tile. The offset of an image is 64 bits wide, offsets within one are where they must.

Works with triton 3.6 to 3.9. Every load is cast to float32 at once and every sum is float32: the
interpreter's bfloat16 arithmetic is wrong, and a GPU's would be too short.
"""

import contextlib

import torch
import triton
import triton.language as tl

# TRITON_INTERPRET=1 runs the kernels on the CPU, for tests.
INTERPRETED = triton.knobs.runtime.interpret


def operand_type(dtype):
    """Type in which a matrix product takes its operands."""
    if dtype == torch.float16:
        return tl.float16
    if dtype == torch.bfloat16:
        return tl.float32 if INTERPRETED else tl.bfloat16
    return tl.float32


def product_precision():
    """How float32 operands are multiplied: as in the convolutions beside the kernels, which are cuDNN's.

    Of torch's switches this is what cuDNN is asked for. It never raises; the getters of the older switches
    do once a newer one was set.
    """
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"


def on_device(x):
    """Launches inside go to x's device, on its current stream."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def power_of_two(n, low=16):
    """The next power of two, at least `low`, the smallest side of a matrix product."""
    return max(triton.next_power_of_2(n), low)


# Of a kernel that is launched: what changes with the size of an image. Left to itself Triton compiles anew
# for numbers that are 1 or that 16 divides, which only the strides of maps gain by.
for_any_size = triton.jit(do_not_specialize=["height", "width", "count", "pixels"])


@triton.jit
def pixels_of(tile, height, width, TH: tl.constexpr, TW: tl.constexpr):
    """(image, row, column, inside) of the pixels of a tile; the image is one number."""
    down, across = tl.cdiv(height, TH), tl.cdiv(width, TW)
    rest = tile % (down * across)
    i = tl.arange(0, TH * TW)
    h = rest // across * TH + i // TW
    w = rest % across * TW + i % TW
    return tile // (down * across), h, w, (h < height) & (w < width)


@triton.jit
def at(n, h, w, stride_n, stride_h, stride_w, OFFSET: tl.constexpr):
    """Offset of pixels (h, w) of image n."""
    return n.to(tl.int64) * stride_n + h.to(OFFSET) * stride_h + w.to(OFFSET) * stride_w


@triton.jit
def prelu(x, slope):
    """A NaN goes through; what the slope multiplies is all that is not positive."""
    return tl.where(x > 0, x, slope * x)


@triton.jit
def add_sums(sums, value, inside, o, K: tl.constexpr):
    """Adds a tile's sums over its pixels inside to those of its image."""
    # In float64: of values of float16 these additions are exact, so that their order does not matter.
    part = tl.sum(tl.where(inside[:, None], value, 0), 0).to(tl.float64)
    tl.atomic_add(sums + o, part, mask=o < K, sem="relaxed")


def tiles(n, height, width, th, tw):
    """How many tiles cover n images."""
    return n * triton.cdiv(height, th) * triton.cdiv(width, tw)
