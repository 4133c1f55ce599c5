"""Image files to tensors and back, keeping what kind of image it was."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

# suffix: (16 bits a channel, transparency), as OpenCV writes them
FORMATS = {
    ".bmp": (False, True),
    ".jpeg": (False, False),
    ".jpg": (False, False),
    ".png": (True, True),
    ".tif": (True, True),
    ".tiff": (True, True),
    ".webp": (False, True),
}

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_GREY_TYPES = (0, 4)


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


def read_photo(path):
    """The Photo in `path`: 8 or 16 bits, grey or colour, with or without transparency.

    The orientation that a camera wrote into the file is applied to images without transparency.

    Raises:
        ImageError: the file is missing, damaged, no image, or of another kind of pixels.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageError(f"{path}: there is no such file")
    data = path.read_bytes()
    pixels = _decode(data, cv2.IMREAD_UNCHANGED)
    if pixels is not None and not (pixels.ndim == 3 and pixels.shape[2] == 4):
        # UNCHANGED ignores the orientation, and these flags drop the transparency
        pixels = _decode(data, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    if pixels is None:
        raise ImageError(f"{path} is not an image that OpenCV can read, or is damaged")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{path} has {pixels.dtype} pixels; only 8 and 16 bit integers are supported")
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    channels = pixels.shape[2]
    if channels not in (1, 3, 4):
        raise ImageError(f"{path} has {channels} channels; only grey, RGB and RGBA images are supported")
    # OpenCV decodes grey with transparency to BGRA; only the header tells.
    png_grey = data.startswith(_PNG_SIGNATURE) and data[25] in _PNG_GREY_TYPES
    colours = np.broadcast_to(pixels[:, :, :3][:, :, ::-1], (*pixels.shape[:2], 3))
    rgb = torch.from_numpy(colours.astype(np.float32)).permute(2, 0, 1)[None].contiguous()
    return Photo(
        rgb=rgb / np.iinfo(pixels.dtype).max,
        alpha=pixels[:, :, 3].copy() if channels == 4 else None,
        grey=channels == 1 or png_grey,
        dtype=pixels.dtype.type,
    )


def write_photo(path, photo):
    """Write `photo` as the kind of image it is, values below 0 and above 1 clamped.

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
    pixels = scaled.permute(1, 2, 0).numpy().astype(photo.dtype)[:, :, ::-1]
    if photo.alpha is not None:
        colours = np.broadcast_to(pixels, (*photo.alpha.shape, 3))
        pixels = np.concatenate([colours, photo.alpha[:, :, None]], axis=2)
    try:
        encoded, data = cv2.imencode(path.suffix.lower(), np.ascontiguousarray(pixels))
    except cv2.error as error:
        raise ImageError(f"{path} was not written: {error}") from error
    if not encoded:
        raise ImageError(f"{path} was not written: OpenCV cannot encode {pixels.shape} pixels as this format")
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ImageError(f"{path} was not written: {error}") from error


def check_format(path, photo):
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


def _decode(data, flags):
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # raised for an empty file; other damage gives None
        return None


def hidden(path):
    """Whether a name in a relative path begins with a dot.

    So do the `._x.jpg` that macOS puts beside x.jpg, and Jupyter's folders of copies.
    """
    return any(part.startswith(".") for part in Path(path).parts)


def photos_below(folder):
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


def matching_photos(inputs, targets):
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
