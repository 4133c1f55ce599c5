"""A folder of files as nobody wants them: which can be restored, and what is wrong with the others."""

import io
import os
import struct
import zlib

import cv2
import numpy as np
import tifffile
from PIL import Image

from ..image_files import pillow, png

TOO_LARGE = 2_000_000  # pixels, for `--limit-pixels`
CUTS = (0.02, 0.2, 0.4, 0.6, 0.8, 0.95)  # of a file's bytes, where it is cut off


def fill(folder, count=None, seed=0):
    """Write `count` files, or one of each kind, into the folder: ({good names}, {bad name: what is told}).

    Names are bytes.
    """
    maker, good, bad = _Maker(folder, seed), set(), {}
    while True:
        for make in (maker.good, maker.damaged, maker.odd):
            for name, data, wrong in make():
                maker.write(name, data)
                if wrong is None:
                    good.add(name)
                else:
                    bad[name] = wrong
                if len(good) + len(bad) == count:
                    return good, bad
        maker.round += 1
        if count is None:
            return good, bad


class _Maker:
    def __init__(self, folder, seed):
        self.folder, self.round = os.fsencode(folder), 0
        self.random = np.random.default_rng(seed)

    def write(self, name, data):
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if callable(data):
            data(path)
        else:
            with open(path, "wb") as file:
                file.write(data)

    def name(self, text):
        before, dot, after = text.rpartition(".")
        return os.fsencode(f"{before}{f'-{self.round}' if self.round else ''}{dot}{after}")

    def pixels(self, dtype=np.uint8, channels=3, height=24, width=30):
        small = self.random.integers(0, np.iinfo(dtype).max, (5, 6, channels), dtype, endpoint=True)
        return cv2.resize(small, (width, height)).reshape(height, width, channels)

    def good(self):
        """(name, bytes, None)."""
        deep, grey, clear = np.uint16, self.pixels(channels=1)[:, :, 0], self.pixels(channels=4)
        frames = [Image.fromarray(self.pixels()) for _ in range(3)]
        palette = Image.fromarray(self.pixels()).convert("P")
        moving = {}
        for kind in ("GIF", "WEBP"):
            moving[kind] = io.BytesIO()
            lossless = {"lossless": True} if kind == "WEBP" else {}
            frames[0].save(moving[kind], kind, save_all=True, append_images=frames[1:], **lossless)
        stack, transparent = io.BytesIO(), io.BytesIO()
        tifffile.imwrite(stack, np.stack([self.pixels() for _ in range(2)]), photometric="rgb")
        palette.save(transparent, "PNG", transparency=0)
        files = {
            "plain.jpg": pillow(self.pixels(), "JPEG"),
            "progressive.JPEG": pillow(self.pixels(), "JPEG", progressive=True),
            "cmyk.jpg": pillow(self.pixels(), "JPEG", mode="CMYK"),
            "grey.jpg": pillow(grey, "JPEG"),
            "plain.png": pillow(self.pixels(), "PNG"),
            "grey 16 bit.png": png(self.pixels(deep, 1), 0),
            "rgb 16 bit.png": png(self.pixels(deep), 2),
            "clear.png": pillow(clear, "PNG"),
            "palette.png": transparent.getvalue(),
            "one.png": pillow(self.pixels(height=1, width=1), "PNG"),
            "wide.png": pillow(self.pixels(height=1, width=5000), "PNG"),
            "tall.png": pillow(self.pixels(height=5000, width=1), "PNG"),
            "pages.tif": stack.getvalue(),
            "moving.gif": moving["GIF"].getvalue(),
            "moving.webp": moving["WEBP"].getvalue(),
            "still.webp": pillow(self.pixels(), "WEBP", lossless=True),
            "plain.bmp": cv2.imencode(".bmp", self.pixels())[1].tobytes(),
            "plain.ppm": cv2.imencode(".ppm", self.pixels())[1].tobytes(),
            "a jpeg.png": pillow(self.pixels(), "JPEG"),
            "a png.jpg": pillow(self.pixels(), "PNG"),
            "фото 🙂.png": pillow(self.pixels(), "PNG"),
            "new\nline\r\x1b[31m.png": pillow(self.pixels(), "PNG"),
            "-dash.png": pillow(self.pixels(), "PNG"),
            "--overwrite.png": pillow(self.pixels(), "PNG"),
            "[1]*?.png": pillow(self.pixels(), "PNG"),
            "[bold]%s{0}.png": pillow(self.pixels(), "PNG"),
            f"{'long' * 60}.png": pillow(self.pixels(), "PNG"),
            "folder.png/inside.png": pillow(self.pixels(), "PNG"),
            "folder.png/deeper/x.png": pillow(self.pixels(), "PNG"),
        }
        files["link.png"] = lambda path: os.symlink(b"plain.png", path)
        for text, data in files.items():
            yield self.name(text), data, None
        yield b"no utf-8 \xff%d.png" % self.round, pillow(self.pixels(), "PNG"), None

    def damaged(self):
        whole = {
            "jpg": pillow(self.pixels(), "JPEG"),
            "png": pillow(self.pixels(), "PNG"),
            "webp": pillow(self.pixels(), "WEBP"),
            "bmp": cv2.imencode(".bmp", self.pixels())[1].tobytes(),
        }
        for suffix, data in whole.items():
            for cut in CUTS:
                yield self.name(f"cut at {cut}.{suffix}"), data[: int(len(data) * cut)], "damaged"
        yield self.name("without its end.jpg"), whole["jpg"][:-2], "damaged"
        spoiled = bytearray(whole["png"])
        spoiled[len(spoiled) // 2] ^= 255
        yield self.name("spoiled.png"), bytes(spoiled), "damaged"

    def odd(self):
        yield self.name("nothing.jpg"), b"", "not an image"
        yield self.name("nothing.tif"), b"", "not an image"
        yield self.name("text.png"), b"not an image\n", "not an image"
        yield self.name("line\nin a bad one.png"), b"\n\n", "not an image"
        yield self.name("bomb.png"), _header_of(60_000, 60_000), "60000 x 60000 are 3,600,000,000 pixels"
        unpacked = png(np.zeros((2000, 2000), np.uint8), 0)
        yield self.name("small bomb.png"), unpacked, "2000 x 2000 are 4,000,000 pixels"
        yield (
            self.name("moving.png"),
            png(self.pixels(), 2, [(b"acTL", struct.pack(">II", 2, 0))]),
            "animation",
        )
        yield self.name("clear.jpg"), pillow(self.pixels(channels=4), "PNG"), ".jpg cannot hold transparency"
        yield self.name("unreadable.png"), self._unreadable, "Permission denied"
        yield self.name("pipe.png"), os.mkfifo, "no regular file"
        yield self.name("loop.png"), lambda path: os.symlink(os.path.basename(path), path), "leads nowhere"
        yield self.name("nowhere.png"), lambda path: os.symlink(b"nothing there", path), "leads nowhere"

    def _unreadable(self, path):
        with open(path, "wb") as file:
            file.write(pillow(self.pixels(), "PNG"))
        os.chmod(path, 0)


def _header_of(width, height):
    data = bytearray(png(np.zeros((1, 1, 3), np.uint8), 2))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)
