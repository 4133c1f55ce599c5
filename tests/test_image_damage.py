"""Damaged files and such that are too large: refused, or salvaged as far as they go and named."""

import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from mirnet_fast.images import ImageError, Limits, Pages, Photo, read_photo, write_photo

from .image_files import png, random_pixels, tiff

SMOOTH = cv2.resize(random_pixels(np.uint8, 5, 6, 3), (160, 120))
PHOTO = Photo(torch.from_numpy(SMOOTH / 255).float().permute(2, 0, 1)[None])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".gif", ".bmp", ".ppm"])
def test_salvage_gives_what_is_there(tmp_path, suffix):
    path = tmp_path / f"in{suffix}"
    if suffix == ".tif":  # with its directory before the pixels, as libvips doesn't write it
        path.write_bytes(tiff(SMOOTH, photometric="rgb", rowsperstrip=8))
    else:
        write_photo(path, PHOTO)
    whole = read_photo(path, salvage=True)
    assert whole.damage is None
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(ImageError, match="damaged"):
        read_photo(path)
    part = read_photo(path, salvage=True)
    assert part.damage and part.rgb.shape == whole.rgb.shape
    right = ((part.rgb - whole.rgb).abs().amax((0, 1, 3)) < 0.1).tolist()
    rows = right.count(True)
    top_or_bottom = right if right[0] else right[::-1]  # a BMP begins at the bottom
    assert 20 <= rows < 120 and all(top_or_bottom[: rows // 2])
    write_photo(tmp_path / f"out{suffix}", part)


@pytest.mark.parametrize("suffix", [".webp", ".avif", ".jp2"])
def test_what_has_nothing_to_salvage(tmp_path, suffix):
    path = tmp_path / f"in{suffix}"
    write_photo(path, PHOTO)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(ImageError, match="damaged"):
        read_photo(path, salvage=True)


def test_salvage_of_no_image(tmp_path):
    for data in (b"", b"P6\n", b"BM", b"\xff\xd8\xff", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"II*\0" + bytes(9)):
        (tmp_path / "in").write_bytes(data)
        with pytest.raises(ImageError, match="damaged"):
            read_photo(tmp_path / "in", salvage=True)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".gif", ".webp", ".avif", ".bmp", ".ppm", ".jp2"])
def test_too_many_pixels(tmp_path, suffix):
    write_photo(tmp_path / f"in{suffix}", PHOTO)
    match = rf"in{suffix} is too large: 160 x 120 are 19,200 pixels, and the limit is 19,199; Limits\(pixels="
    with pytest.raises(ImageError, match=match):
        read_photo(tmp_path / f"in{suffix}", limits=Limits(pixels=19_199))
    assert read_photo(tmp_path / f"in{suffix}", limits=Limits(pixels=19_200)).width == 160


def test_too_many_bytes(tmp_path):
    write_photo(tmp_path / "in.png", PHOTO)
    size = (tmp_path / "in.png").stat().st_size
    with pytest.raises(ImageError, match=rf"is too large: {size:,} bytes, .* {size - 1:,}; Limits\(bytes="):
        read_photo(tmp_path / "in.png", limits=Limits(bytes=size - 1))
    assert read_photo(tmp_path / "in.png", limits=Limits(bytes=size)).width == 160


def test_frames_count_together(tmp_path):
    frames = [Image.fromarray(np.roll(SMOOTH, i, 1)) for i in range(3)]
    frames[0].save(tmp_path / "in", "WEBP", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match=r"in is too large: 160 x 360 are 57,600 pixels"):
        Pages(tmp_path / "in", limits=Limits(pixels=50_000))


def test_bomb(tmp_path):
    """A few bytes that say they are 60,000 x 60,000 pixels are refused before any room is made for them."""
    data = bytearray(png(SMOOTH, 2))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    (tmp_path / "in.png").write_bytes(data)
    with pytest.raises(
        ImageError, match=r"60000 x 60000 are 3,600,000,000 pixels, and the limit is 1,073,741,824"
    ):
        read_photo(tmp_path / "in.png")
