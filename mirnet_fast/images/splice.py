"""What libvips would not leave as it is: EXIF and XMP of PNG files, EXIF of WebP ones, the dots of a PNG."""

import struct
import zlib
from typing import BinaryIO

from .kinds import Data

PNG_HEAD = 33  # bytes, after which chunks may follow
_ALPHA, _EXIF = 0x10, 0x08  # of WebP's flags


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_head(exif: bytes | None, xmp: bytes | None) -> bytes:
    """The chunks of a PNG that have an EXIF block and XMP, which libvips would not mark as UTF-8."""
    chunks = _chunk(b"eXIf", exif) if exif else b""
    return chunks + (_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) if xmp else b"")


def png_chunk_at(data: Data, kind: bytes) -> int:
    """Where the name of a chunk before the pixels stands in a PNG; -1 without."""
    at = 8
    while at + 8 <= len(data) and (name := bytes(data[at + 4 : at + 8])) != b"IDAT":
        if name == kind:
            return at + 4
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return -1


def png_dots(data: Data) -> tuple[float, float] | None:
    """Pixels a millimetre, across and down, as a PNG says; None where it does not."""
    at = png_chunk_at(data, b"pHYs")
    if at < 0 or data[at + 12 : at + 13] != b"\1":  # a metre
        return None
    across, down = struct.unpack(">II", data[at + 4 : at + 12])
    return (across / 1000, down / 1000) if across and down else None


def into_webp(file: BinaryIO, exif: bytes, width: int, height: int, alpha: bool) -> None:
    """Add a block to a WebP of that size, open for reading and writing (Google's "WebP container")."""
    file.seek(0)
    head = file.read(12)
    if file.read(4) == b"VP8X":
        file.seek(20)
        flags = file.read(1)[0]
        file.seek(20)
        file.write(bytes([flags | _EXIF]))
    else:
        file.seek(12)
        image = file.read()
        flags = _EXIF | (_ALPHA if alpha else 0)
        size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        file.seek(12)
        file.write(b"VP8X" + struct.pack("<IBxxx", 10, flags) + size + image)
    end = file.seek(0, 2)
    file.write(b"EXIF" + struct.pack("<I", len(exif)) + exif + b"\0" * (len(exif) % 2))
    file.seek(0)
    length = end + 8 + len(exif) + len(exif) % 2 - 8
    file.write(head[:4] + struct.pack("<I", length) + head[8:])
