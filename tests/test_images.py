"""Image files: every kind keeps its kind and its values."""

import struct
import zlib

import cv2
import numpy as np
import pytest
import torch

from mirnet_fast.images import ImageError, Photo, read_photo, write_photo


def random_pixels(dtype, *shape):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def png(pixels, colour_type):
    """A PNG of any colour type; OpenCV writes no grey with transparency."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.dtype.itemsize, colour_type, 0, 0, 0)
    rows = pixels.astype(pixels.dtype.newbyteorder(">"))
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_with_orientation(pixels, orientation):
    _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 100])
    tag = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + tag + bytes(4)
    return jpeg.tobytes()[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg.tobytes()[2:]


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
    written = cv2.imread(str(tmp_path / f"out{suffix}"), cv2.IMREAD_UNCHANGED)
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
    data = png(indices, colour_type=3)
    palette = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255])
    chunk = struct.pack(">I", 9) + b"PLTE" + palette + struct.pack(">I", zlib.crc32(b"PLTE" + palette))
    (tmp_path / "in.png").write_bytes(data[:33] + chunk + data[33:])
    photo = read_photo(tmp_path / "in.png")
    assert not photo.grey
    assert photo.rgb[0, :, 0, 0].tolist() == [1, 0, 0]
    assert photo.rgb[0, :, 1, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (6, -1), (8, 1), (3, 2)])
def test_jpeg_orientation(tmp_path, orientation, turn):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255  # top left
    (tmp_path / "in.jpg").write_bytes(jpeg_with_orientation(pixels, orientation))
    rgb = read_photo(tmp_path / "in.jpg").rgb[0].permute(1, 2, 0).numpy()
    expected = np.rot90(pixels, turn) / 255
    assert rgb.shape == expected.shape
    assert np.abs(rgb - expected).max() < 0.05


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


def damaged(path, kind):
    _, data = cv2.imencode(".png", random_pixels(np.uint8, 32, 32, 3))
    path.write_bytes(
        {"empty": b"", "text": b"hello" * 99, "truncated": data.tobytes()[: len(data) // 2]}[kind]
    )


@pytest.mark.parametrize("kind", ["empty", "text", "truncated"])
def test_damaged(tmp_path, kind):
    damaged(tmp_path / "in.png", kind)
    with pytest.raises(ImageError, match=r"in\.png.*damaged"):
        read_photo(tmp_path / "in.png")


def test_missing(tmp_path):
    for path in (tmp_path / "in.png", tmp_path):
        with pytest.raises(ImageError, match="no such file"):
            read_photo(path)


def test_float_image(tmp_path):
    cv2.imwrite(str(tmp_path / "in.tiff"), np.zeros((4, 4, 3), np.float32))
    with pytest.raises(ImageError, match="float32"):
        read_photo(tmp_path / "in.tiff")


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("out.xyz", {}, "cannot write .xyz"),
        ("out", {}, "without suffix"),
        ("out.jpg", {"dtype": np.uint16}, "cannot hold 16 bits"),
        ("out.webp", {"dtype": np.uint16}, "cannot hold 16 bits"),
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
