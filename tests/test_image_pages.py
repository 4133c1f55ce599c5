"""Pages, frames and rows: read and written in pieces, and other formats than those of every day."""

import base64
import dataclasses
import io
import os
import re
import sys
import zlib

import cv2
import numpy as np
import pytest
import pyvips
import tifffile
import torch
from PIL import Image, ImageCms

from mirnet_fast.images import ImageError, Pages, Photo, PhotoWriter, limits, read_photo, write_photo

from .cases import each, first_of
from .image_files import (
    channels_of,
    jpeg_with_orientation,
    oriented,
    pages,
    pillow,
    random_pixels,
    read_bytes,
)

SMOOTH = cv2.resize(random_pixels(np.uint8, 5, 6, 3), (60, 40))
MUTED = 96 + SMOOTH // 4  # as ink can show it
FRAMES = [np.roll(SMOOTH, 7 * i, 1) for i in range(4)]
DURATIONS = [50, 60, 70, 80]


def copied(source, target, rows=16):
    """`target` written in pieces of a few rows, the last ones first."""
    with Pages(source) as images, PhotoWriter(target, images[0], len(images)) as writer:
        for number, page in enumerate(images):
            for top in reversed(range(0, page.height, rows)):
                bottom = min(top + rows, page.height)
                writer.put(top, page.rows(top, bottom), page.alpha(top, bottom), number)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_every_frame_and_page_is_kept(tmp_path, kind):
    rest = [Image.fromarray(frame) for frame in FRAMES[1:]]
    timing = {} if kind == "TIFF" else {"duration": DURATIONS, "loop": 3}
    options = {"lossless": True} if kind == "WEBP" else {}
    data = pillow(FRAMES[0], kind, save_all=True, append_images=rest, **timing, **options)
    before, after = tmp_path / f"in.{kind.lower()}", tmp_path / f"out.{kind.lower()}"
    before.write_bytes(data)
    copied(before, after)
    with Image.open(before) as one, Image.open(after) as other:
        assert other.n_frames == 4 and other.info.get("loop") == one.info.get("loop")
        for number in range(4):
            one.seek(number), other.seek(number)
            assert np.array_equal(one.convert("RGB"), other.convert("RGB"))
            assert other.info.get("duration") == (DURATIONS[number] if timing else None)


def test_frames_are_turned_each(tmp_path):
    exif = b"Exif\0\0" + oriented(6)
    rest = [Image.fromarray(frame) for frame in FRAMES[1:]]
    data = pillow(FRAMES[0], "WEBP", save_all=True, append_images=rest, lossless=True, exif=exif)
    (tmp_path / "in.webp").write_bytes(data)
    copied(tmp_path / "in.webp", tmp_path / "out.webp")
    with Pages(tmp_path / "out.webp") as images:
        for frame, page in zip(FRAMES, images, strict=True):
            assert np.array_equal(page.pixels, np.rot90(frame, -1))


def test_pages_of_several_sizes(tmp_path):
    small = SMOOTH[:20]
    thumbnail = {"photometric": "rgb", "subfiletype": 1}
    data = pages(
        (SMOOTH, {"photometric": "rgb"}), (SMOOTH[::2, ::2], thumbnail), (small, {"photometric": "rgb"})
    )
    (tmp_path / "in.tif").write_bytes(data)
    with Pages(tmp_path / "in.tif") as images:
        assert len(images) == 2
        assert np.array_equal(images[1].pixels, small) and np.array_equal(images[0].pixels, SMOOTH)
        with pytest.raises(IndexError, match="has 2 images; asked for number 2"):
            images[2]
    with pytest.raises(ImageError, match=r"in\.tif holds more than one image; only single images"):
        read_photo(tmp_path / "in.tif")


def test_an_animation_fits_not_everywhere(tmp_path):
    with pytest.raises(ImageError, match=r"\.png cannot hold 2 pages or frames; use \.tiff, \.webp or \.gif"):
        PhotoWriter(tmp_path / "out.png", Photo(torch.zeros(1, 3, 4, 4)), 2)


