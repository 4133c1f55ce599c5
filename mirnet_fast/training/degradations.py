"""What happens to a photo on its way: noise, compression, darkness, lost resolution.

Each takes an RGB array (H, W, 3), float32 from 0 to 1, and a numpy Generator, and returns the same
kind of array, in the range 0 to 1 where a file would hold it so.
"""

from typing import Annotated, Literal

import cv2
import numpy as np
from pydantic import Field

from .fields import MANY, Part, Qualities, Range, Share


class Gaussian(Part):
    """White Gaussian noise; sigma, drawn from a range, in units of 1/255.

    Not clipped, as in benchmarks, but for the chance `clip`: then as in files.
    """

    kind: Literal["gaussian"]
    sigma: Range
    clip: Share = 0.0

    def apply(self, rgb, rng):
        sigma = rng.uniform(*self.sigma) / 255
        noisy = rgb + sigma * rng.standard_normal(rgb.shape, np.float32)
        return np.clip(noisy, 0, 1) if rng.random() < self.clip else noisy


class Camera(Part):
    """Poisson-Gaussian noise of a sensor: variance shot * signal + read**2, clipped.

    Source: Foi et al., "Practical Poissonian-Gaussian noise modeling", IEEE TIP 2008, equation 2.
    """

    kind: Literal["camera"]
    shot: Range
    read: Range

    def apply(self, rgb, rng):
        shot, read = rng.uniform(*self.shot), rng.uniform(*self.read)
        deviation = np.sqrt(shot * np.clip(rgb, 0, 1) + read**2)
        return np.clip(rgb + deviation * rng.standard_normal(rgb.shape, np.float32), 0, 1).astype(np.float32)


class Jpeg(Part):
    """Compression as JPEG, of a quality drawn from a range of 1 to 100."""

    kind: Literal["jpeg"]
    quality: Qualities

    def apply(self, rgb, rng):
        quality = int(rng.integers(self.quality[0], self.quality[1] + 1))
        pixels = np.round(255 * np.clip(rgb, 0, 1)).astype(np.uint8)[:, :, ::-1]
        _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1]
        return decoded.astype(np.float32) / 255


class LowLight(Part):
    """A dark exposure: gain * rgb ** gamma."""

    kind: Literal["low_light"]
    gamma: Range
    gain: Range

    def apply(self, rgb, rng):
        gamma, gain = rng.uniform(*self.gamma), rng.uniform(*self.gain)
        return (gain * np.clip(rgb, 0, 1) ** gamma).astype(np.float32)


class Resample(Part):
    """Down-sampling by a factor (area) and back up (bicubic), as inputs of same-size super-resolution."""

    kind: Literal["resample"]
    factor: int = Field(ge=2, le=MANY)

    def apply(self, rgb, rng):
        height, width = rgb.shape[:2]
        small = cv2.resize(
            rgb,
            (max(1, width // self.factor), max(1, height // self.factor)),
            interpolation=cv2.INTER_AREA,
        )
        return np.clip(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


Degradation = Annotated[Gaussian | Camera | Jpeg | LowLight | Resample, Field(discriminator="kind")]
