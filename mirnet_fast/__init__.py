"""mirnet_fast: MIRNet (ECCV 2020) on fused kernels, computing what the published network computes."""

from . import ops, reference
from .accelerate import accelerate, revert
from .backends import BackendError, current_backend, use_backend
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

__all__ = [
    "DAU",
    "MSRB",
    "RRG",
    "SKFF",
    "BackendError",
    "DownSample",
    "Downsample",
    "MIRNet",
    "ResidualDownSample",
    "ResidualUpSample",
    "UpSample",
    "accelerate",
    "current_backend",
    "ops",
    "reference",
    "revert",
    "use_backend",
]
