"""Tensors to image files, whole or in rows: as the kind of image it was, with all that its file had."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyvips
import torch

from .._files import replaced
from . import exif, jpeg, others, photoshop, splice, vips
from .kinds import AS_BEFORE, FORMATS, Encoding, ImageError, Kind, Photo, check_format, full_range
from .limits import room

_GREY = (".jpg", ".jpeg", ".png", ".tif", ".tiff")  # which hold grey as such, and profiles
_OPENCV = (".bmp", ".jp2", ".pgm", ".ppm")
_QUALITY = 95
_QUALITY_OF_WEB = 90  # WebP and AVIF
_FINE = 90  # from this quality on colours are not made coarser
_BIGTIFF = 2**32 - 2**26  # bytes of pixels that a TIFF file of 4 GiB may not hold
_GTYPES = {
    bytes: pyvips.GValue.blob_type,
    str: pyvips.GValue.refstr_type,
    int: pyvips.GValue.gint_type,
    list: pyvips.GValue.array_int_type,
}


class PhotoWriter:
    """A file that gets its rows in any order; at the end it is written whole, or not at all.

    A context manager: without an error inside it writes, with one it leaves what was there. What is large
    lies in a temporary file beside `path` and not in memory. A symbolic link is replaced, not the file that
    it points to.

    Args:
        path: the file; its suffix says the format, one of `FORMATS`.
        kind: what it has to look like: a `Page` or a `Photo`. Its `origin` gives EXIF, XMP, IPTC, comments,
            ICC profile and dots per inch, as far as the format has them (BMP, PPM and JPEG 2000 have none
            here), quality and the like. EXIF's thumbnail is made anew.
        pages: how many images of that size: pages of a TIFF, frames of a GIF or WebP.
        encoding: what is to be otherwise than in the input.

    Raises:
        ImageError: see `check_format`; or, in `put`, the values are not finite; or the file cannot be
            written.
    """

    def __init__(self, path: str | Path, kind: Kind, pages: int = 1, encoding: Encoding = AS_BEFORE) -> None:
        check_format(path, kind, pages)
        self.path, self.kind, self.pages = Path(path), kind, pages
        self._suffix = self.path.suffix.lower()
        self._encoding = encoding.over(kind.origin.encoding)
        self._cmyk = kind.origin.cmyk and FORMATS[self._suffix].cmyk
        self._grey = kind.grey and self._suffix not in (".ppm",)
        if self._suffix == ".bmp" and kind.has_alpha:
            self._grey = False
        channels = (1 if self._grey else 3) + kind.has_alpha
        dtype = np.uint16 if self._cmyk else kind.dtype
        self._there = np.zeros(pages * kind.height, bool)
        try:
            self._pixels = room((pages * kind.height, kind.width, channels), dtype, self.path.parent)
        except OSError as error:
            raise ImageError(f"{path} was not written: {error.strerror or error}") from error

    def put(self, top: int, rgb: torch.Tensor, alpha: np.ndarray | None = None, page: int = 0) -> None:
        """Rows from `top` on: (1, 3, rows, W), values below 0 and above 1 clamped but in floats; of a grey
        image the mean of the three channels. `alpha`, (rows, W), where the kind has it.

        Raises:
            ValueError: rows or page are outside of the image, or of another size, or alpha is missing.
        """
        height, width = self.kind.height, self.kind.width
        bottom = top + rgb.shape[2] if rgb.dim() == 4 else -1
        if rgb.shape[:2] != (1, 3) or rgb.shape[3:] != (width,) or not 0 <= top < bottom <= height:
            raise ValueError(
                f"PhotoWriter: rgb must be (1, 3, rows, {width}), rows {top} on of {height}; "
                f"got {tuple(rgb.shape)}"
            )
        if self.kind.has_alpha and (alpha is None or alpha.shape != rgb.shape[2:]):
            got = None if alpha is None else alpha.shape
            raise ValueError(f"PhotoWriter: alpha must be {tuple(rgb.shape[2:])}; got {got}")
        if not 0 <= page < self.pages:
            raise ValueError(f"PhotoWriter: page must be below {self.pages}; got {page}")
        values = rgb[0].detach().float()
        if not torch.stack(values.aminmax()).isfinite().all():
            raise ImageError(f"{self.path} was not written: the image has values that are not finite")
        if self.kind.grey:
            values = values.mean(dim=0, keepdim=True)
        dtype = self._pixels.dtype.type
        if not np.issubdtype(dtype, np.floating):
            whole = values.clamp(0, 1).mul_(full_range(dtype)).round_()
            # Integers first, of which there is less to move.
            values = whole.to(torch.uint8 if dtype == np.uint8 else torch.int32)
        first = page * height + top
        self._there[first : first + values.shape[1]] = True
        place = self._pixels[first : first + values.shape[1]]
        planes = values.cpu().numpy()
        for channel in range(place.shape[2] - self.kind.has_alpha):
            place[:, :, channel] = planes[min(channel, len(planes) - 1)]
        if self.kind.has_alpha:
            place[:, :, -1] = alpha

    def __enter__(self) -> "PhotoWriter":
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        if kind is None:
            self._write()
        del self._pixels

    def _write(self):
        if not self._there.all():
            missing = f"{(~self._there).sum()} of {len(self._there)} rows are missing"
            raise ImageError(f"{self.path} was not written: {missing}")
        vips.forget_errors()
        failed = []
        try:
            with replaced(self.path) as new:
                if new == self.path:  # a pipe or the like, which can't go back
                    file = io.BytesIO()
                    self._encode(file, failed)
                    new.write_bytes(file.getbuffer())
                else:
                    with new.open("w+b") as file:
                        self._encode(file, failed)
        except pyvips.Error as error:
            said = (failed[0].strerror or failed[0]) if failed else vips.reason(error)
            raise ImageError(f"{self.path} was not written: {said}") from (failed[0] if failed else error)
        except OSError as error:
            raise ImageError(f"{self.path} was not written: {error.strerror or error}") from error

    def _encode(self, file: BinaryIO, failed: list[OSError]) -> None:
        if self._suffix in _OPENCV:
            file.write(others.encoded(self.path, self._pixels))
            return
        image = vips.image_of(self._pixels)
        origin = self.kind.origin
        block = origin.exif
        if block:
            first = image.crop(0, 0, image.width, self.kind.height)
            block = exif.with_thumbnail(block, lambda old, length: _thumbnail(first, old, length))
        fields: dict[str, Any] = dict(origin.fields)
        space = b"CMYK" if self._cmyk else b"GRAY" if self._grey and self._suffix in _GREY else b"RGB "
        if fields.get("icc-profile-data", b"")[16:20] != space:  # where the header of a profile has it
            fields.pop("icc-profile-data", None)
        if self._cmyk:
            image = _to_cmyk(image, fields.get("icc-profile-data"))
        across, down = origin.dots or (image.xres, image.yres)
        image = image.copy(xres=across, yres=down)
        for name, value in fields.items():
            image.set_type(_GTYPES[type(value)], name, value)
        if self.pages > 1:
            image.set_type(pyvips.GValue.gint_type, "page-height", self.kind.height)
        save = {
            ".jpg": self._jpeg,
            ".jpeg": self._jpeg,
            ".png": self._png,
            ".webp": self._webp,
            ".avif": self._avif,
            ".gif": self._gif,
        }.get(self._suffix, self._tiff)
        save(image, block, file, failed)

    def _jpeg(self, image, block, file, failed):
        how, resources = self._encoding, self.kind.origin.photoshop
        names = set(image.get_fields())
        xmp = image.get("xmp-data") if "xmp-data" in names else b""
        for what, data in (("EXIF", block or b""), ("XMP", xmp), ("IPTC", resources or b"")):
            if len(data) > jpeg.LONGEST:
                warnings.warn(f"{self.path}: {len(data):,} bytes of {what} don't fit a JPEG", stacklevel=2)
        if len(xmp) > jpeg.LONGEST:
            image.remove("xmp-data")
        if resources and len(resources) <= jpeg.LONGEST:
            image.set_type(pyvips.GValue.blob_type, "iptc-data", photoshop.for_jpeg(resources))
        block = block if len(block or b"") <= jpeg.LONGEST else None
        image.jpegsave_target(
            _target(file, failed, (2, jpeg.head(block, self.kind.origin.dots))),
            Q=how.quality or _QUALITY,
            subsample_mode="on" if how.subsampling == "4:2:0" else "off",
            interlace=bool(how.progressive),
            keep="xmp|iptc|icc|other",
        )

    def _png(self, image, block, file, failed):
        chunks = splice.png_head(block, self.kind.origin.fields.get("xmp-data"))
        image.pngsave_target(
            _target(file, failed, (splice.PNG_HEAD, chunks)),
            compression=5,
            filter="all",
            keep="icc|other",
        )

    def _webp(self, image, block, file, failed):
        how = self._encoding
        image.webpsave_target(
            _target(file, failed),
            Q=how.quality or _QUALITY_OF_WEB,
            lossless=how.lossless is not False,
            keep="xmp|icc|other",
        )
        if block:
            splice.into_webp(file, block, image.width, self.kind.height, self.kind.has_alpha)

    def _avif(self, image, block, file, failed):
        how = self._encoding
        if block:
            image.set_type(pyvips.GValue.blob_type, "exif-data", b"Exif\0\0" + block)
        quality = how.quality or _QUALITY_OF_WEB
        fine = how.lossless or how.subsampling == "4:4:4" or (how.subsampling is None and quality >= _FINE)
        image.heifsave_target(
            _target(file, failed),
            compression="av1",
            Q=quality,
            lossless=bool(how.lossless),
            bitdepth=(self.kind.origin.bits or 12) if self.kind.dtype == np.uint16 else 8,
            subsample_mode="off" if fine else "on",
        )

    def _gif(self, image, block, file, failed):
        image.gifsave_target(_target(file, failed))

    def _tiff(self, image, block, file, failed):
        image.tiffsave_target(
            _target(file, failed),
            compression="deflate",
            predictor="none" if self.kind.dtype == np.float32 else "horizontal",
            bigtiff=self._pixels.nbytes > _BIGTIFF,
            resunit="inch",
        )
        resources = self.kind.origin.photoshop
        exif.into_tiff(file, block, photoshop.for_tiff(resources) if resources else [])


def write_photo(path: str | Path, photo: Photo, encoding: Encoding = AS_BEFORE) -> None:
    """Write `photo` as the kind of image it is, values below 0 and above 1 clamped.

    See `PhotoWriter` for what is kept, and for the arguments and errors.
    """
    with PhotoWriter(path, photo, encoding=encoding) as writer:
        writer.put(0, photo.rgb, photo.alpha)


def _target(
    file: BinaryIO, failed: list[OSError], insert: tuple[int, bytes] = (0, b"")
) -> pyvips.TargetCustom:
    """What libvips writes to: `file`, with bytes inserted at a place of what it writes in one go.

    An error of the file is added to `failed`; libvips then tells of another.
    """
    target, (place, more) = pyvips.TargetCustom(), insert

    def caught(do: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return do()
        except OSError as error:
            failed.append(error)
            return otherwise

    def write(data):
        at = file.tell()
        if more and at <= place < at + len(data):
            data = bytes(data)
            file.write(data[: place - at] + more + data[place - at :])
            return len(data)
        return file.write(data)

    target.on_write(lambda data: caught(lambda: write(data), -1))
    target.on_read(lambda length: caught(lambda: file.read(length), b""))
    target.on_seek(lambda offset, whence: caught(lambda: file.seek(offset, whence), -1))
    return target


def _to_cmyk(image, profile):
    """From sRGB to the CMYK of a profile, or of libvips's own."""
    image = image.icc_import(input_profile="srgb", embedded=False, black_point_compensation=True)
    image = image.copy()
    if profile is None:
        image = image.icc_export(output_profile="cmyk", depth=8, black_point_compensation=True).copy()
        image.remove("icc-profile-data")
        return image
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    return image.icc_export(depth=8, black_point_compensation=True)


def _thumbnail(image, old, length):
    """A JPEG of `image` about as large as `old` in pixels, and at most `length` bytes; None without one."""
    try:
        before = pyvips.Image.jpegload_buffer(old)
    except pyvips.Error:
        return None
    side = max(before.width, before.height)
    image = image.resize(min(1.0, side / max(image.width, image.height)))
    if image.bands in (2, 4):
        image = image.flatten()
    if image.format != "uchar":
        image = (image * (255 / full_range(vips.DTYPES[image.format]))).cast("uchar")
    image = image.copy(interpretation="srgb" if image.bands == 3 else "b-w")
    for quality in (90, 75, 50, 25):
        data = image.jpegsave_buffer(Q=quality, keep="none")
        if len(data) <= length:
            return data
    return None
