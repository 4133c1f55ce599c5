"""What a photo's file has beyond its pixels is in the result, as other hands read it: Pillow and exiftool."""

import io
import json
import shutil
import struct
import subprocess

import numpy as np
import pytest
import tifffile
import torch
from PIL import ExifTags, Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from mirnet_fast.images import Encoding, Photo, read_photo, write_photo

from .cases import exhaustive, first_of
from .image_files import read_bytes, tiff

SIZE = (96, 64)
SMOOTH = Image.fromarray(
    np.stack(np.meshgrid(np.linspace(0, 255, 96), np.linspace(0, 255, 64)), 2).astype(np.uint8)[
        ..., [0, 1, 0]
    ]
)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6" tiff:Make="Foo"/></rdf:RDF></x:xmpmeta>'
    b'<?xpacket end="w"?>'
)
KINDS = ["jpg", "png", "tif", "webp", "avif"]
MAKERS_NOTE = bytes(range(200))
IPTC = b"\x1c\x02\x19\0\x05words"


def exif(orientation, size=SIZE):
    block = Image.Exif()
    block[0x0112] = orientation
    block[0x010F], block[0x8298] = "Foo", "© Me"
    inner = block.get_ifd(ExifTags.IFD.Exif)
    inner[0x9003], inner[0x829D], inner[0x927C] = "2020:01:02 03:04:05", 2.8, MAKERS_NOTE
    inner[0xA002], inner[0xA003] = size
    place = block.get_ifd(ExifTags.IFD.GPSInfo)
    place[1], place[2], place[3], place[4] = "N", (47.0, 30.0, 1.5), "E", (8.0, 15.0, 0.0)
    return block


def with_thumbnail(block):
    """EXIF's bytes with a second directory, which is a JPEG's; Pillow writes none."""
    small = io.BytesIO()
    SMOOTH.resize((48, 32)).save(small, "JPEG", quality=95)
    data = bytearray(block.tobytes().removeprefix(b"Exif\0\0"))
    order = "<" if data[:2] == b"II" else ">"
    data += bytes(len(data) % 2)
    first = struct.unpack_from(order + "I", data, 4)[0]
    (count,) = struct.unpack_from(order + "H", data, first)
    struct.pack_into(order + "I", data, first + 2 + 12 * count, len(data))
    jpeg_at = len(data) + 2 + 3 * 12 + 4
    tags = [(0x0103, 3, 1, 6), (0x0201, 4, 1, jpeg_at), (0x0202, 4, 1, len(small.getvalue()))]
    data += struct.pack(order + "H", len(tags))
    for tag, kind, number, value in tags:
        data += struct.pack(
            order + "HHI" + ("HH" if kind == 3 else "I"), tag, kind, number, value, *[0] * (kind == 3)
        )
    return bytes(data + bytes(4) + small.getvalue())


def save(path, orientation=6, block=None):
    """A photo with everything. Pillow writes no EXIF into a TIFF, so that one is ours, of a JPEG."""
    if path.suffix == ".tif":
        save(path.with_suffix(".jpeg"), 1)
        write_photo(path, read_photo(path.with_suffix(".jpeg")))
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages[0].tags["Orientation"].overwrite(orientation)
        return
    block = exif(orientation).tobytes() if block is None else block
    xmp = XMP.replace(b'"6"', b'"%d"' % orientation)
    options = {"exif": block, "icc_profile": PROFILE, "xmp": xmp, "dpi": (300, 200), "quality": 90}
    if path.suffix == ".png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    SMOOTH.save(path, **options)


