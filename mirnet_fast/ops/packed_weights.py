"""The packed weights that the CPU engine's 3x3 convolutions keep: how much memory, and its release."""

import torch

from .. import _native
from ._registration import define_for_cpu

define_for_cpu("packed_weights_bytes() -> int", None, lambda: 0)
define_for_cpu("release_packed_weights() -> ()", None)


def packed_weights_bytes() -> int:
    """Memory in bytes that packed weights take in this process.

    Inference on the CPU keeps the weights of 3x3 convolutions of small maps in the form that they are
    used in, four times as large, for the next image: up to 1 GiB, or the megabytes that the environment
    variable MIRNET_FAST_PACKED_MB names (0: none). They are used only for weights of exactly the values
    that they were made from, so a weight may be changed in any way. `release_workspace` gives the memory
    back.
    """
    return torch.ops.mirnet_fast_cpu.packed_weights_bytes() if _native.cpu_library_error() is None else 0


def release_packed_weights() -> None:
    """Give that memory back. Safe at any time: a convolution that is running keeps what it uses."""
    if _native.cpu_library_error() is None:
        torch.ops.mirnet_fast_cpu.release_packed_weights()
