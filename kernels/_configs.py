"""Tile shapes and launch options of the kernels.

DEFAULT holds for every GPU. Better ones, measured on a GPU by `tune.py`, stand in known.json beside
this file for GPUs we have measured, and in the user's cache for others. None of them depends on
the image size, so a new size never tunes or compiles anew, and nothing is tuned at import or in
a call, where a CUDA graph or torch.compile might be recording.
"""

import functools
import json
import os
from pathlib import Path

import torch

from ._common import INTERPRETED

DEFAULT = {
    "conv3x3": {"TH": 8, "TW": 16, "BK": 64, "BN": 256, "num_warps": 8, "num_stages": 3},
    "conv3x3_narrow": {"TH": 16, "TW": 16, "BK": 64, "BN": 64, "num_warps": 8, "num_stages": 2},
    "conv_transpose3x3": {"TH": 8, "TW": 16, "BK": 64, "BN": 256, "BD": 128, "num_warps": 8, "num_stages": 3},
    "conv1x1": {"TH": 8, "TW": 16, "BK": 64, "BN": 256, "num_warps": 8, "num_stages": 3},
    "conv1x1_narrow": {"TH": 8, "TW": 16, "BK": 64, "BN": 64, "num_warps": 4, "num_stages": 3},
    "resample": {"TH": 8, "TW": 16, "BC": 64, "num_warps": 8},
    "dau_stats": {"TH": 8, "TW": 16, "BC": 64, "num_warps": 4},
    "dau_apply": {"TH": 4, "TW": 16, "BK": 32, "BO": 256, "num_warps": 8, "num_stages": 2},
    "dau_apply_backward": {"TH": 4, "TW": 16, "BK": 32, "BC": 128, "num_warps": 8, "num_stages": 2},
    "dau_weight": {"TH": 4, "TW": 16, "BC": 64, "num_warps": 4},
    "dau_taps": {"TH": 8, "TW": 32, "num_warps": 4},
    "dau_spread": {"TH": 8, "TW": 16, "BC": 64, "num_warps": 8},
    "project": {"TH": 8, "TW": 8, "BK": 64, "BD": 128, "num_warps": 4, "num_stages": 3},
    "weight_gradient": {"TH": 8, "TW": 8, "BC": 64, "BD": 64, "num_warps": 4, "num_stages": 2},
    "up": {"TH": 8, "TW": 8, "BK": 64, "BD": 128, "num_warps": 4, "num_stages": 3},
    "down": {"TH": 8, "TW": 8, "BK": 32, "BD": 256, "num_warps": 8, "num_stages": 2},
    "skff_pool": {"TH": 8, "TW": 16, "BC": 64, "num_warps": 8},
    "skff_combine": {"TH": 8, "TW": 16, "BC": 64, "num_warps": 8},
    "skff_spread": {"TH": 8, "TW": 16, "BC": 64, "num_warps": 8},
}

# A float32 value takes two registers' worth of float16, and its products, without tensor cores, more.
FLOAT32 = {
    "conv3x3": {"TW": 8, "BK": 32, "BN": 128, "num_stages": 2},
    "conv3x3_narrow": {"BK": 32},
    "conv1x1": {"BK": 32, "BN": 128},
    "conv1x1_narrow": {"BK": 32},
    "conv_transpose3x3": {"TW": 8, "BK": 32, "BN": 128},
    "dau_stats": {"num_warps": 8},
    "resample": {"BC": 32},
    "project": {"BK": 16, "BD": 32},
    "up": {"BK": 16, "BD": 64},
    "down": {"TW": 4, "BK": 16, "BD": 128, "num_stages": 1},
}

# Before sm_90, and on sm_120, the tensor cores take their operands from registers, which leaves fewer for the
# sums; and some of these GPUs have 99 KiB of shared memory.
WITHOUT_WGMMA = {
    "conv3x3": {"BK": 32, "BN": 128},
    "conv3x3_narrow": {"TH": 8, "num_stages": 3},
    "conv1x1": {"BN": 128},
    "conv_transpose3x3": {"TW": 8, "BK": 32, "BN": 128},
    "down": {"BD": 128},
    "dau_apply": {"num_stages": 3},
    "dau_apply_backward": {"BC": 64, "TH": 8, "TW": 8},
    "project": {"num_stages": 2},
}
FLOAT32_WITHOUT_WGMMA = {"dau_apply_backward": {"BC": 32}}

# The interpreter takes about 0.1 ms for each operation of each program, however large.
LARGE = {"TH": 16, "TW": 32, "BK": 128, "BN": 256, "BD": 256, "BO": 256, "BC": 128}

# For tune.py: the kernels that were asked for, and the options that it tries.
asked = set()
trial = {}


def config(kernel, x):
    """The options of a kernel for x's GPU, dtype and number of channels, in a dict of its own."""
    asked.add(kernel)
    if kernel in trial:
        return dict(trial[kernel])
    options = DEFAULT[kernel]
    if x.dtype == torch.float32:
        options = options | FLOAT32.get(kernel, {})
    if INTERPRETED:
        return options | {k: v for k, v in LARGE.items() if k in options}
    if _capability(x.device.index)[0] in (8, 12):
        options = options | WITHOUT_WGMMA.get(kernel, {})
        if x.dtype == torch.float32:
            options = options | FLOAT32_WITHOUT_WGMMA.get(kernel, {})
    name = _device_name(x.device.index)
    return dict(_known().get(name, {}).get(entry(kernel, x.dtype, x.shape[1]), options))


def has_boxes(x):
    """Whether x's GPU copies boxes of a map by itself, and its tensor cores read these where they lie."""
    return INTERPRETED or _capability(x.device.index)[0] in (9, 10)


def multiprocessors(x):
    """How many x's GPU has; none in the interpreter, where nothing is gained by tiles for each."""
    return 0 if INTERPRETED else _multiprocessors(x.device.index)


def entry(kernel, dtype, channels):
    """The key of a kernel's options in the tables."""
    return f"{kernel} {str(dtype).removeprefix('torch.')} {channels}"


def cache_file():
    """Where `tune.py` keeps what it measured: below $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mirnet_fast" / "known.json"


def load(path):
    """{GPU name: {entry: options}} of a file, empty where it is not there."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}


@functools.cache
def _known():
    shipped, own = load(Path(__file__).parent / "known.json"), load(cache_file())
    return {name: shipped.get(name, {}) | own.get(name, {}) for name in {*shipped, *own}}


@functools.cache
def _capability(index):
    return torch.cuda.get_device_capability(index)


@functools.cache
def _multiprocessors(index):
    return torch.cuda.get_device_properties(index).multi_processor_count


@functools.cache
def _device_name(index):
    return torch.cuda.get_device_name(index)
