"""Photos of many megapixels cut into windows once, so that training need not decode them whole."""

import dataclasses
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from .._progress import followed
from ..images import ImageError, read_photo, write_photo
from .layouts import FiveK, Lol, RealSr, Sidd
from .recipe import Pairs

SIDES = ("input", "target")


def extract_patches(
    source: Pairs | Sidd | RealSr | Lol | FiveK,
    folder: str | Path,
    size: int,
    stride: int,
    workers: int | None = None,
) -> int:
    """Write the pairs of a source as windows: FOLDER/input/*.png and FOLDER/target/*.png.

    The two folders are there once all windows are: nobody trains on half of them.

    Args:
        source: of a recipe, with pairs.
        size: side of the square windows in pixels.
        stride: pixels from one window to the next; the last of each row and column ends with the photo.
        workers: threads; None for one a core.

    Returns:
        the number of windows.

    Raises:
        ImageError: the folder is not empty; a photo is missing, damaged, smaller than a window or of
            another size than its partner; a window cannot be written.
        OSError: the folder cannot be written, or a photo not be read.
    """
    pairs, folder = source.pairs(), Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ImageError(f"{folder} is not empty")
    folder.mkdir(parents=True, exist_ok=True)
    digits = len(str(len(pairs) - 1))
    names = [f"{i:0{digits}}_{given.stem}" for i, (given, _) in enumerate(pairs)]
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as new:
        new = Path(new)
        for side in SIDES:
            (new / side).mkdir()
        cut = partial(_cut, folder=new, size=size, stride=stride)
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:  # OpenCV does without the interpreter
            counts = pool.map(cut, names, pairs)
            count = sum(followed(counts, len(pairs), "pairs"))
        for side in SIDES:
            (new / side).rename(folder / side)
    return count


def starts(length: int, size: int, stride: int) -> list[int]:
    """Where the windows of one axis begin."""
    last = length - size
    return [*range(0, last, stride), last]


def _cut(name, pair, folder, size, stride):
    photos = [read_photo(path) for path in pair]
    shape = photos[0].rgb.shape
    if photos[1].rgb.shape != shape:
        raise ImageError(f"{pair[0]} and {pair[1]} differ in size: a pair must have one size")
    height, width = shape[2:]
    if min(height, width) < size:
        raise ImageError(f"{pair[0]} is {width} x {height} pixels, smaller than a patch of {size}")
    windows = [(y, x) for y in starts(height, size, stride) for x in starts(width, size, stride)]
    for y, x in windows:
        for side, photo in zip(SIDES, photos, strict=True):
            window = dataclasses.replace(photo, rgb=photo.rgb[:, :, y : y + size, x : x + size], alpha=None)
            write_photo(folder / side / f"{name}_{y}_{x}.png", window)
    return len(windows)
