"""conv_transpose3x3 of the CPU engine, as inference runs it, against oneDNN's, in the residual ups.

Small maps have their packed weights kept from the call before, as in a network's second forward.
"""

import functools

import pytest
import torch
from harness import compare_convolution, streams
from torch.nn.functional import conv_transpose2d

# The second and third stream at 1x3x256x256, and at 1x3x128x128.
SIZES = [(128, 128), (256, 64), (128, 64), (256, 32)]


@pytest.mark.parametrize("size", **streams(SIZES))
def test_conv_transpose3x3(benchmark, record, size):
    published = functools.partial(conv_transpose2d, stride=2, padding=1, output_padding=1)

    def run(x, weight):
        n, channels, height, width = x.shape
        shape = n, channels, 2 * height, 2 * width
        out = torch.empty(shape, memory_format=torch.channels_last)
        torch.ops.mirnet_fast_cpu.conv_transpose3x3_into(out, x, weight, None, None)
        return out

    # Of the 16 pixels of a tile, 144 products without inserted zeros; here 16 + 20 + 20 + 25.
    name = "conv_transpose3x3"
    compare_convolution(benchmark, record, name, size, published, run, outputs=4, share=81 / 144)
