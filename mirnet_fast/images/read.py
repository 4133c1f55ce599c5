"""Image files to tensors, whole or in rows, keeping what kind of image it was."""

import contextlib
import mmap
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
import torch

from . import exif, jpeg, others, photoshop, splice, tiff, vips
from .kinds import Encoding, ImageError, Origin, Photo, full_range
from .limits import USUAL, Limits

# (where it begins, what stands there, who reads it)
_SIGNATURES = [
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (8, b"WEBP", "webp"),
    *((0, start, "tiff") for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    (0, b"GIF8", "gif"),
    *((4, b"ftyp" + brand, "heif") for brand in (b"avi", b"hei", b"hev", b"mif", b"msf")),
    (0, b"BM", "opencv"),
    *((0, b"P" + kind + space, "opencv") for kind in (b"2", b"3", b"5", b"6") for space in (b"\n", b" ")),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "opencv"),
    (0, b"\xff\x4f\xff\x51", "opencv"),
]
_NAMES = "JPEG, PNG, TIFF, WebP, GIF, AVIF, BMP, PPM or JPEG 2000"
# libvips's names of what is kept as it is
_KEPT = re.compile(r"icc-profile-data|xmp-data|png-comment-.*|gif-comment|loop|delay")
_ORIENTATION_OF_XMP = re.compile(rb"(tiff:Orientation(?:=[\"']|>))[2-8]")


class Page:
    """An image of a file, decoded, of which rows can be had in any order and as often as wanted.

    What is large lies in a temporary file and not in memory.

    Attributes:
        pixels: (H, W, channels) as in the file, upright: RGB or grey, then transparency.
        grey, dtype, origin, damage: as of a `Photo`.
    """

    def __init__(
        self, pixels: np.ndarray, origin: Origin, damage: str | None = None, dtype: Any = None
    ) -> None:
        self.pixels, self.origin, self.damage = pixels, origin, damage
        self.grey = pixels.shape[2] < 3
        self.dtype = dtype or pixels.dtype.type

    @property
    def height(self) -> int:
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    @property
    def has_alpha(self) -> bool:
        return self.pixels.shape[2] in (2, 4)

    def rows(self, top: int, bottom: int) -> torch.Tensor:
        """(1, 3, bottom - top, W) float32 of these rows, as in `Photo.rgb`."""
        part = self.pixels[top:bottom, :, : 1 if self.grey else 3]
        # As they are first, of which there is less to move.
        colours = torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1)))
        rgb = colours.float().div_(full_range(self.pixels.dtype.type))
        return rgb.expand(3, -1, -1)[None].contiguous()

    def alpha(self, top: int, bottom: int) -> np.ndarray | None:
        """(bottom - top, W) of `dtype`, or None."""
        return self.pixels[top:bottom, :, -1].copy() if self.has_alpha else None

    def photo(self) -> Photo:
        """All of it."""
        rgb, alpha = self.rows(0, self.height), self.alpha(0, self.height)
        return Photo(rgb, alpha, self.grey, self.dtype, self.origin, self.damage)


