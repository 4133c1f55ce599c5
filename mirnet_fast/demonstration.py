"""A photo with noise, and what the network that comes with the package and others make of it.

All take and give (H, W, 3) float32 from 0 to 1. The noise is white and Gaussian, and then what a file of 8
bits makes of it; or all of it, as benchmarks have it; or a camera's. The others are told its strength, the
network is not.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import skimage.restoration
import torch

from . import evaluation, inference
from .pretrained import load_pretrained


@dataclass(frozen=True)
class Result:
    """What a method made of the noisy photo, (H, W, 3), in how many seconds, and its evaluation.Score."""

    image: np.ndarray
    seconds: float
    score: evaluation.Score


def add_noise(clean: np.ndarray, sigma: float, seed: int, in_file: bool = True) -> np.ndarray:
    """The photo with white Gaussian noise of standard deviation sigma / 255.

    in_file: clip it to 0 and 1 and round it to 8 bits, as a file holds it.
    """
    noise = np.random.default_rng(seed).standard_normal(clean.shape, np.float32)
    noisy = clean + np.float32(sigma / 255) * noise
    return evaluation.as_file(noisy).astype(np.float32) if in_file else noisy


def as_a_camera(clean: np.ndarray, iso: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(noisy, clean): what a camera at this ISO makes of the scene, and would make of it without noise.

    A sensor's noise before demosaicing, gamma and JPEG of quality 92; see training/degradations.py.

    Raises:
        ImportError: what training needs is not installed.
    """
    from .training.degradations import Jpeg, Raw, spoilt

    steps = Raw(kind="raw", iso=(iso, iso)), Jpeg(kind="jpeg", quality=(92, 92))
    noisy, without = (spoilt(clean, steps, np.random.default_rng(seed), noise) for noise in (True, False))
    return noisy, without


def methods() -> dict[str, Callable[[np.ndarray, float], np.ndarray] | None]:
    """{name: function of a noisy photo and sigma}; None for BM3D where its package is not installed."""
    network = load_pretrained()

    def mirnet_fast(noisy, sigma):
        x = torch.from_numpy(np.ascontiguousarray(noisy.transpose(2, 0, 1)[None]))
        return inference.restore(network, x)[0].permute(1, 2, 0).numpy()

    try:
        from bm3d import bm3d_rgb
    except ImportError:
        bm3d = None
    else:

        def bm3d(noisy, sigma):
            return bm3d_rgb(noisy, sigma / 255)

    return {"mirnet_fast": mirnet_fast, "non-local means": non_local_means, "BM3D": bm3d}


def non_local_means(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """scikit-image's, told the standard deviation of the noise, sigma / 255."""
    deviation = sigma / 255
    return skimage.restoration.denoise_nl_means(
        noisy, patch_size=5, patch_distance=6, h=0.6 * deviation, sigma=deviation, channel_axis=2
    )


def compare(clean: np.ndarray, noisy: np.ndarray, sigma: float) -> dict[str, Result]:
    """{method: Result}, "noisy" first, without those that are not installed."""
    results = {"noisy": Result(noisy, 0.0, evaluation.score("noisy", noisy, clean))}
    for name, method in methods().items():
        if method is None:
            continue
        begin = time.perf_counter()
        image = method(noisy, sigma)
        seconds = time.perf_counter() - begin
        results[name] = Result(image, seconds, evaluation.score(name, image, clean))
    return results
