"""What a TIFF file holds, by tifffile: libvips does not tell, and would read part of it as the whole."""

import logging
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import tifffile

from .kinds import ImageError

# What is wrong with a file is told by an ImageError.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

# how many channels are colours
_COLOURS = {"MINISWHITE": 1, "MINISBLACK": 1, "PALETTE": 1, "RGB": 3, "YCBCR": 3, "SEPARATED": 4}
_DTYPES = (bool, np.uint8, np.uint16, np.float16, np.float32)


class TiffPage(NamedTuple):
    """An image of a file: which of its directories, where that is, and its size."""

    index: int
    offset: int
    width: int
    height: int


def pages(path: Path, file: BinaryIO) -> list[TiffPage]:
    """The images of a TIFF file; smaller copies of them are none.

    Raises:
        ImageError: not all of one would be read; or another image is among the copies, as in a raw file.
    """
    with tifffile.TiffFile(file, name=path.name) as tiff:
        listed = list(tiff.pages)
        found, before = [], None
        for index, page in enumerate(listed):
            page = page.aspage()
            if before is not None and _is_copy(page, before):
                continue
            if page.is_reduced or any(not _is_copy(sub, page) for sub in page.pages or []):
                raise ImageError(
                    f"{path} holds more than one image, a preview and another, as raw files of cameras do; "
                    "name it as its camera did, such as .dng or .nef, to have it developed"
                )
            before = page
            _check(path, page)
            found.append(TiffPage(index, page.offset, page.imagewidth, page.imagelength))
    if not found:
        raise ImageError(f"{path} is damaged: there is no image in it")
    return found


def _is_copy(page, first):
    smaller = page.imagewidth <= first.imagewidth and page.imagelength <= first.imagelength
    return page.is_reduced and smaller


def _check(path, page):
    kind = getattr(page.photometric, "name", page.photometric)
    colours = _COLOURS.get(kind)
    if colours is None:
        raise ImageError(f"{path} has {kind} pixels; only grey, RGB, RGBA and CMYK images are supported")
    if page.dtype not in _DTYPES:
        what = page.dtype or f"{page.bitspersample} bit"
        raise ImageError(f"{path} has {what} pixels; only integers of 8 and 16 bits and floats are supported")
    if page.bitspersample not in (1, 2, 4, 8, 16, 32):
        raise ImageError(f"{path} has pixels of {page.bitspersample} bits; only 8, 16 and 32 are supported")
    more = page.samplesperpixel - colours
    # OpenCV, and we with it, wrote files that don't say what the fourth channel is.
    extra = [sample.name for sample in page.extrasamples] or ["UNASSALPHA"] * more
    if more < 0 or more > 1 or extra not in ([], ["UNASSALPHA"], ["ASSOCALPHA"]):
        raise ImageError(
            f"{path} has {page.samplesperpixel} channels{f' of {kind}' if colours == 4 else ''}; only grey, "
            "RGB and RGBA images are supported, and CMYK of four"
        )
    if page.planarconfig != 1 and (page.is_tiled or colours + more == 2):
        # Two planes libvips 8.18 mixes up, tiles of planes it refuses.
        what = "tiles" if page.is_tiled else "grey with transparency"
        raise ImageError(f"{path} has {what}, each channel apart, which is not supported")
