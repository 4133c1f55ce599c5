"""mirnet_fast: MIRNet (ECCV 2020) on fused kernels, computing what the published network computes."""

import multiprocessing
import warnings
from pathlib import Path

from . import _native, ops, reference
from .accelerate import accelerate, revert
from .backends import BackendError, current_backend, use_backend, use_winograd
from .checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from .inference import restore
from .modules import (
    DAU,
    MSRB,
    RRG,
    SKFF,
    DownSample,
    Downsample,
    MIRNet,
    ResidualDownSample,
    ResidualUpSample,
    UpSample,
)
from .modules._arena import release_workspace
from .ops.packed_weights import packed_weights_bytes
from .pretrained import load_pretrained

_root = Path(__file__).resolve().parent.parent
if (_root / "setup.py").exists() and (_root / "kernels").is_dir():
    __path__.append(str(_root))  # in a source tree kernels/ lies beside the package

# Once, not also by every worker of a data loader, which has its name before it knows its parent.
if (_why := _native.unwanted_pure_install()) and multiprocessing.current_process().name == "MainProcess":
    warnings.warn(_why, stacklevel=2)

__all__ = [
    "DAU",
    "MSRB",
    "RRG",
    "SKFF",
    "BackendError",
    "CheckpointError",
    "DownSample",
    "Downsample",
    "MIRNet",
    "ResidualDownSample",
    "ResidualUpSample",
    "UpSample",
    "accelerate",
    "current_backend",
    "load_checkpoint",
    "load_pretrained",
    "ops",
    "packed_weights_bytes",
    "reference",
    "release_workspace",
    "restore",
    "revert",
    "save_checkpoint",
    "use_backend",
    "use_winograd",
]
