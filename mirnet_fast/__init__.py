"""mirnet_fast: MIRNet (ECCV 2020) on fused kernels, computing what the published network computes."""

# ruff: noqa: F405
import importlib
import sys
from pathlib import Path

from ._version import __version__  # noqa: F401

__all__ = [
    "DAU",
    "MSRB",
    "RRG",
    "SKFF",
    "BackendError",
    "CheckpointError",
    "Convolutions",
    "DownSample",
    "Downsample",
    "MIRNet",
    "ResidualDownSample",
    "ResidualUpSample",
    "Restorer",
    "UpSample",
    "accelerate",
    "current_backend",
    "engine_stats",
    "explain",
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

_root = Path(__file__).resolve().parent.parent
if (_root / "setup.py").exists() and (_root / "kernels").is_dir():
    __path__.append(str(_root))  # in a source tree kernels/ lies beside the package

if Path(next(iter(getattr(sys, "argv", [])), "")).stem != "mirnet-fast":
    from ._public import *  # noqa: F403
else:
    # The command imports what it needs where it needs it: --help does without torch, which takes seconds.
    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name in ("ops", "reference"):  # of which those are made that all the rest is imported for
            return importlib.import_module(f".{name}", __name__)
        public = importlib.import_module("._public", __name__)
        globals().update({name: getattr(public, name) for name in __all__})
        return globals()[name]

    def __dir__():
        return sorted({*globals(), *__all__})
