"""conv3x3: 3x3 convolution with all that used to follow it in passes of its own (_convolution.py).

Fuses bias, PReLU or LeakyReLU, residual and, for the ops behind it, each pixel's maximum and mean over the
channels and each channel's sums. Floor: x, residual and weight read once, out written once;
18 C C' operations a pixel.

With `pooled` a program has all channels of its pixels, in blocks of up to 256: of a map of few pixels and
many channels that is fewer programs than a GPU has multiprocessors, and still less than reading the map
again.
"""

from ._convolution import convolve


def conv3x3(out, x, weight, bias=None, slope=None, residual=None, pooled=None, sums=None, first_row=0):
    """conv2d of x with zero padding 1, PReLU by `slope`, plus `residual`, into `out`.

    Args:
        out: (N, C', H', W), channels_last of any strides beyond that, written. May be `residual`, may not
            share memory with x. Where it has fewer rows than x: those from `first_row` on.
        x: (N, C, H, W), likewise; float16, bfloat16 or float32, as all that have no dtype here.
        weight: (C', 9, C), as `_convolution.packed` gives it.
        bias: (C',) or None.
        slope: (1,) or (C',), what multiplies values that are not positive; or None.
        residual: as out, or None.
        pooled: (N, 2, H', W) float32 with contiguous rows, written with the maximum and the mean over the
            channels of each pixel of out, a NaN being the maximum; or None.
        sums: (N, C') float64, contiguous, to which the sums over the pixels of out are added: zeros, or the
            sums over other rows; or None. Values of float16 are added exactly up to 2^29; else the order
            of the programs may show in the last bit.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    convolve("conv3x3", out, x, weight, bias, slope, residual, pooled, sums, first_row)
