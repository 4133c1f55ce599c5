"""EXIF blocks: made to fit a photo that was turned upright, and carried between TIFF files and others.

An EXIF block is a small TIFF file without an image (EXIF 2.3, TIFF 6.0): directories of entries, each a tag,
a type, a count, and the values or where they are. What is changed in a block is changed where it is, so
that makers' notes, which count from its begin, stay right.
"""

import contextlib
import struct
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

import numpy as np

from .kinds import Data

ORIENTATION = 0x0112
_EXIF, _GPS, _INTEROPERABILITY = 0x8769, 0x8825, 0xA005
_DIRECTORIES = (_EXIF, _GPS, _INTEROPERABILITY)
_WIDTHS, _HEIGHTS = (0x0100, 0xA002), (0x0101, 0xA003)  # of the photo, in the first directory and in EXIF's
_THUMBNAIL, _THUMBNAIL_LENGTH = 0x0201, 0x0202
# What the first directory of a TIFF file says of the photo, not of how its pixels are stored: texts, times,
# the camera, ratings, those of Windows, and the directories.
_OF_PHOTO = {
    0x010D, 0x010E, 0x010F, 0x0110, 0x011D, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x4749, 0x8298, 0x9C9B,
    0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F, _EXIF, _GPS,
}  # fmt: skip
_UNITS = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 4,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 4,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_RATIONAL = (5, 10)  # two units
_DEEPEST = 4
_MOST = 1000  # entries of a directory; more are damage


class Entry(NamedTuple):
    """An entry of a directory: `values` are its bytes in the file's order, or the entries of its directory.

    `at` is where the values are.
    """

    tag: int
    kind: int
    count: int
    values: "bytes | list[Entry]"
    at: int


class Layout:
    """How a TIFF file writes numbers: `data` begins with its header.

    Raises:
        ValueError: it is no such header.
    """

    def __init__(self, data: Data) -> None:
        start = bytes(data[:16])
        if start[:2] not in (b"II", b"MM"):
            raise ValueError("no TIFF")
        self.order = "<" if start[:2] == b"II" else ">"
        self.big = self.number("H", start[2:4]) == 43  # BigTIFF
        self.word, self.entries, self.slot = ("Q", "Q", 8) if self.big else ("I", "H", 4)
        self.pointer = 8 if self.big else 4  # where the header says where the first directory is
        self.first = self.number(self.word, start[self.pointer : self.pointer + self.slot])

    def number(self, letter: str, data: bytes) -> int:
        try:
            return struct.unpack(self.order + letter, data)[0]
        except struct.error as error:
            raise ValueError("ends too early") from error

    def pack(self, letters: str, *numbers: int) -> bytes:
        return struct.pack(self.order + letters, *numbers)

    def directory(self, data: Data, at: int, depth: int = 0) -> tuple[list[Entry], int]:
        """(entries, where the number is that says where the next directory is) of the directory at `at`.

        Raises:
            ValueError: it is damaged.
        """
        size = struct.calcsize("=" + self.entries)
        count = self.number(self.entries, bytes(data[at : at + size]))
        if count > _MOST or depth > _DEEPEST:
            raise ValueError("too many entries")
        entries, step = [], 4 + 2 * self.slot
        for place in range(at + size, at + size + count * step, step):
            raw = bytes(data[place : place + step])
            tag, kind = self.number("H", raw[:2]), self.number("H", raw[2:4])
            number = self.number(self.word, raw[4 : 4 + self.slot])
            length = number * _UNITS.get(kind, 1) * (2 if kind in _RATIONAL else 1)
            where = place + 4 + self.slot
            if length > self.slot:
                where = self.number(self.word, raw[4 + self.slot :])
            values = bytes(data[where : where + length])
            if len(values) != length:
                raise ValueError("ends too early")
            if tag in _DIRECTORIES and kind in (4, 13, 16, 18):
                values, _ = self.directory(data, self._offset(kind, values), depth + 1)
            entries.append(Entry(tag, kind, number, values, where))
        return entries, at + size + count * step

    def _offset(self, kind, values):
        return self.number({8: "Q", 4: "I"}[_UNITS[kind]], values[: _UNITS[kind]])

    def value(self, entry: Entry) -> int:
        """The first number of an entry of whole numbers."""
        size = _UNITS[entry.kind]
        values = entry.values
        return self.number({1: "B", 2: "H", 4: "I", 8: "Q"}[size], values[:size])  # pyrefly: ignore

    def set(self, data: bytearray, entry: Entry, number: int) -> None:
        letter = {1: "B", 2: "H", 4: "I", 8: "Q"}[_UNITS[entry.kind]]
        struct.pack_into(self.order + letter, data, entry.at, number)

    def written(self, entries: list[Entry], base: int, raw: dict[int, bytes] | None = None) -> bytes:
        """A directory that will lie at `base`, values behind it; `raw` are more entries, as they are."""
        raw = raw or {}
        total = len({entry.tag for entry in entries} | raw.keys())
        head = struct.calcsize("=" + self.entries) + total * (4 + 2 * self.slot) + self.slot
        behind, made = b"", {}
        for entry in entries:
            values, kind, count = entry.values, entry.kind, entry.count
            if isinstance(values, list):
                place = base + head + len(behind)
                behind += self.written(values, place)
                values, kind, count = self.pack(self.word, place), 16 if self.big else 4, 1
            elif len(values) > self.slot:
                place = base + head + len(behind)
                behind += values + b"\0" * (len(values) % 2)
                values = self.pack(self.word, place)
            made[entry.tag] = self.pack("HH" + self.word, entry.tag, kind, count) + values.ljust(
                self.slot, b"\0"
            )
        lines = [line for _, line in sorted({**raw, **made}.items())]
        return self.pack(self.entries, total) + b"".join(lines) + self.pack(self.word, 0) + behind


