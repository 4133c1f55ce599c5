"""PSNR and SSIM of large photos, rows at a time: what `evaluation.score` gives of the whole."""

import numpy as np

from .. import evaluation
from ..images import Page

_BORDER = 5  # pixels on each side for which SSIM has no full window
_PIXELS = 2**22  # of a band


def psnr_and_ssim(page: Page, clean: Page) -> tuple[float, float | None]:
    """(PSNR in dB, SSIM) of two pages of one size, as 8 bits hold them; no SSIM if they are too small."""
    height, width = clean.height, clean.width
    rows = max(2 * _BORDER + 1, _PIXELS // width)
    squares = sum(
        np.sum((_values(page, top, bottom) - _values(clean, top, bottom)) ** 2)
        for top, bottom in _bands(0, height, rows)
    )
    error = squares / (3 * height * width)
    psnr = float("inf") if error == 0 else float(-10 * np.log10(error))
    if min(height, width) <= 2 * _BORDER:
        return psnr, None
    total = 0.0
    for top, bottom in _bands(_BORDER, height - _BORDER, rows):
        window = top - _BORDER, bottom + _BORDER
        total += (bottom - top) * evaluation.ssim(_values(page, *window), _values(clean, *window))
    return psnr, total / (height - 2 * _BORDER)


def _bands(begin, end, rows):
    return [(top, min(top + rows, end)) for top in range(begin, end, rows)]


def _values(page, top, bottom):
    return evaluation.as_file(page.rows(top, bottom)[0].permute(1, 2, 0).numpy())