class Pages:
    """The images of a file: the pages of a TIFF, the frames of an animation, of others the one.

    `len(pages)`, `pages[i]` and iteration give `Page`s; as a context manager it closes the file.

    Args:
        path: of a file of one of the formats of `read_photo`.
        salvage: also of a damaged file as much as is there; see `Photo.damage`.
        limits: what is too large.

    Raises:
        ImageError: as `read_photo`, but for several images; also when a page is asked for.
    """

    def __init__(self, path: str | Path, salvage: bool = False, limits: Limits = USUAL) -> None:
        self.path, self.salvage, self.limits = Path(path), salvage, limits
        self._file, size = _opened(self.path)
        self._map: mmap.mmap | bytes = b""
        self._tiff: list[tiff.TiffPage] = []
        self._frames: tuple[tuple[np.ndarray, Origin, Any], str | None] | None = None
        try:
            self.limits.check_bytes(self.path, size)
            with _told(self.path):
                self._look(size)
        except BaseException:
            self.close()
            raise

    def _look(self, size):
        if size:
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        start = self._map[:32]
        self._kind = next((who for at, what, who in _SIGNATURES if start.startswith(what, at)), None)
        if self.path.suffix.lower() in others.RAW:
            self._kind = "raw"
        if self._kind is None:
            raise ImageError(f"{self.path} is not an image that can be read ({_NAMES}), or is damaged")
        if self._kind == "tiff":
            self._file.seek(0)
            self._tiff = tiff.pages(self.path, self._file)
            for page in self._tiff:
                self.limits.check_pixels(self.path, page.width, page.height)
            self._count = len(self._tiff)
            return
        self._count = 1
        self._all = {"n": -1} if self._kind in ("gif", "webp") else {}
        if self._kind in ("opencv", "raw"):
            return
        image = self._image(strict=not self.salvage, **self._all)
        fields = set(image.get_fields())
        self._count = image.get("n-pages") if "n-pages" in fields and self._kind != "heif" else 1
        self.limits.check_pixels(self.path, image.width, image.height)
        if self._kind == "heif" and "n-pages" in fields and image.get("n-pages") > 1:
            raise ImageError(f"{self.path} holds {image.get('n-pages')} images; of AVIF and HEIC one is read")
        if self._kind == "png" and splice.png_chunk_at(self._map, b"acTL") >= 0:
            raise ImageError(
                f"{self.path} is an animation, and libvips reads only the first frame of those in PNG; "
                "turn it into a WebP"
            )

    def __len__(self) -> int:
        return self._count

    @property
    def is_tiff(self) -> bool:
        return bool(self._tiff)

    def __getitem__(self, index: int) -> Page:
        if not 0 <= index < self._count:
            raise IndexError(f"{self.path} has {self._count} images; asked for number {index}")
        with _told(self.path):
            if self._kind == "opencv":
                self._file.seek(0)
                pixels, short = others.by_opencv(self.path, self._file, self.limits, self.salvage)
                return Page(pixels, Origin(), "its end is missing" if short else None)
            if self._kind == "raw":
                self._file.seek(0)
                pixels = others.by_rawpy(self.path, self._file, self.limits)
                return Page(pixels, Origin(self._exif_of_raw(pixels)))
            return self._page(index)

    def __iter__(self) -> Iterator[Page]:
        return (self[i] for i in range(len(self)))

    def __enter__(self) -> "Pages":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if isinstance(self._map, mmap.mmap):
            self._map.close()
        self._file.close()

    def _page(self, index):
        """What libvips reads; the frames of an animation all at once."""
        damage, stacked = None, self._count > 1 and not self._tiff
        if self._frames is None or not stacked:
            damage = self._damage()
            if damage and not self.salvage:
                raise ImageError(f"{self.path} is damaged: {damage}")
            try:
                self._frames = self._by_vips(index, not damage), damage
            except pyvips.Error as error:
                if not self.salvage:
                    raise
                self._frames = self._by_vips(index, strict=False), vips.reason(error)
        (pixels, origin, dtype), damage = self._frames
        if stacked:
            height = len(pixels) // self._count
            pixels = pixels[index * height : (index + 1) * height]
        else:
            self._frames = None
        pixels = _upright(pixels, self._orientation)
        if origin.exif:
            origin = replace(origin, exif=exif.upright(origin.exif, pixels.shape[1], pixels.shape[0]))
        return Page(pixels, origin, damage, dtype)

    def _damage(self):
        """What is wrong with the file that its decoder would not notice, or None."""
        if self._kind == "jpeg" and not jpeg.is_whole(self._map):
            return "the end of the image is not there"
        return None

    def _image(self, strict, **options):
        """What libvips makes of the file; nothing is decoded yet."""
        self._file.seek(0)
        vips.forget_errors()
        source = pyvips.Source.new_from_descriptor(self._file.fileno())
        load = getattr(pyvips.Image, f"{self._kind}load_source")
        return load(source, access="sequential", fail_on="error" if strict else "none", **options)

    def _by_vips(self, index, strict):
        if self._tiff:
            image = self._image(strict, page=self._tiff[index].index)
        else:
            image = self._image(strict, **self._all)
        cmyk = image.interpretation == "cmyk"
        dtype = vips.DTYPES.get(image.format)
        if image.bands > 4 or dtype is None or (cmyk and image.bands != 4):
            what = f"{image.bands} channels of {image.format}"
            raise ImageError(f"{self.path} has {what}; only grey, RGB, RGBA and CMYK images are supported")
        origin = self._origin(image, index, cmyk)
        if cmyk:
            # In 16 bits, so that nothing is lost on the way; where no profile is there by libvips's own.
            image = image.icc_transform(
                "srgb", embedded=True, input_profile="cmyk", depth=16, black_point_compensation=True
            )
        return vips.decoded(image), origin, dtype

    def _origin(self, image, index, cmyk):
        names = set(image.get_fields())
        fields = {name: image.get(name) for name in names if _KEPT.fullmatch(name)}
        block = exif.block(image.get("exif-data")) if "exif-data" in names else None
        self._orientation = exif.orientation(block)
        if self._tiff:
            block = exif.from_tiff(self._map, self._tiff[index].offset)
            self._orientation = image.get("orientation") if "orientation" in names else 1
        elif self._kind == "heif":
            self._orientation = 1  # libheif has turned it, whatever EXIF says
        if "xmp-data" in fields:
            fields["xmp-data"] = _ORIENTATION_OF_XMP.sub(rb"\g<1>1", fields["xmp-data"])
        bits = image.get("bits-per-sample") if "bits-per-sample" in names and self._kind == "heif" else None
        if self._tiff:
            resources = photoshop.of_tiff(self._map, self._tiff[index].offset)
        else:
            resources = photoshop.of_jpeg(image.get("iptc-data")) if "iptc-data" in names else None
        encoding = self._encoding()
        return Origin(block, fields, resources, self._dots(image), cmyk, bits, encoding)

    def _dots(self, image):
        """Pixels a millimetre; EXIF, to which libvips listens first, often says 72 an inch without reason."""
        own = {"jpeg": jpeg.dots, "png": splice.png_dots}.get(self._kind or "")
        dots = (own(self._map) if own else None) or (image.xres, image.yres)
        if dots == (1.0, 1.0):  # libvips's where nothing is said
            return None
        return dots[::-1] if self._orientation > 4 else dots

    def _encoding(self):
        if self._kind == "jpeg":
            return Encoding(jpeg.quality(self._map), *jpeg.frame(self._map), lossless=False)
        if self._kind == "webp":
            return Encoding(lossless=self._map.find(b"VP8L", 0, 2**16) >= 0)
        return Encoding(lossless=False if self._kind == "heif" else None)

    def _exif_of_raw(self, pixels):
        """Of most, which are TIFF files; upright, as rawpy's pixels are."""
        try:
            block = exif.from_tiff(self._map, exif.Layout(self._map).first)
        except ValueError:
            return None
        return block and exif.upright(block, pixels.shape[1], pixels.shape[0])


