"""libvips: how it is set up here, its images to arrays, and its errors."""

import logging
from typing import Any

import numpy as np
import pyvips

from .limits import room

# Nothing is asked for twice, and files may change meanwhile.
pyvips.cache_set_max(0)
# What is wrong with a file is told by an ImageError.
logging.getLogger("pyvips").addHandler(logging.NullHandler())

Error = pyvips.Error
DTYPES: dict[str, Any] = {"uchar": np.uint8, "ushort": np.uint16, "float": np.float32}
_FORMATS: dict[Any, str] = {dtype: name for name, dtype in DTYPES.items()}
# grey, coloured
_COLOURS = {"uchar": ("b-w", "srgb"), "ushort": ("grey16", "rgb16"), "float": ("b-w", "scrgb")}
_BAND = 2**22  # bytes that are decoded at a time


def forget_errors() -> None:
    """Have the next error tell nothing of those before it; libvips collects them."""
    pyvips.vips_lib.vips_error_clear()


def reason(error: pyvips.Error) -> str:
    """What libvips says of a failure, each line once, in one."""
    lines = dict.fromkeys(line.strip() for line in error.detail.splitlines() if "bad seek" not in line)
    return "; ".join([line for line in lines if line][:3]) or "it ends too early"


def lacks_decoder(error: pyvips.Error) -> bool:
    """Whether this build of libvips was made without what the file needs."""
    return "not been built in" in error.detail


def decoded(image: pyvips.Image) -> np.ndarray:
    """(H, W, bands) of an image of `DTYPES`.

    Decoded here and now: libvips's own threads would not be there in a process that is forked later, as
    workers of a DataLoader are.
    """
    dtype = DTYPES[str(image.format)]
    pixels = room((image.height, image.width, image.bands), dtype)
    region = pyvips.Region.new(image)
    rows = max(1, _BAND // pixels[0].nbytes)
    for top in range(0, image.height, rows):
        band = pixels[top : top + rows]
        data = region.fetch(0, top, image.width, len(band))
        band[:] = np.frombuffer(data, dtype).reshape(band.shape)
    return pixels


def image_of(pixels: np.ndarray) -> pyvips.Image:
    """An image that looks at an array (H, W, bands), which must stay and be contiguous."""
    height, width, bands = pixels.shape
    image = pyvips.Image.new_from_memory(pixels.data, width, height, bands, _FORMATS[pixels.dtype.type])
    return image.copy(interpretation=_COLOURS[_FORMATS[pixels.dtype.type]][bands > 2])
