"""MIRNet and its fused ops in plain PyTorch: the yardstick and the fallback."""

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
from .ops import blur_pool, dau_attention, residual_down_tail, residual_up_tail, skff_select

__all__ = [
    "DAU",
    "MSRB",
    "RRG",
    "SKFF",
    "DownSample",
    "Downsample",
    "MIRNet",
    "ResidualDownSample",
    "ResidualUpSample",
    "UpSample",
    "blur_pool",
    "dau_attention",
    "residual_down_tail",
    "residual_up_tail",
    "skff_select",
]
