"""What a JPEG file says of how it was written, and what goes before its image."""

import struct
from collections.abc import Iterator

import numpy as np

from .kinds import Data

_LUMINANCE = 16, 11, 12, 14, 12, 10, 16, 14  # first steps of the table of ITU-T T.81, K.1, in zigzag order
_TABLES, _SCAN, _END = 0xDB, 0xDA, b"\xff\xd9"
_MILLIMETRES = {1: 25.4, 2: 10.0}  # an inch, a centimetre
_LONGEST = 65533  # bytes of a segment


def _segments(data: Data) -> Iterator[tuple[int, int, int]]:
    """(marker, where what it holds begins, where it ends) of a file up to its first scan."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, at + 4, at + 2 + length
        if marker == _SCAN:
            return
        at += 2 + length


def is_whole(data: Data) -> bool:
    """Whether the end of the image is there."""
    scans = [end for marker, _, end in _segments(data) if marker == _SCAN]
    return bool(scans) and data.find(_END, scans[0]) >= 0


def quality(data: Data) -> int | None:
    """1 to 100 as libjpeg means it: which makes a table most like that of the brightness; None without."""
    for marker, begin, end in _segments(data):
        if marker == _TABLES and data[begin] & 15 == 0:
            steps = data[begin + 1 : min(end, begin + 1 + 64 * (1 + (data[begin] >> 4)))]
            table = np.frombuffer(bytes(steps), ">u2" if data[begin] >> 4 else "u1")[: len(_LUMINANCE)]
            qualities = np.arange(1, 101)
            scale = np.where(qualities < 50, 5000 // qualities, 200 - 2 * qualities)
            tables = ((np.outer(scale, _LUMINANCE) + 50) // 100).clip(1, 255)
            # Of those that are equal the middle: from 98 on they hardly differ.
            away = np.abs(tables - table.astype(int)).sum(1)
            best = qualities[away == away.min()]
            return int(best[len(best) // 2])
    return None


def dots(data: Data) -> tuple[float, float] | None:
    """Pixels a millimetre, across and down, as JFIF says; None where it does not."""
    for marker, begin, end in _segments(data):
        if marker == 0xE0 and bytes(data[begin : begin + 5]) == b"JFIF\0" and end - begin >= 12:
            unit, across, down = struct.unpack(">BHH", bytes(data[begin + 7 : begin + 12]))
            if unit in _MILLIMETRES and across and down:
                return across / _MILLIMETRES[unit], down / _MILLIMETRES[unit]
    return None


def head(exif: bytes | None, dpmm: tuple[float, float] | None) -> bytes:
    """The segments that go before all others: JFIF with its dots, and EXIF where it is not too long."""
    written = b""
    if dpmm is not None:
        across, down = (min(65535, max(1, round(10 * d))) for d in dpmm)  # a centimetre
        inches = [round(25.4 * d, 3) for d in dpmm]
        unit = 2
        if all(value == round(value) and value < 65536 for value in inches):
            unit, across, down = 1, int(inches[0]), int(inches[1])
        written += b"\xff\xe0" + struct.pack(">H5sHBHHBB", 16, b"JFIF\0", 0x0101, unit, across, down, 0, 0)
    if exif:
        segment = b"Exif\0\0" + exif
        if len(segment) <= _LONGEST:
            written += b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    return written
