"""Image files to tensors and back, keeping what kind of image it was.

Pillow decodes 8 bits a channel and OpenCV 16, which Pillow would reduce to 8; tifffile tells what a TIFF
holds, and writes it. What neither would give back whole is refused.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
import torch
from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from ._files import replaced

# suffix: (16 bits a channel, transparency), as they are written
FORMATS = {
    ".bmp": (False, True),
    ".jpeg": (False, False),
    ".jpg": (False, False),
    ".png": (True, True),
    ".tif": (True, True),
    ".tiff": (True, True),
    ".webp": (False, True),
}

# (where it begins, what stands there, who reads it). Image.open would refuse large images.
_READERS = [
    (0, b"BM", BmpImagePlugin.BmpImageFile),
    (0, b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (0, b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (8, b"WEBP", WebPImagePlugin.WebPImageFile),
    *((0, start, TiffImagePlugin.TiffImageFile) for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
]
_JPEG_END = b"\xff\xd9"
_PNG_DEPTH, _PNG_TYPE = 24, 25  # where a PNG has them
_PNG_GREY = 0, 4
# what Pillow decodes: what we make of it
_MODES = {
    "1": "L",
    "L": "L",
    "LA": "LA",
    "La": "LA",
    "P": "RGB",
    "RGB": "RGB",
    "RGBA": "RGBA",
    "YCbCr": "RGB",
}
_ORIENTATION = 0x0112  # of EXIF
# how many channels of a TIFF are colours
_TIFF_COLOURS = {"MINISWHITE": 1, "MINISBLACK": 1, "PALETTE": 1, "RGB": 3, "YCBCR": 3}


class ImageError(ValueError):
    """Image files cannot be read or written, are missing, or do not fit together; the message names them."""


@dataclass(frozen=True)
class Photo:
    """An image and what its file has to look like.

    Attributes:
        rgb: (1, 3, H, W) float32, 0 to 1; three equal channels for a grey image.
        alpha: (H, W) of `dtype` as in the file, or None.
        grey: the file has one colour channel.
        dtype: numpy.uint8 or numpy.uint16.
    """

    rgb: torch.Tensor
    alpha: np.ndarray | None = None
    grey: bool = False
    dtype: type = np.uint8


def read_photo(path: str | Path) -> Photo:
    """The Photo in `path`: 8 or 16 bits, grey or colour, with or without transparency.

    The file is a BMP, JPEG, PNG, TIFF or WebP, whatever its name. The orientation that a camera wrote into
    it is applied. Of a TIFF that has smaller copies of its image too only the image is read.

    Raises:
        ImageError: the file is missing, cannot be read, is damaged, no image, or too large; or part of it
            would be lost: it has several pages or frames, the image itself is not there but its preview
            (as in a camera's raw file), or its pixels are of another kind (CMYK, float, more channels).
    """
    path = Path(path)
    data = _read(path)
    try:
        pixels, grey = _pixels(path, data)
        colours = np.broadcast_to(pixels[:, :, : 1 if grey else 3], (*pixels.shape[:2], 3))
        rgb = torch.from_numpy(colours.astype(np.float32)).permute(2, 0, 1)[None].contiguous()
        rgb /= np.iinfo(pixels.dtype).max
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{path} is too large for the memory that is left: {error}") from error
    except Exception as error:  # a damaged file may raise anything
        if "decompressed data too large" in str(error).lower():
            raise ImageError(f"{path} holds more text than Pillow reads: {error}") from error
        raise ImageError(f"{path} is not an image that can be read, or is damaged: {error}") from error
    return Photo(
        rgb=rgb,
        alpha=pixels[:, :, -1].copy() if pixels.shape[2] in (2, 4) else None,
        grey=grey,
        dtype=pixels.dtype.type,
    )


def _read(path):
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a folder; name the files in it, such as {path / '*.png'}")
        if not path.exists():
            raise ImageError(f"{path}: there is no such file")
        if not path.is_file():
            raise ImageError(f"{path} is no regular file")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}") from error


def _pixels(path, data):
    """(H, W, channels) uint8 or uint16, upright, of 1 to 4 channels; and whether its colour is grey."""
    reader = next((r for at, start, r in _READERS if data[at : at + len(start)] == start), None)
    if reader is None:
        raise ImageError(
            f"{path} is not an image that can be read (BMP, JPEG, PNG, TIFF or WebP), or is damaged"
        )
    tiff = reader is TiffImagePlugin.TiffImageFile
    sixteen = _check_tiff(path, data) if tiff else False
    image = reader(io.BytesIO(data))
    # pyrefly: ignore[missing-attribute]
    if reader is JpegImagePlugin.JpegImageFile and data.find(_JPEG_END, image.fp.tell()) < 0:
        raise ImageError(f"{path} is damaged: the end of the image is not there")
    if reader is PngImagePlugin.PngImageFile:
        depth, key = data[_PNG_DEPTH], data[_PNG_TYPE] == 0 and "transparency" in image.info
        if key and depth in (2, 4, 16):
            raise ImageError(
                f"{path} is grey with {depth} bits and one transparent value; write it with alpha"
            )
        sixteen = depth == 16
        reader(io.BytesIO(data)).verify()  # the checksums, at which decoding doesn't look
    frames = getattr(image, "n_frames", 1)
    if not tiff and frames > 1:
        raise ImageError(f"{path} is an animation of {frames} frames; only single images are read")
    if sixteen:
        pixels = _decoded_by_opencv(path, data, image)
        if not tiff and data[_PNG_TYPE] in _PNG_GREY and pixels.shape[2] == 4:
            pixels = pixels[:, :, 2:]  # OpenCV repeats grey before transparency
    else:
        if image.mode not in _MODES:
            raise ImageError(f"{path} has {image.mode} pixels; only grey, RGB and RGBA images are supported")
        mode = _MODES[image.mode]
        if "transparency" in image.info:  # of a palette, or one colour
            mode = "LA" if mode == "L" else "RGBA"
        pixels = np.asarray(image.convert(mode))
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
    if not tiff:  # those are turned by whoever decodes them
        pixels = _upright(pixels, _orientation(image))
    return pixels, pixels.shape[2] < 3


def _check_tiff(path, data):
    """Whether a TIFF has 16 bits a channel.

    Raises:
        ImageError: not all of it would be read.
    """
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        first, *others = file.pages
        others += list(first.pages or [])
        if first.is_reduced or any(not _is_copy(page, first) for page in others):
            raise ImageError(
                f"{path} holds more than one image, as raw files of cameras and documents of several pages "
                "do; only single images are read"
            )
        kind = getattr(first.photometric, "name", first.photometric)
        colours = _TIFF_COLOURS.get(kind)
        if colours is None:
            raise ImageError(f"{path} has {kind} pixels; only grey, RGB and RGBA images are supported")
        if first.dtype not in (bool, np.uint8, np.uint16):
            what = first.dtype or f"{first.bitspersample} bit"
            raise ImageError(f"{path} has {what} pixels; only 8 and 16 bit integers are supported")
        sixteen = first.bitspersample == 16
        if not sixteen and first.bitspersample not in (1, 2, 4, 8):
            raise ImageError(f"{path} has pixels of {first.bitspersample} bits; only 8 and 16 are supported")
        more = first.samplesperpixel - colours
        # OpenCV, and we with it, wrote files that don't say what the fourth channel is.
        extra = [sample.name for sample in first.extrasamples] or ["UNASSALPHA"] * more
        if more > 1 or extra not in ([], ["UNASSALPHA"], ["ASSOCALPHA"]):
            raise ImageError(
                f"{path} has {first.samplesperpixel} channels; only grey, RGB and RGBA images are supported"
            )
        if more and ((sixteen and colours == 1) or (extra == ["ASSOCALPHA"] and (sixteen or colours == 1))):
            what = "colours multiplied by" if extra == ["ASSOCALPHA"] else "grey with"
            raise ImageError(
                f"{path} has {first.bitspersample} bits and {what} transparency, which is not supported"
            )
        planes = first.planarconfig != 1 and first.samplesperpixel > 1
        if (sixteen and kind not in ("MINISBLACK", "RGB")) or (planes and (sixteen or colours == 1)):
            how = f"{first.bitspersample} bits and {kind} pixels{', each channel apart' if planes else ''}"
            raise ImageError(f"{path} has {how}, which is not supported")
        return sixteen


def _is_copy(page, first):
    smaller = page.imagewidth <= first.imagewidth and page.imagelength <= first.imagelength
    return page.is_reduced and smaller


def _decoded_by_opencv(path, data, image):
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        image.load()  # raises if it is damaged
        raise ImageError(f"{path} is too large, {image.width} x {image.height} pixels, for OpenCV")
    if pixels.ndim == 2:
        return pixels[:, :, None]
    order = [2, 1, 0, 3]
    return pixels[:, :, order[: pixels.shape[2]]]


def _orientation(image):
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF data may raise anything, and the pixels are sound
        return None


def _upright(pixels, orientation):
    """As a camera held otherwise saw it (EXIF 2.3, tag Orientation)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]