def what_pillow_reads(path):
    with Image.open(path) as image:
        block = image.getexif()
        # what says how pixels are stored is a TIFF's own
        of_photo = {tag: block.get(tag) for tag in (0x010F, 0x0112, 0x8298)}
        return {
            "size": image.size,
            "photo": of_photo,
            "exif": dict(block.get_ifd(ExifTags.IFD.Exif)),
            "place": dict(block.get_ifd(ExifTags.IFD.GPSInfo)),
            "icc": image.info.get("icc_profile"),
            "xmp": image.info.get("xmp") or image.info.get("XML:com.adobe.xmp", "").encode(),
            "dpi": tuple(round(float(n), 1) for n in image.info.get("dpi", ())),
        }


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_all_is_kept_but_the_orientation(tmp_path, kind, orientation):
    save(tmp_path / f"in.{kind}", orientation)
    write_photo(tmp_path / f"out.{kind}", read_photo(tmp_path / f"in.{kind}"))
    before, after = (what_pillow_reads(tmp_path / f"{name}.{kind}") for name in ("in", "out"))
    upright = orientation == 1
    size = SIZE if upright else SIZE[::-1]
    assert after.pop("size") == size and before.pop("size") in (SIZE, size)  # Pillow turns a TIFF
    assert after["photo"].pop(0x0112) in (1, None)
    assert (
        before["photo"].pop(0x0112) == orientation or kind == "avif"
    )  # which says elsewhere how it is turned
    assert (after["exif"].pop(0xA002), after["exif"].pop(0xA003)) == size
    before["exif"].pop(0xA002), before["exif"].pop(0xA003)
    if not upright:
        before["dpi"] = before["dpi"][::-1]
    before["xmp"] = before["xmp"].replace(b'tiff:Orientation="6"', b'tiff:Orientation="1"')
    if kind == "avif":  # libexif, which libvips writes it by, adds what is obligatory
        after["exif"] = {tag: value for tag, value in after["exif"].items() if tag in before["exif"]}
        after["place"] = {tag: value for tag, value in after["place"].items() if tag in before["place"]}
    assert before == after and after["exif"][0x927C] == MAKERS_NOTE


@pytest.mark.parametrize("kind", ["jpg", "tif"])
def test_all_goes_along_into_another_format(tmp_path, kind):
    save(tmp_path / f"in.{kind}")
    before = what_pillow_reads(tmp_path / f"in.{kind}")
    for other in KINDS:
        write_photo(tmp_path / f"out.{other}", read_photo(tmp_path / f"in.{kind}"))
        after = what_pillow_reads(tmp_path / f"out.{other}")
        assert after["photo"][0x8298] == before["photo"][0x8298] and after["photo"][0x0112] in (1, None)
        assert after["place"][2] == before["place"][2] and after["exif"][0x829D] == before["exif"][0x829D]
        assert after["icc"] == PROFILE and b'tiff:Make="Foo"' in after["xmp"]
        if other not in ("webp", "avif"):
            assert after["dpi"] == pytest.approx((200, 300), abs=0.1)


def thumbnail(path):
    with Image.open(path) as image:
        data = image.getexif().get_ifd(ExifTags.IFD.IFD1)
        if not data:
            return None
        image.fp.seek(0)
        whole = image.fp.read()
    at = whole.index(b"Exif\0\0") + 6 + data[0x0201]
    return Image.open(io.BytesIO(whole[at : at + data[0x0202]]))


def test_thumbnail_is_that_of_the_result(tmp_path):
    save(tmp_path / "in.jpg", 6, b"Exif\0\0" + with_thumbnail(exif(6)))
    assert thumbnail(tmp_path / "in.jpg").size == (48, 32)
    photo = read_photo(tmp_path / "in.jpg")
    write_photo(tmp_path / "out.jpg", Photo(1 - photo.rgb, origin=photo.origin))
    small = thumbnail(tmp_path / "out.jpg")
    assert small.size == (32, 48)
    expected = Image.open(tmp_path / "out.jpg").resize(small.size)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(expected)).mean() < 6


def test_thumbnail_that_would_find_no_room_is_left_out(tmp_path):
    block = with_thumbnail(exif(1))
    start = block.index(b"\xff\xd8")
    tiny = block[:start] + block[start : start + 300]  # too short for any
    tiny = tiny.replace(struct.pack(">I", len(block) - start), struct.pack(">I", 300))
    tiny = tiny.replace(struct.pack("<I", len(block) - start), struct.pack("<I", 300))
    save(tmp_path / "in.jpg", 1, b"Exif\0\0" + tiny)
    write_photo(tmp_path / "out.jpg", read_photo(tmp_path / "in.jpg"))
    assert thumbnail(tmp_path / "out.jpg") is None
    assert what_pillow_reads(tmp_path / "out.jpg")["photo"][0x010F] == "Foo"


@pytest.mark.parametrize("cut", first_of([60, 4, 8, 20, 150], 1))
def test_damaged_exif_data_neither_stops_nor_turns_anything(tmp_path, cut):
    block = exif(1).tobytes()[: 6 + cut]
    for kind in ("jpg", "png", "webp"):
        SMOOTH.save(tmp_path / f"in.{kind}", exif=block)
        photo = read_photo(tmp_path / f"in.{kind}")
        for other in KINDS:
            write_photo(tmp_path / f"out.{other}", photo)
            assert Image.open(tmp_path / f"out.{other}").size == SIZE


