"""The drop-in modules: published constructors and state_dict names, on the fused ops."""

from .attention import DAU, SKFF
from .convolutions import Convolutions
from .network import MSRB, RRG, MIRNet
from .resampling import DownSample, Downsample, ResidualDownSample, ResidualUpSample, UpSample

__all__ = [
    "DAU",
    "MSRB",
    "RRG",
    "SKFF",
    "Convolutions",
    "DownSample",
    "Downsample",
    "MIRNet",
    "ResidualDownSample",
    "ResidualUpSample",
    "UpSample",
]
