"""Photoshop's resources, among which IPTC's texts are: where JPEG and TIFF files have them.

A JPEG has them in a segment of its own, a TIFF in a tag, and IPTC's in another tag too. Source: Adobe
Photoshop File Formats Specification, "Image Resource Blocks".
"""

import struct
from collections.abc import Iterable

from . import exif
from .kinds import Data

_HEAD = b"Photoshop 3.0\0"
_IPTC, _THUMBNAILS = 0x0404, (0x0409, 0x040C)
_TAG, _TAG_OF_IPTC = 0x8649, 0x83BB
_BYTES, _UNDEFINED = 1, 7


def of_jpeg(data: bytes | None) -> bytes | None:
    """The resources in libvips's iptc-data of a JPEG, but thumbnails, which would be old; None without."""
    if not data or not data.startswith(_HEAD):
        return None
    return _written((kind, value) for kind, value in _read(data[len(_HEAD) :])) or None


def of_tiff(data: Data, at: int) -> bytes | None:
    """Those of a TIFF's directory; None without, or where it is damaged."""
    try:
        entries, _ = exif.Layout(data).directory(data, at)
    except (ValueError, KeyError):
        return None
    found = {entry.tag: entry.values for entry in entries if isinstance(entry.values, bytes)}
    resources = dict(_read(found.get(_TAG, b"")))
    if _TAG_OF_IPTC in found:
        resources[_IPTC] = found[_TAG_OF_IPTC]
    return _written(resources.items()) or None


def for_jpeg(resources: bytes) -> bytes:
    return _HEAD + resources


def for_tiff(resources: bytes) -> list[exif.Entry]:
    """Entries of a TIFF's directory."""
    found = dict(_read(resources))
    iptc = found.pop(_IPTC, None)
    others = _written(found.items())
    entries = [exif.Entry(_TAG, _BYTES, len(others), others, 0)] if others else []
    if iptc is not None:
        entries.append(exif.Entry(_TAG_OF_IPTC, _UNDEFINED, len(iptc), iptc, 0))
    return entries


def _read(data: bytes) -> list[tuple[int, bytes]]:
    """[(number, value)] up to the first that is damaged."""
    found, at = [], 0
    while data[at : at + 4] == b"8BIM" and at + 12 <= len(data):
        (number,) = struct.unpack_from(">H", data, at + 4)
        at += 6 + (data[at + 6] + 2) // 2 * 2  # a name
        if at + 4 > len(data):
            break
        (length,) = struct.unpack_from(">I", data, at)
        value = data[at + 4 : at + 4 + length]
        if len(value) < length:
            break
        found.append((number, value))
        at += 4 + length + length % 2
    return found


def _written(resources: Iterable[tuple[int, bytes]]) -> bytes:
    return b"".join(
        b"8BIM" + struct.pack(">HHI", number, 0, len(value)) + value + b"\0" * (len(value) % 2)
        for number, value in resources
        if number not in _THUMBNAILS
    )
