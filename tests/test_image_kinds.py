"""TIFF in every storage, orientation, transparency, several pictures in one file: kept or refused."""

import io
import struct
import zlib

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