def read_photo(path: str | Path, salvage: bool = False, limits: Limits = USUAL) -> Photo:
    """The Photo in `path`: 8 or 16 bits or floats, grey or colour, with or without transparency.

    The file is a JPEG, PNG, TIFF, WebP, GIF, AVIF, BMP, PPM, PGM or JPEG 2000, whatever its name, an HEIC
    where libvips was built for it, or a camera's raw file, named as such (extra `[raw]`). The orientation
    that a camera wrote into it is applied. Of a TIFF that has smaller copies of its image too only the image
    is read. CMYK is turned into sRGB by its profile, and back when it is written; all other colours stay in
    their own space.

    Args:
        path: the file.
        salvage: of a damaged file read what is there, and say so in `Photo.damage`.
        limits: what is too large.

    Raises:
        ImageError: the file is missing, cannot be read, is damaged, no image, or too large; or part of it
            would be lost: it has several pages or frames (for which there is `Pages`), the image itself is
            not there but its preview, or its pixels are of another kind (Lab, more channels).
    """
    with Pages(path, salvage, limits) as pages:
        if len(pages) > 1:
            what = "holds more than one image" if pages.is_tiff else f"is an animation of {len(pages)} frames"
            raise ImageError(f"{path} {what}; only single images are read here")
        page = pages[0]
        with _told(pages.path):
            return page.photo()


@contextlib.contextmanager
def _told(path):
    """What goes wrong with the file at `path` becomes an ImageError that names it."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{path} is too large for the memory that is left: {error}") from error
    except pyvips.Error as error:
        if vips.lacks_decoder(error):
            raise ImageError(
                f"{path} cannot be read: this build of libvips has no decoder of it; turn it into a JPEG, "
                f"PNG or TIFF, or install a libvips that has one ({vips.reason(error)})"
            ) from error
        raise ImageError(
            f"{path} is not an image that can be read, or is damaged: {vips.reason(error)}"
        ) from error
    except Exception as error:  # a damaged file may raise anything
        if isinstance(error, OSError) and error.errno:
            raise ImageError(f"{path} cannot be read: {error.strerror or error}") from error
        raise ImageError(f"{path} is not an image that can be read, or is damaged: {error}") from error


def _opened(path):
    """(file, its size in bytes)."""
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a folder; name the files in it, such as {path / '*.png'}")
        if not path.exists():
            what = "the link leads nowhere" if path.is_symlink() else "there is no such file"
            raise ImageError(f"{path}: {what}")
        if not path.is_file():
            raise ImageError(f"{path} is no regular file")
        file = path.open("rb")
        return file, file.seek(0, 2)
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}") from error


def _upright(pixels, orientation):
    """As a camera held otherwise saw it (EXIF 2.3, tag Orientation)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]
