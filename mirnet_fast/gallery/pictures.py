"""Photos as a browser shows them: sRGB of 8 bits, whole, smaller or in parts, as WebP; and heat maps."""

import contextlib

import cv2
import numpy as np
import pyvips

from ..images import Page, vips
from ..images.limits import room

# WebP's longest side.
LONGEST = 16383
_LOSSY = 82  # quality of what is only looked at as a whole
# Ends of the scales of heat maps, in grey levels of 255.
_SCALES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 255)
_ROWS = 512


def shown(page: Page) -> np.ndarray:
    """(H, W, 3 or 4) uint8 in sRGB of a page, by its ICC profile, with transparency if it has some."""
    pixels = _integers(page.pixels)
    profile = None if page.origin.cmyk else page.origin.fields.get("icc-profile-data")
    if profile is not None:
        image = vips.image_of(np.ascontiguousarray(pixels)).copy()
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
        with contextlib.suppress(vips.Error):  # a profile that is no good is none
            pixels = vips.decoded(image.icc_transform("srgb", embedded=True, depth=8))
    out = room((*pixels.shape[:2], 3 + page.has_alpha), np.uint8)
    for top in range(0, len(pixels), _ROWS):
        part = pixels[top : top + _ROWS]
        if part.dtype == np.uint16:
            part = ((part.astype(np.uint32) + 128) // 257).astype(np.uint8)
        out[top : top + _ROWS, :, :3] = part[:, :, : 1 if part.shape[2] < 3 else 3]
        if page.has_alpha:
            out[top : top + _ROWS, :, 3] = part[:, :, -1]
    return out


def _integers(pixels):
    """Those of floats: 0 to 1 in 16 bits."""
    if pixels.dtype != np.float32:
        return pixels
    out = room(pixels.shape, np.uint16)
    for top in range(0, len(pixels), _ROWS):
        part = np.nan_to_num(pixels[top : top + _ROWS], posinf=1, neginf=0)
        out[top : top + _ROWS] = np.round(65535 * part.clip(0, 1))
    return out


def exact(pixels: np.ndarray) -> bytes:
    """A WebP of these very pixels."""
    return _image(pixels).webpsave_buffer(lossless=True, exact=True, effort=1)


def preview(pixels: np.ndarray, longest: int) -> bytes:
    """A WebP to be looked at, its longer side at most `longest` pixels."""
    return _image(smaller(pixels, longest)).webpsave_buffer(Q=_LOSSY, effort=2)


def smaller(pixels: np.ndarray, longest: int) -> np.ndarray:
    """The picture scaled down by the mean of areas, unless it is small enough."""
    height, width = pixels.shape[:2]
    factor = longest / max(height, width)
    if factor >= 1:
        return pixels
    size = max(1, round(width * factor)), max(1, round(height * factor))
    out = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return out.reshape(*out.shape[:2], -1) if pixels.ndim == 3 else out


def _image(pixels):
    return vips.image_of(np.ascontiguousarray(pixels))


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(H, W) uint8, the largest of the colours' absolute differences."""
    out = room(a.shape[:2], np.uint8)
    for top in range(0, len(a), _ROWS):
        parts = [array[top : top + _ROWS, :, :3] for array in (a, b)]
        out[top : top + _ROWS] = cv2.absdiff(*map(np.ascontiguousarray, parts)).max(2)
    return out


def root_mean_square(differences: np.ndarray) -> float:
    """In grey levels of 255."""
    bands = (differences[top : top + _ROWS] for top in range(0, len(differences), _ROWS))
    return float(
        np.sqrt(sum(float(np.square(band, dtype=np.float64).sum()) for band in bands) / differences.size)
    )


def scale_of(*differences: np.ndarray) -> int:
    """The end of a scale, in grey levels of 255, that all but a hundredth of each is within."""
    highest = max(float(np.quantile(smaller(d, 1024), 0.99)) for d in differences)
    return next(scale for scale in _SCALES if scale >= min(highest, 255))


def heat_map(differences: np.ndarray, scale: int) -> np.ndarray:
    """(H, W, 3) uint8: black for none to light yellow for `scale` and more (the map Inferno)."""
    levels = np.minimum(differences.astype(np.float32) * (255 / scale), 255).round().astype(np.uint8)
    return cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[:, :, ::-1]


def striking_parts(changed: np.ndarray, after: np.ndarray, side: int, count: int) -> list[tuple[int, int]]:
    """[(left, top)] of up to `count` squares: where most was changed, where most detail is, and so on."""
    height, width = changed.shape
    if not count:
        return []
    side = min(side, height, width)
    rows, columns = height // side, width // side
    cells = [(r, c) for r in range(rows) for c in range(columns)]

    def part(array, cell):
        top, left = cell[0] * side, cell[1] * side
        return array[top : top + side, left : left + side]

    by_change = sorted(cells, key=lambda cell: -float(part(changed, cell).mean()))
    by_detail = sorted(cells, key=lambda cell: -float(part(after[:, :, 1], cell).std()))
    chosen = []
    for turn in range(min(count, len(cells))):
        ranking = by_detail if turn % 2 else by_change
        chosen.append(next(cell for cell in ranking if cell not in chosen))
    return [(c * side, r * side) for r, c in chosen]
