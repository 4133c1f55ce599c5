"""A small training, and what the tests of training do with one."""

import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from mirnet_fast.training import Recipe
from mirnet_fast.training.record import EVENTS

ROOT = Path(__file__).parents[1]
NOISE = {"kind": "gaussian", "sigma": (25, 25)}
SMALL = {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1}
PHOTOS = ["skimage:astronaut", "skimage:coffee", "skimage:chelsea"]
CLEAN = {"kind": "clean", "photos": PHOTOS, "degradations": [NOISE]}
CAT = {"source": {"kind": "clean", "photos": ["skimage:cat"], "degradations": [NOISE]}, "every": 2}
YAML = """\
network: {n_feat: 8, n_RRG: 1, n_MSRB: 1}
train:
  kind: clean
  photos: ['skimage:astronaut', 'skimage:coffee']
  degradations: [{kind: gaussian, sigma: [25, 25]}]
steps: 400
batch: 2
patch: 16
save_every: 5
"""
TRAIN = YAML[YAML.index("train:") : YAML.index("steps:")]


def source(text):
    """YAML with these photos."""
    return YAML.replace(TRAIN, f"train: {text}\n")


def recipe(**changes):
    fields = {
        "network": SMALL,
        "train": CLEAN,
        "steps": 6,
        "batch": 2,
        "patch": 16,
        "save_every": 4,
    }
    return Recipe.model_validate(fields | changes)


def weights(trainer):
    return list(trainer.network.state_dict().values())


def until(trainer, step):
    """The losses of a run that ends as if killed, once all of that step is done."""

    class Killed(BaseException):
        pass

    losses, after = [], trainer._after

    def stop(loss):
        after(loss)
        losses.append(loss)
        if trainer.step == step:
            raise Killed

    trainer._after = stop
    with pytest.raises(Killed):
        trainer.run(progress=False)
    return losses


def files(folder):
    """The names in a training's folder but those of TensorBoard's events."""
    return sorted(path.name for path in folder.iterdir() if not path.match(EVENTS))


def write_photos(folder, count=2, size=(24, 24), seed=0):
    folder.mkdir()
    draw = np.random.default_rng(seed)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i}.png"), draw.integers(0, 256, (*size, 3), np.uint8))
    return folder


def start(tmp_path, *, text=YAML):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "mirnet_fast.cli",
        "train",
        str(path),
        "--out",
        str(out),
        "--threads",
        "1",
    ]
    return out, subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"no {path} after {seconds} s"
        time.sleep(0.05)


def in_two_processes(tmp_path, code):
    """Run code, in which `t` is to be a Trainer made by `trainer(**changes)`, under torchrun."""
    script = tmp_path / "run.py"
    script.write_text(
        "import os, signal, pytest, torch\n"
        "from mirnet_fast.training import Trainer, processes\n"
        "from tests.trainings import recipe, until\n"
        "def trainer(**changes):\n"
        f"    return Trainer(recipe(**changes), {str(tmp_path / 'two')!r}, device, dtype=torch.float64)\n"
        "torch.set_num_threads(1)\n"
        "with processes('cpu') as device:\n" + textwrap.indent(textwrap.dedent(code), "    ")
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "localhost", "--master-port", str(port), str(script)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
