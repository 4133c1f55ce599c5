"""conv3x3 of the CPU engine, as inference runs it, against oneDNN's, on the streams of the network.

Small maps have their packed weights kept from the call before, as in a network's second forward.
"""

import functools

import pytest
import torch
from harness import compare_convolution, streams
from torch.nn.functional import conv2d

from mirnet_fast.engine.in_place import conv3x3_into

# The three streams at 1x3x256x256, and at 1x3x128x128.
SIZES = [(64, 256), (128, 128), (256, 64), (64, 128), (128, 64), (256, 32)]


@pytest.mark.parametrize("size", **streams(SIZES))
def test_conv3x3(benchmark, record, size):
    published = functools.partial(conv2d, padding=1)

    def run(x, weight):
        out = torch.empty_like(x)
        conv3x3_into(out, x, weight, None, None, None, None, None, 0)
        return out

    # F(4x6, 3x3): 48 products for 216; F(4x4, 3x3), for more channels: 36 for 144.
    share = 48 / 216 if size[1] <= 128 else 36 / 144
    compare_convolution(benchmark, record, "conv3x3", size, published, run, share=share)
