"""Image files: every kind keeps its kind and its values."""

import io
import os
import resource
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from mirnet_fast.images import FORMATS, ImageError, Photo, read_photo, write_photo


def random_pixels(dtype, *shape):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def read(path):
    """The pixels of a file; of a TIFF as they stand in it, which OpenCV multiplies by transparency."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    pixels = tifffile.imread(path)
    return pixels if pixels.ndim == 2 else pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]


def png(pixels, colour_type, chunks=(), depth=None):
    """A PNG of any colour type and chunks; OpenCV writes no grey with transparency."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    depth = depth or 8 * pixels.dtype.itemsize
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    rows = pixels.astype(pixels.dtype.newbyteorder(">"))
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    more = b"".join(chunk(kind, value) for kind, value in chunks)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def oriented(orientation):
    """EXIF data that has nothing but an orientation."""
    tag = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"MM\0*" + struct.pack(">IH", 8, 1) + tag + bytes(4)


def jpeg_with_orientation(pixels, orientation):
    _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 100])
    exif = b"Exif\0\0" + oriented(orientation)
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


@pytest.mark.parametrize("data", [b"", b"hello" * 99])
def test_no_image(tmp_path, data):
    (tmp_path / "in.png").write_bytes(data)
    with pytest.raises(ImageError, match=r"in\.png.*damaged"):
        read_photo(tmp_path / "in.png")


@pytest.mark.parametrize("suffix", sorted(set(FORMATS) - {".jpeg", ".tif"}))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_truncated(tmp_path, suffix, dtype, capfd):
    smooth = cv2.resize(random_pixels(dtype, 8, 8, 3), (48, 48))
    photo = Photo(torch.from_numpy(smooth / np.iinfo(dtype).max).permute(2, 0, 1)[None], dtype=dtype)
    path = tmp_path / f"in{suffix}"
    if dtype == np.uint16 and not FORMATS[suffix][0]:
        return
    write_photo(path, photo)
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


