"""The command, in a process of its own."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

import mirnet_fast
from mirnet_fast import MIRNet
from mirnet_fast.checkpoints import save_checkpoint

ROOT = Path(mirnet_fast.__file__).parents[1]
_READ_ALL = (1, 2)  # capabilities(7): to read what its mode forbids
_DROP = 24  # prctl(2): PR_CAPBSET_DROP


def identity(folder):
    """A checkpoint of a network that adds nothing to its input."""
    model = MIRNet(n_feat=8, n_RRG=1, n_MSRB=1)
    torch.nn.init.zeros_(model.conv_out.weight)
    save_checkpoint(model, folder / "identity.safetensors")
    return folder / "identity.safetensors"


def command(*arguments):
    return [sys.executable, "-m", "mirnet_fast.cli", *map(os.fspath, map(_path, arguments))]


def in_process(*arguments, **options):
    """(exit status, [rows of stdout], stderr) of a command with --json, run as one that isn't root's."""
    done = subprocess.run(
        command(*arguments, "--json"), capture_output=True, preexec_fn=as_anyone, env=environment(), **options
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, rows, done.stderr.decode()


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def as_anyone():
    """Give up that root may read everything."""
    if os.geteuid() == 0:
        for capability in _READ_ALL:
            ctypes.CDLL(None).prctl(_DROP, capability, 0, 0, 0)


def _path(argument):
    return argument if isinstance(argument, (bytes, Path)) else str(argument)
