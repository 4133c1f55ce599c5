"""conv_transpose3x3 of the CPU engine, as training runs it, against oneDNN's, in the residual ups.

The weights are packed at every call.
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
        return torch.ops.mirnet_fast_cpu.conv_transpose3x3(x, weight, None)

    # Of the 16 pixels of a tile, 144 products without inserted zeros; here 16 + 20 + 20 + 25.
    name = "conv_transpose3x3"
    compare_convolution(benchmark, record, name, size, published, run, outputs=4, share=81 / 144)
