"""conv1x1 of the CPU engine, with its PReLU, against PyTorch's, in the network's residual resamplers."""

import pytest
import torch
from harness import compare_convolution, streams
from torch.nn.functional import conv2d, leaky_relu_

from mirnet_fast.engine.in_place import conv1x1_into

# The three streams at 1x3x256x256, and at 1x3x128x128.
SIZES = [(64, 256), (128, 128), (256, 64), (64, 128), (128, 64), (256, 32)]
SLOPE = 0.25


@pytest.mark.parametrize("size", **streams(SIZES))
def test_conv1x1(benchmark, record, size):
    slope = torch.full((1,), SLOPE)

    def published(x, weight):
        return leaky_relu_(conv2d(x, weight), SLOPE)

    def run(x, weight):
        out = torch.empty_like(x)
        conv1x1_into(out, x, weight, None, slope)
        return out

    compare_convolution(benchmark, record, "conv1x1", size, published, run, taps=1)