def write_photo(path: str | Path, photo: Photo) -> None:
    """Write `photo` as the kind of image it is, values below 0 and above 1 clamped.

    The file is written whole or not at all; a symbolic link is replaced, not the file that it points to.
    A grey image is the mean of the three channels. Where the format has no such kind it is written
    as colour with equal channels: grey in WebP, grey with transparency everywhere. EXIF data and
    colour profiles are not written.

    Raises:
        ImageError: see `check_format`; or the values are not finite, or the file cannot be written.
    """
    check_format(path, photo)
    path = Path(path)
    rgb = photo.rgb[0].detach().float().cpu()
    if not rgb.isfinite().all():
        raise ImageError(f"{path} was not written: the image has values that are not finite")
    if photo.grey:
        rgb = rgb.mean(dim=0, keepdim=True)
    scaled = (rgb.clamp(0, 1) * np.iinfo(photo.dtype).max).round()
    pixels = scaled.permute(1, 2, 0).numpy().astype(photo.dtype)
    if photo.alpha is not None:
        colours = np.broadcast_to(pixels, (*photo.alpha.shape, 3))
        pixels = np.concatenate([colours, photo.alpha[:, :, None]], axis=2)
    data = _encoded(path, pixels)
    try:
        with replaced(path) as new:
            new.write_bytes(data)
    except OSError as error:
        raise ImageError(f"{path} was not written: {error.strerror or error}") from error