@pytest.mark.parametrize("orientation", first_of([6, 1, 2, 3, 4, 5, 7, 8]))
def test_large_ones_lie_in_files(tmp_path, orientation, monkeypatch):
    monkeypatch.setattr(limits, "IN_MEMORY", 1000)
    (tmp_path / "in.jpg").write_bytes(jpeg_with_orientation(SMOOTH, orientation))
    whole = read_photo(tmp_path / "in.jpg")
    with Pages(tmp_path / "in.jpg") as images:
        page = images[0]
        base = page.pixels
        while isinstance(base.base, np.ndarray):
            base = base.base
        assert isinstance(base, np.memmap)
        assert torch.equal(torch.cat([page.rows(t, t + 4) for t in range(0, page.height, 4)], 2), whole.rgb)
    copied(tmp_path / "in.jpg", tmp_path / "out.png")
    assert sorted(os.listdir(tmp_path)) == ["in.jpg", "out.png"]
    assert torch.equal(read_photo(tmp_path / "out.png").rgb, whole.rgb)


def test_no_room_for_the_rows(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(limits, "IN_MEMORY", 1000)
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(ImageError, match=r"out\.png was not written: No space left on device"):
        PhotoWriter(tmp_path / "out.png", Photo(torch.zeros(1, 3, 40, 40)))
    assert os.listdir(tmp_path) == []


def test_an_error_meanwhile_leaves_what_was_there(tmp_path):
    photo = Photo(torch.zeros(1, 3, 4, 4))
    write_photo(tmp_path / "out.png", photo)
    before = (tmp_path / "out.png").read_bytes()
    with pytest.raises(KeyError), PhotoWriter(tmp_path / "out.png", photo) as writer:
        writer.put(0, photo.rgb + 1)
        raise KeyError
    assert (tmp_path / "out.png").read_bytes() == before and os.listdir(tmp_path) == ["out.png"]


def test_rows_that_do_not_fit(tmp_path):
    photo = Photo(torch.zeros(1, 3, 4, 4), np.zeros((4, 4), np.uint8))
    for arguments, match in [
        ((1, photo.rgb, photo.alpha), r"rgb must be \(1, 3, rows, 4\), rows 1 on of 4; got \(1, 3, 4, 4\)"),
        ((0, photo.rgb[..., :1], photo.alpha), r"got \(1, 3, 4, 1\)"),
        ((0, photo.rgb[0], photo.alpha), r"got \(3, 4, 4\)"),
        ((0, photo.rgb), r"alpha must be \(4, 4\); got None"),
        ((0, photo.rgb, photo.alpha, 1), "page must be below 1; got 1"),
    ]:
        with pytest.raises(ValueError, match=match), PhotoWriter(tmp_path / "out.png", photo) as writer:
            writer.put(*arguments)
    with (
        pytest.raises(ImageError, match=r"out\.png was not written: 3 of 4 rows are missing"),
        PhotoWriter(tmp_path / "out.png", photo) as writer,
    ):
        writer.put(1, photo.rgb[:, :, :1], photo.alpha[:1])
    assert os.listdir(tmp_path) == []


def cmyk(path, profile=True):
    """A photo in CMYK, with the profile that libvips has, or without."""
    image = pyvips.Image.new_from_memory(MUTED.tobytes(), 60, 40, 3, "uchar").copy(interpretation="srgb")
    image = image.icc_transform("cmyk", input_profile="srgb", black_point_compensation=True).copy()
    if not profile:
        image.remove("icc-profile-data")
    image.write_to_file(str(path), **({"Q": 100} if path.suffix == ".jpg" else {}))


@each(profile=[True, False], suffix=[".jpg", ".tif"])
def test_cmyk_goes_through_its_profile_and_back(tmp_path, suffix, profile):
    cmyk(tmp_path / f"in{suffix}", profile)
    photo = read_photo(tmp_path / f"in{suffix}")
    assert photo.dtype == np.uint8 and photo.origin.cmyk and not photo.grey
    assert np.abs(photo.rgb[0].permute(1, 2, 0).numpy() * 255 - MUTED).mean() < 3
    write_photo(tmp_path / f"out{suffix}", photo)
    with Image.open(tmp_path / f"in{suffix}") as one, Image.open(tmp_path / f"out{suffix}") as other:
        assert other.mode == one.mode == "CMYK"
        assert other.info.get("icc_profile") == one.info.get("icc_profile")
        assert (other.info.get("icc_profile") is not None) == profile
        if profile:
            ours = ImageCms.profileToProfile(
                one,
                ImageCms.ImageCmsProfile(io.BytesIO(one.info["icc_profile"])),
                ImageCms.createProfile("sRGB"),
                ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode="RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
            assert np.abs(photo.rgb[0].permute(1, 2, 0).numpy() * 255 - np.asarray(ours)).max() < 2
    again = read_photo(tmp_path / f"out{suffix}")
    assert (again.rgb - photo.rgb).abs().mean() < 0.01
    write_photo(tmp_path / "out.png", photo)  # which has no CMYK
    with Image.open(tmp_path / "out.png") as other:
        assert other.mode == "RGB" and "icc_profile" not in other.info


@pytest.mark.parametrize(
    ("suffix", "error"), [(".gif", 0), (".avif", 0.02), (".ppm", 0), (".bmp", 0), (".jp2", 0)]
)
def test_other_formats(tmp_path, suffix, error):
    few = SMOOTH // 64 * 85 if suffix == ".gif" else SMOOTH  # GIF has only 256 colours
    Image.fromarray(few).save(tmp_path / f"in{suffix}", **({"quality": 100} if suffix == ".avif" else {}))
    photo = read_photo(tmp_path / f"in{suffix}")
    assert np.abs(photo.rgb[0].permute(1, 2, 0).numpy() - few / 255).mean() <= max(error, 1e-6)
    write_photo(tmp_path / f"out{suffix}", photo)
    other = np.asarray(Image.open(tmp_path / f"out{suffix}").convert("RGB"))
    assert np.abs(other / 255 - few / 255).mean() <= max(2 * error, 1e-6)


@pytest.mark.parametrize("suffix", [".ppm", ".jp2", ".pgm"])
def test_16_bits_of_other_formats(tmp_path, suffix):
    pixels = random_pixels(np.uint16, 40, 50, 1 if suffix == ".pgm" else 3)
    cv2.imwrite(str(tmp_path / f"in{suffix}"), pixels, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])
    photo = read_photo(tmp_path / f"in{suffix}")
    assert photo.dtype == np.uint16 and photo.grey == (suffix == ".pgm")
    write_photo(tmp_path / f"out{suffix}", photo)
    written = cv2.imread(str(tmp_path / f"out{suffix}"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(written.reshape(pixels.shape), pixels)


def test_avif_keeps_its_bits(tmp_path):
    image = pyvips.Image.new_from_memory((SMOOTH.astype(np.uint16) * 257).tobytes(), 60, 40, 3, "ushort")
    image.copy(interpretation="rgb16").heifsave(
        str(tmp_path / "in.avif"), compression="av1", bitdepth=10, Q=95
    )
    photo = read_photo(tmp_path / "in.avif")
    assert photo.dtype == np.uint16 and photo.origin.bits == 10
    assert np.abs(photo.rgb[0].permute(1, 2, 0).numpy() - SMOOTH / 255).max() < 0.05
    write_photo(tmp_path / "out.avif", photo)
    assert read_photo(tmp_path / "out.avif").origin.bits == 10


def dng(path, orientation=1):
    """A raw file of a camera of ours, whose sensor saw the green of `SMOOTH` in all colours."""
    mosaic = SMOOTH[:, :, 1].astype(np.uint16) * 200
    unit = tuple(number for one in np.eye(3, dtype=int).ravel().tolist() for number in (one, 1))
    tags = [
        (33421, "H", 2, (2, 2), True), (33422, "B", 4, bytes([0, 1, 1, 2]), True),
        (50706, "B", 4, bytes([1, 4, 0, 0]), True), (50708, "s", 0, "Foo Bar", True),
        (50721, "2i", 9, unit, True), (50728, "2I", 3, (1,) * 6, True), (50717, "I", 1, 51000, True),
        (50778, "H", 1, 21, True), (271, "s", 0, "Foo", True), (274, "H", 1, orientation, True),
    ]  # fmt: skip
    tifffile.imwrite(path, mosaic, photometric="cfa", extratags=tags, metadata=None, software=False)


def test_raw_file_of_a_camera(tmp_path):
    pytest.importorskip("rawpy", reason="rawpy develops raw files; it is not there")
    dng(tmp_path / "in.dng")
    upright = read_photo(tmp_path / "in.dng")
    assert upright.dtype == np.uint16 and upright.rgb.shape == (1, 3, 40, 60)
    developed, seen = upright.rgb[0, 1].numpy() ** 2.2, SMOOTH[:, :, 1]
    assert np.corrcoef(developed.ravel(), seen.ravel())[0, 1] > 0.99
    dng(tmp_path / "turned.dng", 6)
    turned = read_photo(tmp_path / "turned.dng")
    assert torch.equal(turned.rgb, upright.rgb.rot90(-1, (2, 3)))
    write_photo(tmp_path / "out.tif", turned)
    with Image.open(tmp_path / "out.tif") as image:
        assert image.tag_v2[271] == "Foo" and image.tag_v2.get(274, 1) == 1
    (tmp_path / "in.dng").write_bytes(b"no raw file" * 99)
    with pytest.raises(ImageError, match=r"in\.dng is not a raw file that can be read, or is damaged"):
        read_photo(tmp_path / "in.dng")


def test_raw_file_without_rawpy(tmp_path, monkeypatch):
    dng(tmp_path / "in.dng")
    monkeypatch.setitem(sys.modules, "rawpy", None)
    with pytest.raises(ImageError, match=r"needs rawpy .*pip install 'mirnet-fast\[raw\]'"):
        read_photo(tmp_path / "in.dng")


def test_no_thread_is_left_to_a_fork(tmp_path):
    """Workers of a DataLoader are forks, in which threads of libvips would be missing."""
    if not hasattr(os, "fork"):
        pytest.skip("there is no fork here")
    write_photo(tmp_path / "in.png", Photo(torch.rand(1, 3, 64, 64)))
    read_photo(tmp_path / "in.png")
    before = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
    for _ in range(3):
        read_photo(tmp_path / "in.png")
    assert not before or len(os.listdir("/proc/self/task")) <= before


def test_names_are_not_options_or_text(tmp_path):
    name = os.fsdecode(b"a[page=1]\n\xff.png")
    write_photo(tmp_path / name, Photo(torch.zeros(1, 3, 2, 2)))
    assert read_photo(tmp_path / name).rgb.shape == (1, 3, 2, 2)


# 16 x 16 pixels of (200, 100, 50), by libheif and x265
HEIC = (
    "eNpjYGCQSSupLMhIzUxmAILczDRDEDs3MzGNgYGxJje1JJEBAhQzUnKKoGyGgszkEgY0oJSZkw82xMWBgREIgYBxAYQGAlUgVs7MzEsD80Ci"
    "okBOKhOUl1GWbAhi8hVkluTClfzJLCgqANJ3MguS84F0KVCZMyMzSGgCWJHcB4Y/f3/8YGDgZ04A6pBwYORh/P8fpIAZpIIZhOR2MTkkAiU1"
    "nRgZ0WQWKDSyTnu1btazB4oLDjQwMPA0gIRbkoCq2VwYDxYf7ATaIZycn1OUl5xTARTlZWADKmEQySwuSIV6zAGKNZJzEkEOE4C6HUz/////"
    "ApBmgtEg8YLMikyQRmYODg4gJZFZkAsLY2CwsTYyMbO2ANm6uSmJoDBW1GBczyokzPPg164g6z7+/oZl/9NPNax5L/ZnwdQogYkfox0AqAhd"
    "7Q=="
)


def test_heic_is_read_or_the_missing_decoder_said(tmp_path):
    try:
        photo = read_bytes(tmp_path, zlib.decompress(base64.b64decode(HEIC)))
    except ImageError as error:  # as by the libvips of PyPI
        assert re.search(r"in cannot be read: this build of libvips has no decoder of it; ", str(error))
    else:
        assert np.abs(photo.rgb[0, :, 8, 8].numpy() * 255 - [200, 100, 50]).max() < 20
    with pytest.raises(ImageError, match="HEIC is only read"):
        write_photo(tmp_path / "out.heic", Photo(torch.zeros(1, 3, 16, 16)))


def test_alpha_goes_into_avif_and_gif(tmp_path):
    pixels = np.dstack([SMOOTH, np.where(SMOOTH[:, :, :1] > 100, 255, 0).astype(np.uint8)])
    photo = read_bytes(tmp_path, pillow(pixels, "PNG"))
    for suffix in (".avif", ".gif", ".bmp"):
        write_photo(tmp_path / f"out{suffix}", photo)
        again = read_photo(tmp_path / f"out{suffix}")
        assert np.abs(again.alpha.astype(int) - photo.alpha).mean() < 2
    assert channels_of(dataclasses.replace(photo, alpha=None)).shape == (40, 60, 3)
