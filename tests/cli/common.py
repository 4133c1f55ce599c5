"""What the tests of the commands share."""

import cv2
import numpy as np
from click.testing import CliRunner

from mirnet_fast.cli import main

CONFIG = {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1}
SMALL = ["--n-feat", "8", "--n-rrg", "1", "--n-msrb", "1"]


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def random_pixels(dtype, *shape):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