def tiff(pixels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def read_bytes(tmp_path, data):
    (tmp_path / "in").write_bytes(data)
    return read_photo(tmp_path / "in")


def channels_of(photo):
    """A Photo's own pixels, (H, W, 1 to 4)."""
    pixels = (photo.rgb[0].permute(1, 2, 0).double().numpy() * np.iinfo(photo.dtype).max).round()
    pixels = pixels[:, :, : 1 if photo.grey else 3].astype(photo.dtype)
    return pixels if photo.alpha is None else np.concatenate([pixels, photo.alpha[:, :, None]], 2)


TIFF_STORAGE = [
    {},
    {"byteorder": ">"},
    {"tile": (16, 16)},
    {"compression": "zlib", "predictor": True, "rowsperstrip": 5},
    {"bigtiff": True},
    {"planarconfig": "separate"},
]


@pytest.mark.parametrize("storage", TIFF_STORAGE, ids=lambda options: "-".join(options))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_is_read_as_it_was_stored(tmp_path, dtype, storage):
    for channels in (1, 2, 3, 4):
        pixels = random_pixels(dtype, 20, 18, channels)
        stored = np.moveaxis(pixels, 2, 0) if "planarconfig" in storage else pixels
        stored = np.ascontiguousarray(stored if channels > 1 else pixels[:, :, 0])
        photometric = "rgb" if channels > 2 else "minisblack"
        extra = None if channels % 2 else ["unassalpha"]
        options = {"planarconfig": "contig", **storage} if channels > 1 else dict(storage)
        if channels == 1:
            options.pop("planarconfig", None)
        data = tiff(stored, photometric=photometric, extrasamples=extra, **options)
        planes = channels > 1 and options["planarconfig"] == "separate"
        if (dtype == np.uint16 and (channels == 2 or planes)) or (channels == 2 and planes):
            with pytest.raises(ImageError, match=r"bits and .* not supported"):
                read_bytes(tmp_path, data)
            continue
        photo = read_bytes(tmp_path, data)
        assert np.array_equal(channels_of(photo), pixels)
        write_photo(tmp_path / "out.tiff", photo)
        with tifffile.TiffFile(tmp_path / "out.tiff") as file:
            written = file.asarray()
            assert [sample.name for sample in file.pages[0].extrasamples] == ["UNASSALPHA"] * (
                photo.alpha is not None
            )
        written = written.reshape(20, 18, -1)
        assert np.array_equal(written[:, :, 0], pixels[:, :, 0])
        if channels % 2 == 0:
            assert np.array_equal(written[:, :, 3], pixels[:, :, -1])


def test_tiff_with_colours_multiplied_by_transparency(tmp_path):
    straight = random_pixels(np.uint8, 6, 5, 3)
    alpha = np.full((6, 5, 1), 128, np.uint8)
    stored = np.concatenate([(straight * (128 / 255)).round().astype(np.uint8), alpha], 2)
    photo = read_bytes(tmp_path, tiff(stored, photometric="rgb", extrasamples=["assocalpha"]))
    assert np.abs(channels_of(photo)[:, :, :3].astype(int) - straight).max() <= 2
    assert (photo.alpha == 128).all()


def turned(pixels, orientation):
    """EXIF's definition: where the first row and the first column of the file are to be shown."""
    turns = {
        1: lambda p: p,
        2: np.fliplr,
        3: lambda p: np.rot90(p, 2),
        4: np.flipud,
        5: lambda p: np.flipud(np.rot90(p)),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: np.fliplr(np.rot90(p)),
        8: np.rot90,
    }
    return turns[orientation](pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_kind_is_turned_upright(tmp_path, orientation):
    for dtype in (np.uint8, np.uint16):
        for channels, png_type in ((1, 0), (2, 4), (3, 2), (4, 6)):
            pixels = random_pixels(dtype, 5, 7, channels)
            kinds = [png(pixels, png_type, [(b"eXIf", oriented(orientation))])]
            if channels != 2 or dtype == np.uint8:
                tag = (274, "H", 1, orientation, True)
                photometric, planes = ("rgb", "contig") if channels > 2 else ("minisblack", "contig")
                extra = None if channels % 2 else ["unassalpha"]
                options = {"photometric": photometric, "extrasamples": extra, "extratags": [tag]}
                if channels > 1:
                    options["planarconfig"] = planes
                kinds.append(tiff(pixels if channels > 1 else pixels[:, :, 0], **options))
            if dtype == np.uint8 and channels > 2:
                file = io.BytesIO()
                exif = b"Exif\0\0" + oriented(orientation)
                Image.fromarray(pixels).save(file, "WEBP", lossless=True, exact=True, exif=exif)
                kinds.append(file.getvalue())
            for data in kinds:
                assert np.array_equal(channels_of(read_bytes(tmp_path, data)), turned(pixels, orientation))


@pytest.mark.parametrize("damaged", [b"garbage", b"MM\0*", b"MM\0*" + struct.pack(">IH", 2**31, 5)])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_is_no_damage_of_the_picture(tmp_path, damaged):
    pixels = random_pixels(np.uint8, 3, 4, 3)
    assert np.array_equal(channels_of(read_bytes(tmp_path, png(pixels, 2, [(b"eXIf", damaged)]))), pixels)


def pillow(pixels, *arguments, mode=None, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, *arguments, **options)
    return file.getvalue()


def pages(*written):
    """A TIFF of several images, each (pixels, options)."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for pixels, options in written:
            writer.write(pixels, **options)
    return file.getvalue()


RGB, LARGE = random_pixels(np.uint8, 16, 16, 3), random_pixels(np.uint8, 32, 32, 3)
SENSOR = {"photometric": "cfa"}
SMALL_COPY = {"photometric": "rgb", "subfiletype": 1}


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (pillow(RGB, "TIFF", mode="CMYK"), "has SEPARATED pixels"),
        (pillow(RGB, "JPEG", mode="CMYK"), "has CMYK pixels"),
        (pillow(RGB, "TIFF", mode="LAB"), "has CIELAB pixels"),
        (tiff(RGB[..., 0].astype(np.int16)), "has int16 pixels"),
        (tiff(RGB[..., 0].astype(np.uint32)), "has uint32 pixels"),
        (tiff(RGB[..., 0].astype(np.float16)), "has float16 pixels"),
        (tiff(RGB, photometric="minisblack", planarconfig="contig"), "has 3 channels"),
        (
            tiff(LARGE[..., [0, 1, 2, 0, 1]], photometric="rgb", extrasamples=["unassalpha", "unspecified"]),
            "has 5",
        ),
        (tiff(LARGE[..., [0, 1, 2, 0]], photometric="rgb", extrasamples=["unspecified"]), "has 4 channels"),
        (tiff(RGB.astype(np.uint16)[..., 0], photometric="miniswhite"), "16 bits and MINISWHITE"),
        (
            tiff(RGB.astype(np.uint16)[..., [0, 1, 2, 0]], photometric="rgb", extrasamples=["assocalpha"]),
            "16 bits and colours multiplied by transparency",
        ),
        (
            tiff(RGB[..., :2], photometric="minisblack", planarconfig="contig", extrasamples=["assocalpha"]),
            "8 bits and colours multiplied by transparency",
        ),
        (png(RGB.astype(np.uint16)[..., :1], 0, [(b"tRNS", b"\0\1")]), "one transparent value"),
        (png(RGB[:, :4, :1], 0, [(b"tRNS", b"\0\1")], depth=2), "one transparent value"),
        (tiff(RGB[..., 0], photometric="cfa"), "has CFA pixels"),
        (pages((RGB, {"photometric": "rgb"}), (LARGE, {"photometric": "rgb"})), "more than one image"),
        (pages((RGB, SMALL_COPY), (LARGE, {"photometric": "rgb"})), "more than one image"),
        # As in raw files and DNG: the first image is small, and the sensor's is below it.
        (pages((RGB, {**SMALL_COPY, "subifds": 1}), (LARGE[..., 0], SENSOR)), "more than one image"),
        (pages((RGB, {"photometric": "rgb", "subifds": 1}), (LARGE[..., 0], SENSOR)), "more than one image"),
        (pages((RGB, SMALL_COPY)), "more than one image"),
        (pages((RGB, {"photometric": "rgb"}), (LARGE, SMALL_COPY)), "more than one image"),
        *(
            (pillow(RGB, kind, save_all=True, append_images=[Image.fromarray(RGB[::-1])]), match)
            for kind, match in [
                ("PNG", "animation of 2 frames"),
                ("WEBP", "animation of 2 frames"),
                ("TIFF", "more than one image"),
                ("GIF", "not an image that can be read .BMP, JPEG, PNG, TIFF or WebP."),
            ]
        ),
    ],
)
def test_what_would_not_be_kept_whole_is_refused(tmp_path, data, match):
    with pytest.raises(ImageError, match=match):
        read_bytes(tmp_path, data)


def test_smaller_copies_in_a_tiff_are_no_pages(tmp_path):
    for data in (
        pages((LARGE, {"photometric": "rgb"}), (RGB, SMALL_COPY)),
        pages((LARGE, {"photometric": "rgb", "subifds": 1}), (RGB, SMALL_COPY)),
    ):
        assert np.array_equal(channels_of(read_bytes(tmp_path, data)), LARGE)


def test_preview_beside_a_jpeg_is_no_frame(tmp_path):
    photo = pillow(LARGE, "MPO", save_all=True, append_images=[Image.fromarray(RGB)])  # as of many phones
    assert Image.open(io.BytesIO(photo)).n_frames == 2
    assert read_bytes(tmp_path, photo).rgb.shape == (1, 3, 32, 32)


def test_one_transparent_colour(tmp_path):
    pixels = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    for dtype in (np.uint8, np.uint16):
        photo = read_bytes(tmp_path, png(pixels.astype(dtype), 2, [(b"tRNS", struct.pack(">3H", 4, 5, 6))]))
        assert photo.alpha.tolist() == [[np.iinfo(dtype).max, 0]]
    photo = read_bytes(tmp_path, png(pixels[:, :, 0], 0, [(b"tRNS", struct.pack(">H", 4))]))
    assert photo.grey and photo.alpha.tolist() == [[255, 0]]
    palette = [(b"PLTE", bytes(range(9))), (b"tRNS", bytes([7, 128]))]
    photo = read_bytes(tmp_path, png(np.array([[0, 1, 2]], np.uint8), 3, palette))
    assert photo.alpha.tolist() == [[7, 128, 255]]


def test_what_is_too_large_is_not_called_damaged(tmp_path, monkeypatch):
    wide = np.zeros((1, 1_000_001), np.uint16)  # libpng's limit in OpenCV is a million
    assert read_bytes(tmp_path, png(wide.astype(np.uint8), 0)).rgb.shape[3] == 1_000_001
    with pytest.raises(ImageError, match=r"is too large, 1000001 x 1 pixels, for OpenCV$"):
        read_bytes(tmp_path, png(wide, 0))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow would refuse twice as many
    assert channels_of(read_bytes(tmp_path, png(RGB, 2))).shape == RGB.shape
    text = zlib.compress(b"a" * 2**21)
    with pytest.raises(ImageError, match="holds more text than Pillow reads"):
        read_bytes(tmp_path, png(RGB, 2, [(b"zTXt", b"x\0\0" + text)]))

    def no_memory(*args):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(np, "broadcast_to", no_memory)
    with pytest.raises(ImageError, match="too large for the memory that is left: Unable"):
        read_bytes(tmp_path, png(RGB, 2))


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
    write_photo(path, Photo(torch.zeros(1, 3, 8, 8)))
    before = path.read_bytes()
    with pytest.raises(ImageError, match=f"out{suffix} was not written: File too large"):
        write_photo(path, Photo(torch.rand(1, 3, 128, 128)))
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
    def fail(path):
        raise error

    (tmp_path / "in.png").write_bytes(b"x")
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(ImageError, match=rf"in\.png cannot be read: {error.strerror}"):
        read_photo(tmp_path / "in.png")


def test_float_image(tmp_path):
    (tmp_path / "in.tiff").write_bytes(tiff(np.zeros((4, 4, 3), np.float32), photometric="rgb"))
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
