"""What a JPEG file says of how it was written, and what goes before its image."""

import functools
import struct
from collections.abc import Iterator

import numpy as np
import pyvips

from .kinds import Data

_FRAMES, _PROGRESSIVE = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}, (0xC2, 0xC6, 0xCA, 0xCE)
_ALONE = {0x00, 0x01, *range(0xD0, 0xDA)}  # markers without a length
_TABLES, _SCAN, _END = 0xDB, 0xDA, b"\xff\xd9"
_MILLIMETRES = {1: 25.4, 2: 10.0}  # an inch, a centimetre
LONGEST = 65000  # bytes of a segment, name apart


def _segments(data: Data) -> Iterator[tuple[int, int, int]]:
    """(marker, where what it holds begins, where it ends) of a file up to its first scan."""
    at = 2
    while at >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xFF:  # others skip what is between, too
            at = data.find(b"\xff", at + 1)
        elif marker in _ALONE:
            at += 2
        else:
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            yield marker, at + 4, at + 2 + length
            if marker == _SCAN:
                return
            at += 2 + length


def is_whole(data: Data) -> bool:
    """Whether the end of the image is there."""
    scans = [end for marker, _, end in _segments(data) if marker == _SCAN]
    return not scans or data.find(_END, scans[0]) >= 0  # without it libjpeg fails


def frame(data: Data) -> tuple[str | None, bool]:
    """(subsampling of colours, "4:2:0" or "4:4:4" for any that is finer; whether the file is progressive).

    No subsampling of a grey image, and of CMYK "4:4:4".
    """
    for marker, at, _ in _segments(data):
        if marker in _FRAMES:
            channels, factors = data[at + 5], [data[at + 7 + 3 * i] for i in range(data[at + 5])]
            coarse = factors[0] == 0x22 and set(factors[1:]) == {0x11}
            return ("4:2:0" if coarse else "4:4:4") if channels > 1 else None, marker in _PROGRESSIVE
    return None, False


def quality(data: Data) -> int | None:
    """1 to 100 as libjpeg means it: which makes tables most like those of the file; None without any."""
    found = _tables(data)
    if 0 not in found:
        return None
    qualities = np.arange(1, 101)
    scale = np.where(qualities < 50, 5000 // qualities, 200 - 2 * qualities)
    away = np.zeros(len(qualities), int)
    for number, standard in _standard().items():
        if number in found:
            tables = ((np.outer(scale, standard) + 50) // 100).clip(1, 255)
            away += np.abs(tables - found[number]).sum(1)
    return int(qualities[away.argmin()])


def _tables(data):
    """{number: (64,) ints} of the tables by which a file is quantised."""
    found = {}
    for marker, at, end in _segments(data):
        while marker == _TABLES and at < end:
            number, wide = data[at] & 15, data[at] >> 4
            steps = np.frombuffer(bytes(data[at + 1 : at + 1 + 64 * (1 + wide)]), ">u2" if wide else "u1")
            if len(steps) == 64:
                found[number] = steps.astype(int)
            at += 1 + 64 * (1 + wide)
    return found


@functools.cache
def _standard():
    """The tables of ITU-T T.81, K.1 and K.2, which quality 50 leaves as they are."""
    return _tables(pyvips.Image.black(8, 8, bands=3).copy(interpretation="srgb").jpegsave_buffer(Q=50))


def dots(data: Data) -> tuple[float, float] | None:
    """Pixels a millimetre, across and down, as JFIF says; None where it does not."""
    for marker, begin, end in _segments(data):
        if marker == 0xE0 and bytes(data[begin : begin + 5]) == b"JFIF\0" and end - begin >= 12:
            unit, across, down = struct.unpack(">BHH", bytes(data[begin + 7 : begin + 12]))
            if unit in _MILLIMETRES and across and down:
                return across / _MILLIMETRES[unit], down / _MILLIMETRES[unit]
    return None


def head(exif: bytes | None, dpmm: tuple[float, float] | None) -> bytes:
    """The segments that go before all others: JFIF with its dots, and EXIF of at most `LONGEST`."""
    written = b""
    if dpmm is not None:
        across, down = (min(65535, max(1, round(10 * d))) for d in dpmm)  # a centimetre
        inches = [round(25.4 * d, 3) for d in dpmm]
        unit = 2
        if all(value == round(value) and value < 65536 for value in inches):
            unit, across, down = 1, int(inches[0]), int(inches[1])
        written += b"\xff\xe0" + struct.pack(">H5sHBHHBB", 16, b"JFIF\0", 0x0101, unit, across, down, 0, 0)
    if exif:
        written += b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif
    return written
