"""Image files: every kind keeps its kind and its values; what cannot be read or written is told."""

import os
import resource
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mirnet_fast.images import FORMATS, ImageError, Photo, read_photo, write_photo

from .image_files import png, random_pixels, read


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("dtype", "suffix"),
    [
        (np.uint8, ".png"),
        (np.uint8, ".tiff"),
        (np.uint8, ".bmp"),
        (np.uint8, ".PNG"),
        (np.uint16, ".png"),
        (np.uint16, ".tif"),
    ],
)
def test_round_trip(tmp_path, dtype, suffix, channels):
    pixels = random_pixels(dtype, 7, 5, channels)
    assert cv2.imwrite(str(tmp_path / f"in{suffix}"), pixels)
    photo = read_photo(tmp_path / f"in{suffix}")
    assert photo.rgb.shape == (1, 3, 7, 5) and photo.rgb.dtype == torch.float32
    assert photo.dtype == dtype and photo.grey == (channels == 1)
    assert (photo.alpha is not None) == (channels == 4)
    write_photo(tmp_path / f"out{suffix}", photo)
    written = read(tmp_path / f"out{suffix}")
    assert written.dtype == dtype
    assert np.array_equal(written.reshape(pixels.shape), pixels)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_webp(tmp_path, channels):
    pixels = random_pixels(np.uint8, 7, 5, channels)
    if channels == 4:
        pixels[:, :, 3] |= 1  # WebP forgets the colour of what is wholly transparent
    cv2.imwrite(str(tmp_path / "in.png"), pixels)
    write_photo(tmp_path / "out.webp", read_photo(tmp_path / "in.png"))
    written = cv2.imread(str(tmp_path / "out.webp"), cv2.IMREAD_UNCHANGED)
    expected = np.repeat(pixels, 3, axis=2) if channels == 1 else pixels
    assert np.array_equal(written, expected)


def test_values_and_channel_order(tmp_path):
    pixels = np.zeros((1, 2, 3), np.uint16)
    pixels[0, 0] = [0, 13107, 65535]  # blue, green, red
    cv2.imwrite(str(tmp_path / "in.png"), pixels)
    rgb = read_photo(tmp_path / "in.png").rgb
    torch.testing.assert_close(rgb[0, :, 0, 0], torch.tensor([1, 0.2, 0]))
    assert rgb[0, :, 0, 1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_with_transparency(tmp_path, dtype):
    pixels = random_pixels(dtype, 4, 6, 2)
    (tmp_path / "in.png").write_bytes(png(pixels, colour_type=4))
    photo = read_photo(tmp_path / "in.png")
    assert photo.grey and np.array_equal(photo.alpha, pixels[:, :, 1])
    coloured = photo.rgb + torch.tensor([0.1, 0, -0.1]).view(1, 3, 1, 1)
    write_photo(tmp_path / "out.png", Photo(coloured, photo.alpha, photo.grey, photo.dtype))
    written = cv2.imread(str(tmp_path / "out.png"), cv2.IMREAD_UNCHANGED)
    for channel in range(3):
        assert np.abs(written[:, :, channel].astype(int) - pixels[:, :, 0]).max() <= 1
    assert np.array_equal(written[:, :, 3], pixels[:, :, 1])


def test_colour_with_grey_content_stays_colour(tmp_path):
    pixels = np.repeat(random_pixels(np.uint8, 4, 4, 1), 3, axis=2)
    cv2.imwrite(str(tmp_path / "in.png"), pixels)
    assert not read_photo(tmp_path / "in.png").grey


def test_palette(tmp_path):
    indices = np.array([[0, 1], [2, 0]], np.uint8)
    palette = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255])
    (tmp_path / "in.png").write_bytes(png(indices, 3, [(b"PLTE", palette)]))
    photo = read_photo(tmp_path / "in.png")
    assert not photo.grey
    assert photo.rgb[0, :, 0, 0].tolist() == [1, 0, 0]
    assert photo.rgb[0, :, 1, 0].tolist() == [0, 0, 1]


