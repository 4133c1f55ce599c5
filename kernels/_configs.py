"""Tile shapes and launch options of the kernels.

DEFAULT holds for every GPU; KNOWN, by GPU name, what was measured better there. Neither depends on
the image size, so a new size never tunes or compiles anew. `candidates` is the short list that the
GPU acceptance run tries; nothing is tuned at import or at a call.
"""

import functools

import torch

from ._common import INTERPRETED

DEFAULT = {
    "blur_pool": {"TH": 8, "TW": 16, "BC": 64, "num_warps": 4},
    "skff_pool": {"TH": 8, "TW": 16, "BC": 64, "num_warps": 8},
    "skff_attend": {"BLOCK": 32, "num_warps": 8},
    "skff_combine": {"TH": 8, "TW": 16, "BC": 64, "num_warps": 8},
    "skff_spread": {"TH": 8, "TW": 16, "BC": 64, "num_warps": 8},
}

# {(GPU name, kernel, dtype name, channels): options}, written from measured runs.
KNOWN = {}

# The interpreter takes about 0.1 ms for each operation of each program, however large.
LARGE = {"TH": 16, "TW": 32}


@functools.cache
def _device_name(index):
    return torch.cuda.get_device_name(index)


def config(kernel, x):
    """The options of a kernel for x's GPU, dtype and number of channels, in a dict of its own."""
    options = DEFAULT[kernel]
    if INTERPRETED:
        return options | {k: v for k, v in LARGE.items() if k in options}
    known = _device_name(x.device.index), kernel, str(x.dtype).removeprefix("torch."), x.shape[1]
    return dict(KNOWN.get(known, options))