def test_iptc_between_jpeg_and_tiff(tmp_path):
    old = b"8BIM\x04\x0c\0\0\0\0\0\x04old!"  # a thumbnail, which is not kept
    resources = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC + bytes(len(IPTC) % 2) + old
    jpeg = io.BytesIO()
    SMOOTH.save(jpeg, "JPEG")
    segment = b"Photoshop 3.0\0" + resources
    marker = b"\xff\xed" + struct.pack(">H", len(segment) + 2)
    photo = read_bytes(tmp_path, jpeg.getvalue()[:2] + marker + segment + jpeg.getvalue()[2:])
    for name in ("out.jpg", "out.tif", "again.jpg", "again.tif"):
        write_photo(tmp_path / name, photo)
        assert (tmp_path / name).read_bytes().count(IPTC) == 1
        assert b"old!" not in (tmp_path / name).read_bytes()
        photo = read_photo(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "subsampling", "progressive"),
    [
        ({"quality": 61, "subsampling": "4:2:0"}, 2, False),
        ({"quality": 85, "subsampling": "4:4:4", "progressive": True}, 0, True),
        ({"quality": 97, "subsampling": "4:2:2"}, 0, False),
    ],
)
def test_jpeg_is_written_as_it_was(tmp_path, options, subsampling, progressive):
    from PIL.JpegImagePlugin import get_sampling

    SMOOTH.save(tmp_path / "in.jpg", **options)
    write_photo(tmp_path / "out.jpg", read_photo(tmp_path / "in.jpg"))
    before, after = Image.open(tmp_path / "in.jpg"), Image.open(tmp_path / "out.jpg")
    assert after.quantization == before.quantization
    assert get_sampling(after) == subsampling and bool(after.info.get("progressive")) == progressive
    told = Encoding(quality=40, subsampling="4:2:0", progressive=not progressive)
    write_photo(tmp_path / "told.jpg", read_photo(tmp_path / "in.jpg"), told)
    after = Image.open(tmp_path / "told.jpg")
    assert sum(after.quantization[0]) > sum(before.quantization[0]) and get_sampling(after) == 2
    assert bool(after.info.get("progressive")) != progressive


@exhaustive
@pytest.mark.parametrize("quality", range(1, 101))
def test_every_quality_of_jpeg_is_found(tmp_path, quality):
    SMOOTH.save(tmp_path / "in.jpg", quality=quality)
    assert abs(read_photo(tmp_path / "in.jpg").origin.encoding.quality - quality) <= 1


def test_what_was_lossy_stays_so(tmp_path):
    for name, lossless in (("in.webp", False), ("exact.webp", True)):
        SMOOTH.save(tmp_path / name, lossless=lossless)
        write_photo(tmp_path / "out.webp", read_photo(tmp_path / name))
        assert (b"VP8L" in (tmp_path / "out.webp").read_bytes()) == lossless
    SMOOTH.save(tmp_path / "in.jpg")
    write_photo(tmp_path / "out.webp", read_photo(tmp_path / "in.jpg"))
    assert b"VP8L" not in (tmp_path / "out.webp").read_bytes()
    write_photo(tmp_path / "out.webp", read_photo(tmp_path / "in.jpg"), Encoding(lossless=True))
    assert b"VP8L" in (tmp_path / "out.webp").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "match"), [({"quality": 0}, "from 1 to 100; got 0"), ({"subsampling": "4:1:1"}, "'4:1:1'")]
)
def test_other_encodings_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        Encoding(**arguments)


def test_what_does_not_fit_a_jpeg_is_said(tmp_path):
    long = XMP.replace(b"Foo", b"Foo" * 30_000)
    SMOOTH.save(tmp_path / "in.tif", tiffinfo={700: long})
    photo = read_photo(tmp_path / "in.tif")
    with pytest.warns(UserWarning, match=r"out\.jpg: 90,\d* bytes of XMP don't fit a JPEG"):
        write_photo(tmp_path / "out.jpg", photo)
    assert Image.open(tmp_path / "out.jpg").size == SIZE
    write_photo(tmp_path / "out.png", photo)
    assert b"Foo" * 30_000 in (tmp_path / "out.png").read_bytes()


