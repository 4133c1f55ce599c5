"""Formats that the libvips of PyPI lacks: BMP, PPM and JPEG 2000 by OpenCV, cameras' raw files by rawpy."""

import struct
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from .kinds import ImageError
from .limits import Limits

RAW = {".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"}


def by_opencv(path: Path, file: BinaryIO, limits: Limits, salvage: bool) -> tuple[np.ndarray, bool]:
    """((H, W, channels) uint8 or uint16, whether its end was missing)."""
    data = file.read()
    width, height = _size(data)
    limits.check_pixels(path, width, height)
    pixels, short = _opencv(data), False
    if pixels is None and salvage and data[:1] != b"\0":
        pixels, short = _opencv(data + bytes(8 * width * height)), True
    if pixels is None:
        raise ImageError(
            f"{path} is not an image that can be read, or is damaged (OpenCV could not decode it)"
        )
    if pixels.dtype.type not in (np.uint8, np.uint16):
        raise ImageError(f"{path} has {pixels.dtype} pixels; only 8 and 16 bit integers are supported")
    if pixels.ndim == 2:
        return pixels[:, :, None], short
    return pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]], short


def encoded(path: Path, pixels: np.ndarray) -> bytes:
    """The file of the format of `path`'s suffix of pixels (H, W, channels), RGB if coloured.

    Raises:
        ImageError: OpenCV cannot write it.
    """
    if pixels.shape[2] > 1:
        pixels = pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]
    # For JPEG 2000: without loss.
    options = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000] if path.suffix.lower() == ".jp2" else []
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(0)
    try:
        done, data = cv2.imencode(path.suffix.lower(), np.ascontiguousarray(pixels), options)
    except cv2.error as error:
        raise ImageError(f"{path} was not written: {error}") from error
    finally:
        cv2.utils.logging.setLogLevel(level)
    if not done:
        size = f"{pixels.shape[1]} x {pixels.shape[0]}"
        hint = "; it wants 32 x 32 at least" if min(pixels.shape[:2]) < 32 else ""
        raise ImageError(f"{path} was not written: OpenCV cannot encode {size} pixels as this format{hint}")
    return data.tobytes()


def by_rawpy(path: Path, file: BinaryIO, limits: Limits) -> np.ndarray:
    """(H, W, 3) uint16 in sRGB, upright, of a camera's raw file: its white balance, no other change.

    Raises:
        ImageError: rawpy is not there, or the file is damaged or unknown.
    """
    try:
        import rawpy
    except ImportError as error:
        raise ImageError(
            f"{path} is a camera's raw file, which needs rawpy ({error}); try: pip install 'mirnet-fast[raw]'"
        ) from error
    try:
        with rawpy.imread(file) as raw:
            limits.check_pixels(path, raw.sizes.width, raw.sizes.height)
            return raw.postprocess(use_camera_wb=True, no_auto_bright=True, output_bps=16, gamma=(2.4, 12.92))
    except rawpy.LibRawError as error:
        said = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else error
        raise ImageError(f"{path} is not a raw file that can be read, or is damaged: {said}") from error


def _opencv(data):
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(0)
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    finally:
        cv2.utils.logging.setLogLevel(level)


def _size(data):
    """(width, height) as the file's header says."""
    if data[:2] == b"BM":
        return [abs(number) for number in struct.unpack_from("<ii", data, 18)]
    if data[:1] == b"P":
        words = b" ".join(line.partition(b"#")[0] for line in data[2:1000].splitlines()).split()
        return int(words[0]), int(words[1])
    at = data.find(b"ihdr", 0, 1000)
    if at >= 0:
        height, width = struct.unpack_from(">II", data, at + 4)
        return width, height
    return struct.unpack_from(">II", data, data.index(b"\xff\x51", 0, 1000) + 6)
