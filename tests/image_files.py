"""Image files of every kind, made byte by byte where no library writes them, and what is read of them."""

import io
import struct
import zlib

import cv2
import numpy as np
import tifffile
from PIL import Image

from mirnet_fast.images import read_photo


def random_pixels(dtype, *shape):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def read(path):
    """The pixels of a file; of a TIFF as they stand in it, which OpenCV multiplies by transparency."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    pixels = tifffile.imread(path)
    return pixels if pixels.ndim == 2 else pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]


def png(pixels, colour_type, chunks=(), depth=None, width=None):
    """A PNG of any colour type and chunks; OpenCV writes no grey with transparency."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, across = pixels.shape[:2]
    depth = depth or 8 * pixels.dtype.itemsize
    header = struct.pack(">IIBBBBB", width or across, height, depth, colour_type, 0, 0, 0)
    rows = pixels.astype(pixels.dtype.newbyteorder(">"))
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    more = b"".join(chunk(kind, value) for kind, value in chunks)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def oriented(orientation):
    """EXIF data that has nothing but an orientation."""
    tag = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"MM\0*" + struct.pack(">IH", 8, 1) + tag + bytes(4)


def jpeg_with_orientation(pixels, orientation):
    _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 100])
    exif = b"Exif\0\0" + oriented(orientation)
    return jpeg.tobytes()[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg.tobytes()[2:]


def tiff(pixels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def pillow(pixels, *arguments, mode=None, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, *arguments, **options)
    return file.getvalue()


def pages(*written):
    """A TIFF of several images, each (pixels, options)."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for pixels, options in written:
            writer.write(pixels, **options)
    return file.getvalue()


def read_bytes(tmp_path, data):
    (tmp_path / "in").write_bytes(data)
    return read_photo(tmp_path / "in")


def channels_of(photo):
    """A Photo's own pixels, (H, W, 1 to 4)."""
    pixels = (photo.rgb[0].permute(1, 2, 0).double().numpy() * np.iinfo(photo.dtype).max).round()
    pixels = pixels[:, :, : 1 if photo.grey else 3].astype(photo.dtype)
    return pixels if photo.alpha is None else np.concatenate([pixels, photo.alpha[:, :, None]], 2)