def test_grey_goes_into_all_channels_of_a_format_without_grey(tmp_path):
    pixels = random_pixels(np.uint8, 8, 9, 1)[:, :, 0]
    cv2.imwrite(str(tmp_path / "in.png"), pixels)
    write_photo(tmp_path / "out.ppm", read_photo(tmp_path / "in.png"))
    written = cv2.imread(str(tmp_path / "out.ppm"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(written, np.repeat(pixels[:, :, None], 3, 2))


def test_grey_jpeg(tmp_path):
    cv2.imwrite(str(tmp_path / "in.jpg"), np.full((8, 8), 77, np.uint8))
    photo = read_photo(tmp_path / "in.jpg")
    assert photo.grey
    write_photo(tmp_path / "out.jpg", photo)
    assert cv2.imread(str(tmp_path / "out.jpg"), cv2.IMREAD_UNCHANGED).shape == (8, 8)


def test_values_are_clamped_and_rounded(tmp_path):
    rgb = torch.tensor([-1.0, 0.5, 7.0]).view(1, 3, 1, 1)
    write_photo(tmp_path / "out.png", Photo(rgb))
    assert cv2.imread(str(tmp_path / "out.png")).tolist() == [[[255, 128, 0]]]


@pytest.mark.parametrize("data", [b"", b"hello" * 99])
def test_no_image(tmp_path, data):
    (tmp_path / "in.png").write_bytes(data)
    with pytest.raises(ImageError, match=r"in\.png.*damaged"):
        read_photo(tmp_path / "in.png")


def photo_for(suffix, size, dtype=np.uint8):
    """A smooth one of a kind that the format has."""
    smooth = cv2.resize(random_pixels(dtype, 8, 8, 3), (size, size))
    rgb = torch.from_numpy(smooth / np.iinfo(dtype).max).permute(2, 0, 1)[None]
    return Photo(rgb, grey=suffix == ".pgm", dtype=dtype)


OF_16_BITS = [suffix for suffix in FORMATS if np.uint16 in FORMATS[suffix].dtypes]


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        *((suffix, np.uint8) for suffix in sorted(set(FORMATS) - {".jpeg", ".tif"})),
        *((suffix, np.uint16) for suffix in OF_16_BITS if suffix not in (".pgm", ".tif")),
    ],
)
def test_truncated(tmp_path, suffix, dtype):
    path = tmp_path / f"in{suffix}"
    write_photo(path, photo_for(suffix, 64, dtype))
    whole = path.read_bytes()
    for size in (len(whole) // 4, len(whole) // 2, len(whole) - 100):
        zeros = bytes(len(whole) - size)  # as of a download that made room for the whole file
        for data in (whole[:size], whole[:size] + zeros) if suffix == ".jpg" else (whole[:size],):
            path.write_bytes(data)
            with pytest.raises(ImageError, match="damaged"):
                read_photo(path)


def test_flipped_bits_of_a_png_are_noticed(tmp_path):
    pixels = cv2.resize(random_pixels(np.uint8, 4, 4, 3), (32, 32))
    _, data = cv2.imencode(".png", pixels)
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(data.tobytes())
        damaged[int(rng.integers(41, len(data) - 12))] ^= 1 << int(rng.integers(8))
        (tmp_path / "in.png").write_bytes(damaged)
        with pytest.raises(ImageError, match="damaged"):
            read_photo(tmp_path / "in.png")


@pytest.fixture
def full_disk():
    """Files can have no more than 4000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", FORMATS)
def test_old_picture_stays_if_the_new_one_cannot_be_written(tmp_path, suffix, full_disk):
    path = tmp_path / f"out{suffix}"
    photo = photo_for(suffix, 32)
    write_photo(path, photo)
    before = path.read_bytes()
    # OpenCV makes a JPEG 2000 in a file of its own
    why = "OpenCV cannot encode" if suffix == ".jp2" else "File too large"
    with pytest.raises(ImageError, match=f"out{suffix} was not written: {why}"):
        write_photo(path, replace(photo, rgb=torch.rand(1, 3, 128, 128)))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_a_link_is_replaced_not_the_picture_behind_it(tmp_path):
    write_photo(tmp_path / "other.png", Photo(torch.zeros(1, 3, 2, 2)))
    (tmp_path / "out.png").symlink_to("other.png")
    write_photo(tmp_path / "out.png", Photo(torch.ones(1, 3, 2, 2)))
    assert read(tmp_path / "other.png").max() == 0
    assert read(tmp_path / "out.png").min() == 255


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, match in [
        ("in.png", "in.png: there is no such file"),
        (".", r"is a folder; name the files in it, such as .*\*\.png"),
        ("pipe", "pipe is no regular file"),
        ("y" * 300, "cannot be read: File name too long"),
    ]:
        with pytest.raises(ImageError, match=match):
            read_photo(tmp_path / name)


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), PermissionError(13, "Permission denied")]
)
def test_unreadable(tmp_path, error, monkeypatch):
    def fail(*args):
        raise error

    (tmp_path / "in.png").write_bytes(b"x")
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(ImageError, match=rf"in\.png cannot be read: {error.strerror}"):
        read_photo(tmp_path / "in.png")


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("out.xyz", {}, "cannot write .xyz"),
        ("out", {}, "without suffix"),
        ("out.jpg", {"dtype": np.uint16}, "cannot hold 16 bits"),
        ("out.webp", {"dtype": np.uint16}, "cannot hold 16 bits"),
        ("out.png", {"dtype": np.float32}, "cannot hold floats; use .tiff"),
        ("out.pgm", {}, "cannot hold colours; use .ppm"),
        ("out.heic", {}, "cannot write .heic; HEIC is only read"),
        ("out.jp2", {}, "cannot encode 2 x 2 pixels as this format; it wants 32 x 32"),
        ("out.jpg", {"alpha": np.zeros((2, 2), np.uint8)}, "cannot hold transparency"),
        ("missing/out.png", {}, "not written"),
    ],
)
def test_what_cannot_be_written(tmp_path, name, arguments, match):
    with pytest.raises(ImageError, match=match):
        write_photo(tmp_path / name, Photo(torch.zeros(1, 3, 2, 2), **arguments))
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_finite(tmp_path):
    with pytest.raises(ImageError, match="not finite"):
        write_photo(tmp_path / "out.png", Photo(torch.full((1, 3, 2, 2), float("nan"))))
    assert list(tmp_path.iterdir()) == []