def block(data: bytes | None) -> bytes | None:
    """An EXIF block as libvips has it, without the word before it; None where there is none."""
    return None if not data else data.removeprefix(b"Exif\0\0") or None


def orientation(exif: bytes | None) -> int:
    """1 to 8; 1 where none is given, or the block is damaged."""
    with contextlib.suppress(ValueError, KeyError):
        exif = exif or b""
        layout = Layout(exif)
        found = [e for e in layout.directory(exif, layout.first)[0] if e.tag == ORIENTATION]
        if found and 1 <= layout.value(found[0]) <= 8:
            return layout.value(found[0])
    return 1


def upright(exif: bytes, width: int, height: int) -> bytes:
    """The block of a photo that was turned upright and has this size now."""
    data = bytearray(exif)
    with contextlib.suppress(ValueError, KeyError, struct.error):
        layout = Layout(data)
        entries, next_at = layout.directory(data, layout.first)
        following = _following(layout, data, next_at)
        inner = [e for entry in entries if entry.tag == _EXIF for e in _inner(entry)]
        for entry in (*entries, *inner, *following):
            if entry.tag == ORIENTATION:
                layout.set(data, entry, 1)
        for entry in (*entries, *inner):
            if entry.tag in _WIDTHS + _HEIGHTS:
                layout.set(data, entry, width if entry.tag in _WIDTHS else height)
    return bytes(data)


def with_thumbnail(exif: bytes, make: Callable[[bytes, int], bytes | None]) -> bytes:
    """The block with another thumbnail: `make` gets the old one, a JPEG, and how long the new may be.

    Without thumbnail where it makes none, or the old one was something else.
    """
    data = bytearray(exif)
    with contextlib.suppress(ValueError, KeyError, struct.error):
        layout = Layout(data)
        _, next_at = layout.directory(data, layout.first)
        following = {entry.tag: entry for entry in _following(layout, data, next_at)}
        if not following:
            return exif
        new = None
        if _THUMBNAIL in following and _THUMBNAIL_LENGTH in following:
            at, length = (layout.value(following[tag]) for tag in (_THUMBNAIL, _THUMBNAIL_LENGTH))
            length = min(length, len(data) - at)
            new = make(bytes(data[at : at + length]), length)
            data[at : at + length] = (new or b"").ljust(length, b"\0")
            layout.set(data, following[_THUMBNAIL_LENGTH], len(new or b""))
        if new is None:
            data[next_at : next_at + layout.slot] = bytes(layout.slot)
    return bytes(data)


def from_tiff(data: Data, at: int) -> bytes | None:
    """A block of what the directory at `at` of a TIFF file says of the photo; None where that is nothing."""
    with contextlib.suppress(ValueError, KeyError):
        layout = Layout(data)
        entries = [entry for entry in layout.directory(data, at)[0] if entry.tag in _OF_PHOTO]
        if entries:
            start = b"II*\0" if layout.order == "<" else b"MM\0*"
            small = Layout(start + struct.pack(layout.order + "I", 8))
            return start + small.pack("I", 8) + small.written(_small(entries, layout, small), 8)
    return None


def into_tiff(file: BinaryIO, exif: bytes | None, more: list[Entry]) -> None:
    """Give the first directory of a TIFF file, open for reading and writing, what a block says of the photo.

    And `more`, of whole bytes. A damaged block is left out.
    """
    entries, given = [], None
    with contextlib.suppress(ValueError, KeyError):
        exif = exif or b""
        given = Layout(exif)
        entries = [entry for entry in given.directory(exif, given.first)[0] if entry.tag in _OF_PHOTO]
    if not entries and not more:
        return
    file.seek(0)
    layout = Layout(file.read(16))
    file.seek(layout.first)
    size = struct.calcsize("=" + layout.entries)
    step = 4 + 2 * layout.slot
    count = layout.number(layout.entries, file.read(size))
    raw = [file.read(step) for _ in range(count)]
    following = file.read(layout.slot)
    end = file.seek(0, 2)
    end += file.write(b"\0" * (end % 2))
    if given and layout.order != given.order:
        entries = _swapped(entries)
    entries += more
    new = layout.written(entries, end, {layout.number("H", line[:2]): line for line in raw})
    place = size + len({layout.number("H", line[:2]) for line in raw} | {e.tag for e in entries}) * step
    file.write(new[:place] + following + new[place + layout.slot :])
    file.seek(layout.pointer)
    file.write(layout.pack(layout.word, end))


def _inner(entry):
    return entry.values if isinstance(entry.values, list) else []


def _following(layout, data, next_at):
    """The entries of the second directory, which is the thumbnail's; none if there is none."""
    at = layout.number(layout.word, bytes(data[next_at : next_at + layout.slot]))
    return layout.directory(data, at)[0] if at else []


def _swapped(entries):
    """The entries in the other order of bytes."""

    def turned(entry):
        if isinstance(entry.values, list):
            return entry._replace(values=_swapped(entry.values))
        unit = _UNITS.get(entry.kind, 1)
        return entry._replace(values=np.frombuffer(entry.values, f"u{unit}").byteswap().tobytes())

    return [turned(entry) for entry in entries]


def _small(entries, layout, small):
    """The entries without the types of eight bytes that only BigTIFF has."""
    if not layout.big:
        return entries
    made = []
    for entry in entries:
        if isinstance(entry.values, list):
            entry = entry._replace(values=_small(entry.values, layout, small))
        if entry.kind not in (16, 17, 18) or isinstance(entry.values, list):
            made.append(entry)
    return made
