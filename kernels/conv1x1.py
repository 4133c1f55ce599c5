"""conv1x1: 1x1 convolution with bias, PReLU, residual and statistics (_convolution.py, one tap).

Floor: x, residual and weight read once, out written once; 2 C C' operations a pixel, which up to 256
channels take less time than the bytes. Two 1x1 convolutions of one map, with PReLU behind one of them
alone, are one with a slope for each channel: 1 for those of the other.
"""

from ._convolution import convolve


def conv1x1(out, x, weight, bias=None, slope=None, residual=None, pooled=None, sums=None):
    """conv2d of x, PReLU by `slope`, plus `residual`, into `out`.

    Args as conv3x3's, with a weight (C', 1, C).

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    convolve("conv1x1", out, x, weight, bias, slope, residual, pooled, sums, 0)
