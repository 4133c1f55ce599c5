"""What an image is, and what its file was like beyond its pixels."""

import dataclasses
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch

# A file's bytes, or a file that is mapped.
Data: TypeAlias = bytes | bytearray | mmap.mmap


class ImageError(ValueError):
    """Image files cannot be read or written, are missing, or do not fit together; the message names them."""


class Format(NamedTuple):
    """What a format can hold, as it is written."""

    dtypes: tuple[type, ...] = (np.uint8,)
    alpha: bool = False
    several: bool = False  # pages or frames
    cmyk: bool = False


_JPEG = Format(cmyk=True)
_NETPBM = Format((np.uint8, np.uint16))
_TIFF = Format((np.uint8, np.uint16, np.float32), alpha=True, several=True, cmyk=True)

# by suffix
FORMATS = {
    ".avif": Format((np.uint8, np.uint16), alpha=True),
    ".bmp": Format(alpha=True),
    ".gif": Format(alpha=True, several=True),
    ".jp2": Format((np.uint8, np.uint16)),
    ".jpeg": _JPEG,
    ".jpg": _JPEG,
    ".pgm": _NETPBM,
    ".png": Format((np.uint8, np.uint16), alpha=True),
    ".ppm": _NETPBM,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".webp": Format(alpha=True, several=True),
}
_DEPTHS: dict[type, str] = {
    np.uint8: "8 bits a channel",
    np.uint16: "16 bits a channel",
    np.float32: "floats",
}


@dataclass(frozen=True)
class Encoding:
    """How to write a file; None: as the input was written, or else as stated.

    Attributes:
        quality: 1 to 100 of JPEG (95), WebP (90) and AVIF (90).
        subsampling: "4:4:4" or "4:2:0", of colours in JPEG ("4:4:4") and AVIF ("4:2:0" below quality 90).
        progressive: of JPEG (no).
        lossless: of WebP (yes) and AVIF (no). An input that was lossy stays so.
    """

    quality: int | None = None
    subsampling: str | None = None
    progressive: bool | None = None
    lossless: bool | None = None

    def __post_init__(self) -> None:
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ValueError(f"Encoding: quality must be from 1 to 100; got {self.quality!r}")
        if self.subsampling not in (None, "4:4:4", "4:2:0"):
            raise ValueError(f"Encoding: subsampling must be '4:4:4' or '4:2:0'; got {self.subsampling!r}")

    def over(self, other: "Encoding") -> "Encoding":
        """This one, completed by what the other says."""
        pairs = {name: getattr(self, name) for name in (f.name for f in dataclasses.fields(self))}
        return dataclasses.replace(other, **{name: v for name, v in pairs.items() if v is not None})


AS_BEFORE = Encoding()


@dataclass(frozen=True)
class Origin:
    """What a file was like beyond its pixels; a new one is made the same, as far as its format has it.

    Attributes:
        exif: the EXIF block, which is a small TIFF file, or None. Orientation is 1: the pixels are upright.
        fields: libvips's names and values: ICC profile, XMP, comments, delays of an animation.
        photoshop: Photoshop's resources of a JPEG or TIFF, among which IPTC's are, or None.
        dots: pixels a millimetre, across and down, or None.
        cmyk: the pixels are made from CMYK ones, and are written as such.
        bits: of a channel of an AVIF or HEIC.
        encoding: how it was written.
    """

    exif: bytes | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    photoshop: bytes | None = None
    dots: tuple[float, float] | None = None
    cmyk: bool = False
    bits: int | None = None
    encoding: Encoding = AS_BEFORE


@dataclass(frozen=True)
class Photo:
    """An image and what its file has to look like.

    Attributes:
        rgb: (1, 3, H, W) float32, 0 to 1; three equal channels for a grey image. Of a float image the
            values as they are in the file, also below 0 and above 1.
        alpha: (H, W) of `dtype` as in the file, or None.
        grey: the file has one colour channel.
        dtype: numpy.uint8, numpy.uint16 or numpy.float32.
        origin: what else was in its file.
        damage: what is wrong with the file that this could be salvaged from, or None.
    """

    rgb: torch.Tensor
    alpha: np.ndarray | None = None
    grey: bool = False
    dtype: type = np.uint8
    origin: Origin = Origin()
    damage: str | None = None

    @property
    def height(self) -> int:
        return self.rgb.shape[2]

    @property
    def width(self) -> int:
        return self.rgb.shape[3]

    @property
    def has_alpha(self) -> bool:
        return self.alpha is not None


class Kind(Protocol):
    """What a file has to look like: a `Photo`, or a `Page` of a file."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def grey(self) -> bool: ...
    @property
    def dtype(self) -> type: ...
    @property
    def has_alpha(self) -> bool: ...
    @property
    def origin(self) -> Origin: ...


def full_range(dtype: type) -> float:
    """The value that is 1 in an `rgb`."""
    return 1.0 if np.issubdtype(dtype, np.floating) else np.iinfo(dtype).max


def check_format(path: str | Path, kind: Kind, pages: int = 1) -> None:
    """Check that the format of `path` can hold `pages` images such as `kind`.

    Raises:
        ImageError: the suffix is unknown, or depth, transparency, pages or colours would be lost.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        hint = "; HEIC is only read" if suffix in (".heic", ".heif") else ""
        raise ImageError(
            f"{path}: cannot write {suffix or 'a file without suffix'}{hint}; use {', '.join(FORMATS)}"
        )
    able = FORMATS[suffix]
    if kind.dtype not in able.dtypes:
        others = ".tiff" if kind.dtype == np.float32 else ".png or .tiff"
        raise ImageError(f"{path}: {suffix} cannot hold {_DEPTHS[kind.dtype]}; use {others}")
    if kind.has_alpha and not able.alpha:
        raise ImageError(f"{path}: {suffix} cannot hold transparency; use .png or .tiff")
    if pages > 1 and not able.several:
        raise ImageError(f"{path}: {suffix} cannot hold {pages} pages or frames; use .tiff, .webp or .gif")
    if suffix == ".pgm" and not kind.grey:
        raise ImageError(f"{path}: .pgm cannot hold colours; use .ppm")
