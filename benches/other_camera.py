"""A camera that no training knows: other colours, white balance, demosaicing and tone curve, counted photons.

A clean photo is taken back to the light that the sensor sees; its photons are counted, so that their noise is
Poisson's and not a normal distribution's, behind a Bayer filter; readout adds noise to each pixel and to
each row; and the camera makes a photo of that again.
"""

import warnings
from dataclasses import dataclass

import numpy as np

# Rows are what the camera's red, green and blue see of linear sRGB; each sums to 1, so grey stays grey.
CAMERA_FROM_SRGB = np.array([[0.62, 0.33, 0.05], [0.17, 0.69, 0.14], [0.03, 0.26, 0.71]])
# Lamplight: what red, green and blue of a grey card are multiplied by.
WHITE_BALANCE = np.array([1.25, 1.0, 2.1])
# Electrons of a full pixel at ISO 100, of readout in a pixel and in a whole row.
FULL_WELL, READ, ROW = 32_000, 1.8, 0.6
BLACK, WHITE = 512, 16383  # of the converter, 14 bits
# Narkowicz, "ACES filmic tone mapping curve", 2016: (a x^2 + b x) / (c x^2 + d x + e).
FILM = 2.51, 0.03, 2.43, 0.59, 0.14


@dataclass(frozen=True)
class OtherCamera:
    """At this ISO; its exposure is the share of the light that a correct one would let in."""

    iso: float
    exposure: float = 1.0

    def apply(self, rgb, rng, noise=True):
        """The photo as this camera takes it.

        Args:
            rgb: (H, W, 3) floats from 0 to 1, sRGB, H and W at least 2.
            rng: numpy Generator, that of the noise.
            noise: False counts those photons that a correct exposure has on average, and reads them exactly.

        Returns:
            (H, W, 3) float32 from 0 to 1.
        """
        light = _scene(np.clip(rgb, 0, 1).astype(np.float64)) @ CAMERA_FROM_SRGB.T / WHITE_BALANCE
        full = FULL_WELL * 100 / self.iso
        electrons = full * _mosaic(light)
        if noise:
            electrons = rng.poisson(self.exposure * electrons) + READ * rng.standard_normal(electrons.shape)
            electrons += ROW * rng.standard_normal((len(electrons), 1))
        raw = np.clip(np.round(BLACK + electrons / full * (WHITE - BLACK)), 0, WHITE)
        camera = _demosaiced(
            (raw - BLACK) / (WHITE - BLACK) * _mosaic(np.broadcast_to(WHITE_BALANCE, rgb.shape))
        )
        return _photo(camera @ np.linalg.inv(CAMERA_FROM_SRGB).T).astype(np.float32)


def _film(x):
    a, b, c, d, e = FILM
    return (a * x + b) * x / ((c * x + d) * x + e)


def _film_inverse(y):
    a, b, c, d, e = FILM
    a, b, c = a - c * y, b - d * y, -e * y
    return (np.sqrt(b * b - 4 * a * c) - b) / (2 * a)


def _scene(rgb):
    """The light of an sRGB photo, linear, 1 where the photo is white."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)  # IEC 61966-2-1
    return _film_inverse(linear * _film(1.0))


def _photo(light):
    linear = _film(np.clip(light, 0, 1)) / _film(1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _mosaic(light):
    """(H, W): of each pixel what its filter lets through; rows are red, green or green, blue."""
    mosaic = light[:, :, 1].copy()
    mosaic[::2, ::2] = light[::2, ::2, 0]
    mosaic[1::2, 1::2] = light[1::2, 1::2, 2]
    return mosaic


def _demosaiced(mosaic):
    """(H, W, 3) by Menon's method (IEEE TIP 2007), after a square root, in which photons' noise is even."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that it could use for something else
        from colour_demosaicing import demosaicing_CFA_Bayer_Menon2007
    # Readout may fall below black, though not as far as this.
    return demosaicing_CFA_Bayer_Menon2007(np.sqrt(np.maximum(mosaic + 0.05, 0)), "RGGB") ** 2 - 0.05