def _encoded(path, pixels):
    """The bytes of a file of RGB, RGBA or grey pixels, (H, W, channels)."""
    suffix = path.suffix.lower()
    if suffix in (".tif", ".tiff"):
        # OpenCV would not say that the fourth channel is transparency.
        file = io.BytesIO()
        tifffile.imwrite(
            file,
            pixels[:, :, 0] if pixels.shape[2] == 1 else pixels,
            photometric="minisblack" if pixels.shape[2] == 1 else "rgb",
            extrasamples=["unassalpha"] if pixels.shape[2] == 4 else None,
            compression="zlib",
            predictor=True,
            metadata=None,
            software=False,
        )
        return file.getbuffer()
    if pixels.shape[2] >= 3:
        pixels = pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]
    try:
        encoded, data = cv2.imencode(suffix, np.ascontiguousarray(pixels))
    except cv2.error as error:
        raise ImageError(f"{path} was not written: {error}") from error
    if not encoded:
        raise ImageError(f"{path} was not written: OpenCV cannot encode {pixels.shape} pixels as this format")
    return data.data


def check_format(path: str | Path, photo: Photo) -> None:
    """Check that the format of `path` can hold `photo`.

    Raises:
        ImageError: the suffix is unknown, or 16 bits or transparency would be lost.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ImageError(
            f"{path}: cannot write {suffix or 'a file without suffix'}; use {', '.join(FORMATS)}"
        )
    has_16_bits, has_alpha = FORMATS[suffix]
    if photo.dtype == np.uint16 and not has_16_bits:
        raise ImageError(f"{path}: {suffix} cannot hold 16 bits a channel; use .png or .tiff")
    if photo.alpha is not None and not has_alpha:
        raise ImageError(f"{path}: {suffix} cannot hold transparency; use .png or .tiff")


def hidden(path: str | Path) -> bool:
    """Whether a name in a relative path begins with a dot.

    So do the `._x.jpg` that macOS puts beside x.jpg, and Jupyter's folders of copies.
    """
    return any(part.startswith(".") for part in Path(path).parts)


def photos_below(folder: str | Path) -> list[Path]:
    """The image files of a folder and all below it, sorted, but hidden ones.

    Raises:
        ImageError: the folder is not there or holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder}: there is no such folder")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in FORMATS and not hidden(path.relative_to(folder)) and not path.is_dir()
    )
    if not found:
        raise ImageError(f"{folder}: no images ({', '.join(FORMATS)}) in it")
    return found


def matching_photos(inputs: str | Path, targets: str | Path) -> list[tuple[Path, Path]]:
    """[(input, target)] of the image files that two folders hold under the same names.

    Raises:
        ImageError: a folder is not there, or a name is only in one of them.
    """
    by_name = [{path.relative_to(f): path for path in photos_below(f)} for f in (inputs, targets)]
    alone = sorted(by_name[0].keys() ^ by_name[1].keys())
    if alone:
        listed = ", ".join(map(str, alone[:5])) + (f" and {len(alone) - 5} more" if len(alone) > 5 else "")
        raise ImageError(f"{inputs} and {targets} must hold the same names; only in one of them: {listed}")
    return [(by_name[0][name], by_name[1][name]) for name in sorted(by_name[0])]
