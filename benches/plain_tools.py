"""What people use without a network: BM3D, blur, bilateral, non-local means, CLAHE, gamma, unsharp mask.

Of each the setting, of a few, that suits the photo best is taken: by PSNR against the clean photo, which
nobody has who has only the other. Results are kept in a folder, for the next network beside them: by
photo, settings and versions, so it must be emptied when a function here changes.
"""

import functools
import hashlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from pictures import as_pixels
from PIL import Image, ImageFilter

from mirnet_fast import demonstration, evaluation
from mirnet_fast._files import replaced


@dataclass(frozen=True)
class Tool:
    """A way to restore photos.

    Attributes:
        run: function of (H, W, 3) uint8 and a setting, with a result of the same kind.
        settings: to choose from.
        packages: those whose version decides about the result, the one to install first.
    """

    run: Callable
    settings: tuple
    packages: tuple

    def missing(self):
        """The package that is not installed, or None."""
        for package in self.packages:
            try:
                importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                return self.packages[0]
        return None

    def best(self, given, target, cache):
        """The best result for a photo, of all settings.

        Args:
            given, target: (H, W, 3) floats from 0 to 1, as files of 8 bits hold them.
            cache: folder with earlier results; it is made if it is not there.

        Returns:
            (H, W, 3) float64 from 0 to 1, as a file holds it.
        """
        versions = [f"{package} {importlib.metadata.version(package)}" for package in self.packages]
        key = hashlib.sha256(repr((self.run.__name__, self.settings, versions, given.shape)).encode())
        given = as_pixels(given)
        key.update(given)
        if len(self.settings) > 1:
            key.update(as_pixels(target))
        path = cache / f"{key.hexdigest()}.png"
        if path.exists():
            return np.asarray(Image.open(path)) / 255
        results = [self.run(given, setting) for setting in self.settings]
        result = max(results, key=lambda pixels: evaluation.psnr(pixels / 255, target))
        cache.mkdir(parents=True, exist_ok=True)
        with replaced(path) as new:
            Image.fromarray(result).save(new)
        return result / 255


def _bm3d(pixels, sigma):
    from bm3d import bm3d_rgb

    return as_pixels(bm3d_rgb((pixels / 255).astype(np.float32), sigma / 255))


def bm3d(sigma):
    """BM3D (Mäkinen, Azzari and Foi, IEEE TIP 2020), told the standard deviation of the noise, of 255."""
    return Tool(_bm3d, (sigma,), ("bm3d", "bm4d"))


def _gaussian_blur(pixels, sigma):
    return cv2.GaussianBlur(pixels, (0, 0), sigma)


def _bilateral(pixels, sigmas):
    return cv2.bilateralFilter(pixels, -1, *sigmas)


def _non_local_means(pixels, sigma):
    return as_pixels(demonstration.non_local_means((pixels / 255).astype(np.float32), sigma))


def _clahe(pixels, limit):
    lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)
    lab[:, :, 0] = cv2.createCLAHE(limit, (8, 8)).apply(np.ascontiguousarray(lab[:, :, 0]))
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


def _gamma(pixels, luminance):
    """rgb ** gamma with the gamma that makes the mean luminance (BT.601, of the result) this one."""
    low, high = 0.01, 100.0
    for _ in range(30):
        gamma = np.sqrt(low * high)
        curve = np.round(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)
        result = curve[pixels]
        if (result / 255 @ [0.299, 0.587, 0.114]).mean() > luminance:
            low = gamma
        else:
            high = gamma
    return result


def _unsharp_mask(pixels, setting):
    radius, percent = setting
    mask = ImageFilter.UnsharpMask(radius, percent, threshold=0)
    return np.asarray(Image.fromarray(pixels).filter(mask))


_opencv = functools.partial(Tool, packages=("opencv-python-headless",))
SMOOTHING = {
    "Gaussian blur": _opencv(_gaussian_blur, (0.5, 0.7, 1.0, 1.4, 2.0)),
    "bilateral": _opencv(_bilateral, ((20, 1.5), (40, 1.5), (40, 3), (80, 1.5), (80, 3), (120, 3))),
    "non-local means": Tool(_non_local_means, (5, 10, 15, 20, 25, 30), ("scikit-image",)),
}
BRIGHTENING = {
    "CLAHE": _opencv(_clahe, (2.0, 8.0, 40.0)),
    "gamma": Tool(_gamma, (0.45,), ("numpy",)),
}
SHARPENING = {
    "unsharp mask": Tool(_unsharp_mask, ((1, 50), (1, 100), (1, 200), (2, 50), (2, 100)), ("pillow",)),
}
