"""What the package itself exports: imported with it, but in the command."""

# ruff: noqa: F401, F403
from . import ops, reference
from .accelerate import accelerate, revert
from .backends import BackendError, current_backend, use_backend, use_winograd
from .checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from .engine import engine_stats, explain, release_workspace
from .inference import restore
from .modules import *
from .ops.packed_weights import packed_weights_bytes
from .pretrained import load_pretrained
from .restorer import Restorer
