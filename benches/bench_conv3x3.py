"""conv3x3 of the CPU engine against PyTorch's, that is oneDNN's, on the streams of the network.

GFLOP/s are effective: the plain convolution's arithmetic over the time taken.
"""

import harness
import pytest
import torch

from mirnet_fast import _native, ops  # noqa: F401 (defines the op)

# The three streams at 1x3x256x256, and at 1x3x128x128.
STREAMS = [(64, 256), (128, 128), (256, 64), (64, 128), (128, 64), (256, 32)]
SIZES = [(1, 16, 16, 16)] if harness.TINY else [(1, c, side, side) for c, side in STREAMS]


@pytest.mark.skipif(_native.cpu_library_error() is not None, reason="the C++ kernels are not there")
@pytest.mark.skipif(harness.DEVICE != "cpu", reason="an op of the CPU alone")
@pytest.mark.parametrize("size", SIZES, ids=harness.shape)
def test_conv3x3(benchmark, record, size):
    channels, pixels = size[1], size[0] * size[2] * size[3]
    weight = torch.randn(channels, channels, 3, 3) * (9 * channels) ** -0.5
    packed = torch.ops.mirnet_fast_cpu.conv3x3_pack(weight)
    image, variants = torch.randn(size), {}
    for name, layout in harness.FORMATS.items():
        x = image.contiguous(memory_format=layout)
        variants[f"eager {name}"] = eager(x, weight.contiguous(memory_format=layout))
    variants[harness.FAST] = lambda: torch.ops.mirnet_fast_cpu.conv3x3(x, packed, channels, None, None, None)
    harness.check_agreement(variants, torch.float32)
    seconds = harness.timed(benchmark, variants, {}, budget=1.5)
    if seconds is None:
        return
    row = harness.make_row("conv3x3", size, torch.float32, harness.FORWARD, seconds, benchmark)
    gflop = 2 * 9 * channels**2 * pixels / 1e9
    record(row | {"layout": harness.CHANNELS_LAST, "gflop_per_s": gflop / seconds[harness.FAST]})


def eager(x, weight):
    return lambda: torch.nn.functional.conv2d(x, weight, padding=1)
