"""TIFF in every storage, orientation, transparency, several pictures in one file: kept or refused."""

import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from mirnet_fast.images import ImageError, read_photo, write_photo

from .image_files import (
    channels_of,
    jpeg_with_orientation,
    oriented,
    pages,
    pillow,
    png,
    random_pixels,
    read_bytes,
    tiff,
)


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (6, -1), (8, 1), (3, 2)])
def test_jpeg_orientation(tmp_path, orientation, turn):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255  # top left
    (tmp_path / "in.jpg").write_bytes(jpeg_with_orientation(pixels, orientation))
    rgb = read_photo(tmp_path / "in.jpg").rgb[0].permute(1, 2, 0).numpy()
    expected = np.rot90(pixels, turn) / 255
    assert rgb.shape == expected.shape
    assert np.abs(rgb - expected).max() < 0.05


TIFF_STORAGE = [
    {},
    {"byteorder": ">"},
    {"tile": (16, 16)},
    {"compression": "zlib", "predictor": True, "rowsperstrip": 5},
    {"bigtiff": True},
    {"planarconfig": "separate"},
    {"planarconfig": "separate", "tile": (16, 16)},
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
        if channels > 1 and options["planarconfig"] == "separate" and (channels == 2 or "tile" in storage):
            with pytest.raises(ImageError, match="each channel apart, which is not supported"):
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
        assert np.array_equal(written, pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("colours", [1, 3])
def test_tiff_with_colours_multiplied_by_transparency(tmp_path, dtype, colours):
    straight, largest = random_pixels(dtype, 6, 5, colours), np.iinfo(dtype).max
    alpha = np.full((6, 5, 1), largest // 2 + 1, dtype)
    stored = np.concatenate([(straight * (alpha / largest)).round().astype(dtype), alpha], 2)
    photometric = "rgb" if colours == 3 else "minisblack"
    options = {"photometric": photometric, "extrasamples": ["assocalpha"], "planarconfig": "contig"}
    photo = read_bytes(tmp_path, tiff(stored, **options))
    assert np.abs(channels_of(photo)[:, :, :colours].astype(int) - straight).max() <= 2
    assert (photo.alpha == alpha[:, :, 0]).all()


def test_white_as_zero(tmp_path):
    for dtype in (np.uint8, np.uint16):
        pixels = random_pixels(dtype, 6, 5, 1)
        photo = read_bytes(tmp_path, tiff(pixels[:, :, 0], photometric="miniswhite"))
        assert np.array_equal(channels_of(photo), np.iinfo(dtype).max - pixels)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_floats_keep_values_beyond_black_and_white(tmp_path, dtype, channels):
    pixels = (np.random.default_rng(0).random((7, 5, channels)) * 2 - 0.5).astype(dtype)
    options = {"photometric": "rgb"} if channels > 1 else {"photometric": "minisblack"}
    options |= {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    photo = read_bytes(tmp_path, tiff(pixels if channels > 1 else pixels[:, :, 0], **options))
    assert photo.dtype == np.float32
    write_photo(tmp_path / "out.tif", photo)
    written = tifffile.imread(tmp_path / "out.tif")
    assert written.dtype == np.float32
    np.testing.assert_allclose(written.reshape(pixels.shape), pixels, rtol=1e-6)


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
            tag = (274, "H", 1, orientation, True)
            extra = None if channels % 2 else ["unassalpha"]
            options = {"extrasamples": extra, "extratags": [tag]}
            options["photometric"] = "rgb" if channels > 2 else "minisblack"
            if channels > 1:
                options["planarconfig"] = "contig"
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


RGB, LARGE = random_pixels(np.uint8, 16, 16, 3), random_pixels(np.uint8, 32, 32, 3)
SENSOR = {"photometric": "cfa"}
SMALL_COPY = {"photometric": "rgb", "subfiletype": 1}
TWO = {"save_all": True, "append_images": [Image.fromarray(RGB[::-1])]}


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (pillow(RGB, "TIFF", mode="LAB"), "has CIELAB pixels"),
        (tiff(RGB[..., 0].astype(np.int16)), "has int16 pixels"),
        (tiff(RGB[..., 0].astype(np.uint32)), "has uint32 pixels"),
        (tiff(RGB[..., 0].astype(np.float64)), "has float64 pixels"),
        (tiff(RGB, photometric="minisblack", planarconfig="contig"), "has 3 channels"),
        (
            tiff(LARGE[..., [0, 1, 2, 0, 1]], photometric="rgb", extrasamples=["unassalpha", "unspecified"]),
            "has 5",
        ),
        (tiff(LARGE[..., [0, 1, 2, 0]], photometric="rgb", extrasamples=["unspecified"]), "has 4 channels"),
        (tiff(RGB[..., 0], photometric="cfa"), "has CFA pixels"),
        (pages((RGB, {"photometric": "rgb"}), (LARGE, {"photometric": "rgb"})), "more than one image"),
        # As in raw files and DNG: the first image is small, and the sensor's is below it.
        (pages((RGB, SMALL_COPY), (LARGE, {"photometric": "rgb"})), "a preview and another"),
        (pages((RGB, {**SMALL_COPY, "subifds": 1}), (LARGE[..., 0], SENSOR)), "a preview and another"),
        (
            pages((RGB, {"photometric": "rgb", "subifds": 1}), (LARGE[..., 0], SENSOR)),
            "a preview and another",
        ),
        (pages((RGB, SMALL_COPY)), "a preview and another"),
        (pages((RGB, {"photometric": "rgb"}), (LARGE, SMALL_COPY)), "a preview and another"),
        (pillow(RGB, "PNG", **TWO), "is an animation, and libvips reads only the first frame"),
        (pillow(RGB, "WEBP", **TWO), "is an animation of 2 frames"),
        (pillow(RGB, "GIF", **TWO), "is an animation of 2 frames"),
        (pillow(RGB, "TIFF", **TWO), "more than one image"),
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
    for dtype, value in ((np.uint8, 4), (np.uint16, 4)):
        data = png(pixels[:, :, 0].astype(dtype), 0, [(b"tRNS", struct.pack(">H", value))])
        assert read_bytes(tmp_path, data).alpha.tolist() == [[np.iinfo(dtype).max, 0]]
    four = png(np.array([[0b00011011]], np.uint8), 0, [(b"tRNS", b"\0\1")], depth=2, width=4)
    photo = read_bytes(tmp_path, four)
    assert photo.grey and photo.alpha.tolist() == [[255, 0, 255, 255]]
    palette = [(b"PLTE", bytes(range(9))), (b"tRNS", bytes([7, 128]))]
    photo = read_bytes(tmp_path, png(np.array([[0, 1, 2]], np.uint8), 3, palette))
    assert photo.alpha.tolist() == [[7, 128, 255]]


def test_what_is_too_large_is_not_called_damaged(tmp_path, monkeypatch):
    wide = np.zeros((1, 1_000_001), np.uint16)
    for pixels in (wide, wide.astype(np.uint8)):
        assert read_bytes(tmp_path, png(pixels, 0)).rgb.shape[3] == 1_000_001

    def no_memory(*args):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(np, "ascontiguousarray", no_memory)
    with pytest.raises(ImageError, match="too large for the memory that is left: Unable"):
        read_bytes(tmp_path, png(RGB, 2))