def test_strange_bytes_between_segments_are_no_damage(tmp_path):
    SMOOTH.save(tmp_path / "in.jpg", quality=61)
    data = (tmp_path / "in.jpg").read_bytes()
    strange = read_bytes(tmp_path, data[:20] + b"\0\0\xff\xff" + data[20:])
    assert torch.equal(strange.rgb, read_photo(tmp_path / "in.jpg").rgb)
    assert strange.origin.encoding.quality == 61


def test_big_endian_tags_go_into_a_little_endian_file(tmp_path):
    tags = [(0x010F, "s", 0, "Foo", True), (0x4746, "H", 1, 0x0102, True)]
    pixels = np.zeros((4, 4, 3), np.uint8)
    for options in ({"byteorder": ">"}, {"byteorder": ">", "bigtiff": True}):
        photo = read_bytes(tmp_path, tiff(pixels, photometric="rgb", extratags=tags, **options))
        write_photo(tmp_path / "out.tif", photo)
        with Image.open(tmp_path / "out.tif") as image:
            assert (image.tag_v2[0x010F], image.tag_v2[0x4746]) == ("Foo", 0x0102)


def test_wide_gamut_stays_in_its_own_space(tmp_path):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:] = 250, 10, 20
    profile = PROFILE[:8] + b"\x04" + PROFILE[9:]  # whatever it says, it is not applied
    Image.fromarray(pixels).save(tmp_path / "in.png", icc_profile=profile)
    photo = read_photo(tmp_path / "in.png")
    assert torch.equal(photo.rgb[0, :, 0, 0] * 255, torch.tensor([250.0, 10, 20]))
    write_photo(tmp_path / "out.png", photo)
    assert Image.open(tmp_path / "out.png").info["icc_profile"] == profile


def test_profile_of_other_channels_is_left_out(tmp_path):
    grey = PROFILE[:16] + b"GRAY" + PROFILE[20:]
    SMOOTH.convert("L").save(tmp_path / "in.png", icc_profile=grey)
    photo = read_photo(tmp_path / "in.png")
    for name, expected in (("out.png", grey), ("out.jpg", grey), ("out.webp", None)):
        write_photo(tmp_path / name, photo)
        assert Image.open(tmp_path / name).info.get("icc_profile") == expected
    SMOOTH.convert("CMYK").save(tmp_path / "in.jpg", icc_profile=PROFILE)  # which is not of CMYK
    write_photo(tmp_path / "out.jpg", read_photo(tmp_path / "in.jpg"))
    assert Image.open(tmp_path / "out.jpg").mode == "CMYK"
    assert "icc_profile" not in Image.open(tmp_path / "out.jpg").info


def by_exiftool(path):
    done = subprocess.run(["exiftool", "-j", "-G1", "-a", "-n", "-b", path], capture_output=True, text=True)
    assert "Warning" not in done.stderr and "Error" not in done.stderr
    [read] = json.loads(done.stdout)
    return {
        tag: value for tag, value in read.items() if tag.startswith(("IFD0", "ExifIFD", "GPS", "XMP", "ICC"))
    }


# how the pixels are stored
STORED = ("Compression", "Predictor", "RowsPerStrip", "SampleFormat", "StripByteCounts", "StripOffsets")


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not there to read the result")
@pytest.mark.parametrize("kind", first_of(["jpg", "tif", "png", "webp", "avif"], 2))
def test_exiftool_reads_the_same(tmp_path, kind):
    save(tmp_path / f"in.{kind}")
    write_photo(tmp_path / f"out.{kind}", read_photo(tmp_path / f"in.{kind}"))
    before, after = (by_exiftool(tmp_path / f"{name}.{kind}") for name in ("in", "out"))
    differ = {tag for tag in before.keys() | after.keys() if before.get(tag) != after.get(tag)}
    differ = {tag for tag in differ if tag.split(":")[1] not in STORED}
    turned = {"IFD0:Orientation", "XMP-tiff:Orientation"}
    size = {"ExifIFD:ExifImageWidth", "ExifIFD:ExifImageHeight"}
    stored_size = {"IFD0:ImageWidth", "IFD0:ImageHeight", "IFD0:XResolution", "IFD0:YResolution"}
    assert after["XMP-tiff:Orientation"] == 1
    if kind == "avif":  # what is obligatory is added
        added = {tag for tag in differ if tag not in before}
        assert differ - added == {"XMP-tiff:Orientation"} | size and len(added) < 10
    elif kind == "tif":
        assert differ == {"IFD0:Orientation"} | size | stored_size
    else:
        assert differ == turned | size
