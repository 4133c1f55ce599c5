"""How large a file may be: some small ones unpack to more than any memory holds."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .kinds import ImageError

# Arrays above this many bytes lie in a file, which the system keeps in memory as far as there is room.
IN_MEMORY = 2**27


@dataclass(frozen=True)
class Limits:
    """What is read at most.

    Attributes:
        pixels: of a page, or of all frames of an animation together.
        bytes: of a file.
    """

    pixels: int = 2**30
    bytes: int = 2**32

    def check_bytes(self, path: str | Path, size: int) -> None:
        """Raises ImageError where a file of `size` bytes is too large."""
        if size > self.bytes:
            raise ImageError(
                f"{path} is too large: {size:,} bytes, and the limit is {self.bytes:,}; "
                "Limits(bytes=...) or --limit-bytes sets another"
            )

    def check_pixels(self, path: Path, width: int, height: int) -> None:
        """Raises ImageError where an image of that size is too large."""
        if width * height > self.pixels:
            raise ImageError(
                f"{path} is too large: {width} x {height} are {width * height:,} pixels, and the limit is "
                f"{self.pixels:,}; Limits(pixels=...) or --limit-pixels sets another"
            )


USUAL = Limits()


def room(shape: tuple[int, ...], dtype: type, folder: str | Path | None = None) -> np.ndarray:
    """An array to be filled, in memory or, above `IN_MEMORY`, in a file without name in `folder`.

    Raises:
        OSError: there is no room for it on the disk.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size <= IN_MEMORY:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        # A hole in the file that finds no room later would end the process.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype, "r+" if hasattr(os, "posix_fallocate") else "w+", shape=shape)
