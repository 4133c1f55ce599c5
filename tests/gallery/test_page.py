"""The page as a file: its pictures, numbers, size, and that nothing of it can do harm."""

import base64
import hashlib
import html.parser
import json
import os
import re

import cv2
import numpy as np
import pytest
import pyvips
import tifffile

from mirnet_fast import evaluation
from mirnet_fast.cli import gallery as cli
from mirnet_fast.gallery import MAX_MB, Comparison, entries, pictures, scores, write_gallery
from mirnet_fast.images import ImageError, Pages

from ..cli.common import run
from .common import HOSTILE, data_of, noisy, photo, write


@pytest.fixture
def three(tmp_path):
    """before, after and clean, as files."""
    clean = photo()
    arrays = {"before": noisy(clean), "after": noisy(clean, 3), "clean": clean}
    return {name: write(tmp_path / name / "a.png", pixels) for name, pixels in arrays.items()}, arrays


def score(pixels, clean):
    return evaluation.score("", pixels / 255, clean / 255)


def test_command(three, tmp_path):
    _, arrays = three
    page = tmp_path / "out" / "page.html"
    folders = [tmp_path / name for name in ("before", "after", "clean")]
    result = run("gallery", *folders[:2], "--clean", folders[2], "--out", page, "--title", "<b>T & t</b>")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{page}: 1 photo, {page.stat().st_size / 1e6:.1f} MB\n"
    data, shown = data_of(page)
    [entry] = data["entries"]
    assert data["title"] == "<b>T & t</b>" and entry["name"] == "a.png"
    assert (entry["width"], entry["height"]) == (60, 40)
    [view] = entry["views"]
    for name, pixels in arrays.items():
        assert np.array_equal(shown[view["pictures"][name]], pixels)
    for name in ("before", "after"):
        expected = score(arrays[name], arrays["clean"])
        assert entry["scores"][name] == pytest.approx([expected.psnr, expected.ssim], abs=1e-6)
    change = np.abs(arrays["before"].astype(int) - arrays["after"]).max(2)
    assert entry["changed"] == pytest.approx(np.sqrt(np.mean(change**2)))
    heat = shown[view["pictures"]["change"]].astype(int).sum(2)
    assert np.corrcoef(heat.ravel(), change.ravel())[0, 1] > 0.8


def test_a_photo_that_cannot_be_shown_is_told_and_left_out(three, tmp_path):
    for folder in ("before", "after"):
        write(tmp_path / folder / "b.png", photo(40, 30 if folder == "after" else 60))
        (tmp_path / folder / "c.png").write_bytes(b"no image")
    write(tmp_path / "before" / "d.png", photo())
    page = tmp_path / "page.html"
    result = run("gallery", tmp_path / "before", tmp_path / "after", "--out", page)
    assert result.exit_code == 1
    assert "b.png is 30 x 40 pixels" in result.stderr and "c.png is not an image" in result.stderr
    assert "warning: " in result.stderr and "d.png: there is none of that name" in result.stderr
    assert [entry["name"] for entry in data_of(page)[0]["entries"]] == ["a.png"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"after": "no.png"}, "no.png: there is no such file"),
        ({"--out": "photo.png"}, "must end in .html"),
        ({"after": "text.png"}, "was not written, as no photo can be shown"),
        ({"--max-mb": "0"}, "--max-mb"),
    ],
)
def test_errors(three, tmp_path, change, told):
    (tmp_path / "text.png").write_text("text")
    given = {"before": tmp_path / "before" / "a.png", "after": tmp_path / "after" / "a.png"}
    given |= {"--out": tmp_path / "page.html"}
    given |= {name: tmp_path / value if "." in value else value for name, value in change.items()}
    options = [part for name, value in given.items() if name[0] == "-" for part in (name, value)]
    result = run("gallery", given["before"], given["after"], *options)
    assert result.exit_code != 0 and told in result.output
    assert not (tmp_path / "page.html").exists() and not (tmp_path / "photo.png").exists()


class Seen(html.parser.HTMLParser):
    """The elements of a page, the text outside of scripts, and the text of each script and style."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.inside, self.within = [], [], {}, ("", {})
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.within = self.elements[-1]

    def handle_endtag(self, tag):
        self.within = "", {}

    def handle_data(self, text):
        tag, attributes = self.within
        if tag in ("script", "style"):
            key = tag, attributes.get("type")
            self.inside[key] = self.inside.get(key, "") + text
        else:
            self.texts.append(text)


def test_hostile_names_stay_text(tmp_path):
    before, after = (write(tmp_path / name / f"{HOSTILE}.png", photo(12, 12)) for name in ("a", "b"))
    page = tmp_path / "page.html"
    write_gallery(page, [Comparison(HOSTILE, before, after, notes=("</script><b>",))], title=HOSTILE)
    text = page.read_text()
    seen = Seen(text)
    kinds = [attributes.get("type") for tag, attributes in seen.elements if tag == "script"]
    # Five pictures at most, the data, and the one script that runs.
    assert kinds.count(None) == 1 and kinds.count("application/json") == 1 and len(kinds) == 5
    assert data_of(page)[0]["entries"][0]["name"] == HOSTILE
    assert not any("alert" in str(element) for element in seen.elements)
    addresses = [v for _, attributes in seen.elements for k, v in attributes.items() if k in ("src", "href")]
    assert addresses == ["data:,"] and not re.search(r"https?://|url\(|@import|fetch\(|XMLHttp", text)
    policy = next(a["content"] for t, a in seen.elements if t == "meta" and "http-equiv" in a)
    for kind, key in (("script-src", ("script", None)), ("style-src", ("style", None))):
        digest = base64.b64encode(hashlib.sha256(seen.inside[key].encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_a_name_that_is_no_text(tmp_path):
    before = write(tmp_path / "a.png", photo(12, 12))
    page = tmp_path / "page.html"
    write_gallery(page, [Comparison(os.fsdecode(b"\xff.png"), before, before)], title=os.fsdecode(b"\xff"))
    assert "<title>?</title>" in page.read_text()
    data, _ = data_of(page)
    [entry] = data["entries"]
    assert entry["changed"] == 0 and entry["scores"] == {}


def test_large_photos_are_shown_smaller_with_parts_of_their_own_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(entries, "FULL_PIXELS", 50 * 1000)
    monkeypatch.setattr(entries, "LADDER", (entries.Rung(100, 2, 64), entries.Rung(50, 0, 0)))
    clean = photo(200, 300)
    changed = clean.copy()
    changed[70:120, 130:190] = noisy(clean)[70:120, 130:190]
    arrays = {"before": changed, "after": clean}
    before, after = (write(tmp_path / f"{name}.png", pixels) for name, pixels in arrays.items())
    page = tmp_path / "page.html"
    written = write_gallery(page, [Comparison("x", before, after)])
    assert (written.photos, written.whole) == (1, 0)
    data, shown = data_of(page)
    whole, *parts = data["entries"][0]["views"]
    assert (whole["kind"], whole["width"], whole["height"]) == ("small", 100, 67)
    assert shown[whole["pictures"]["after"]].shape == (67, 100, 3)
    assert len(parts) == 2 and (parts[0]["left"], parts[0]["top"]) == (128, 64)  # where the change is
    for part in parts:
        inside = slice(part["top"], part["top"] + 64), slice(part["left"], part["left"] + 64)
        assert (part["width"], part["height"]) == (64, 64)
        for name, pixels in arrays.items():
            assert np.array_equal(shown[part["pictures"][name]], pixels[inside])


def test_the_page_keeps_to_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(entries, "LADDER", (entries.Rung(300, 2, 64), entries.Rung(100, 0, 0)))
    compared = []
    for i in range(2):
        before, after = noisy(photo(300, 250, i), 60), photo(300, 250, i)
        paths = [write(tmp_path / f"{i}{name}.png", p) for name, p in (("b", before), ("a", after))]
        compared.append(Comparison(str(i), *paths))
    page = tmp_path / "page.html"
    sizes = {}
    for megabytes in (64, 0.3):
        written = write_gallery(page, compared, max_mb=megabytes)
        assert written.size == page.stat().st_size <= megabytes * 1e6
        sizes[megabytes] = written.whole
    assert sizes[64] == 2 and sizes[0.3] == 0
    with pytest.raises(ValueError, match=r"2 photos do not fit into 0\.105 MB"):
        write_gallery(page, compared, max_mb=0.105)


def test_photos_of_other_kinds(tmp_path):
    grey = photo(20, 30)[:, :, 0]
    alpha = np.dstack([photo(20, 30), np.full((20, 30), 128, np.uint8)])
    deep = np.random.default_rng(0).integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    floats = np.random.default_rng(0).uniform(-0.2, 1.2, (20, 30, 3)).astype(np.float32)
    made = {
        "grey": (grey, np.repeat(grey[:, :, None], 3, 2)),
        "deep": (deep, np.round(deep / 257).astype(np.uint8)),
        "floats": (floats, np.round(floats.clip(0, 1) * 255).astype(np.uint8)),
    }
    for name, (pixels, expected) in made.items():
        tifffile.imwrite(
            tmp_path / f"{name}.tif", pixels, photometric="minisblack" if pixels.ndim == 2 else "rgb"
        )
        with Pages(tmp_path / f"{name}.tif") as pages:
            assert np.array_equal(pictures.shown(pages[0]), expected), name
    path = tmp_path / "alpha.png"
    pyvips.Image.new_from_array(alpha).copy(interpretation="srgb").write_to_file(str(path))
    with Pages(path) as pages:
        assert np.array_equal(pictures.shown(pages[0]), alpha)


def test_colours_go_by_the_profile(tmp_path):
    # The same colours, as Adobe RGB's like has them.
    srgb = photo(20, 30)
    image = pyvips.Image.new_from_array(srgb).copy(interpretation="srgb")
    other = image.icc_transform("p3", input_profile="srgb")
    other.write_to_file(str(tmp_path / "p3.png"))
    with Pages(tmp_path / "p3.png") as pages:
        assert np.abs(pages[0].pixels.astype(int) - srgb).max() > 10
        assert np.abs(pictures.shown(pages[0]).astype(int) - srgb).max() <= 3


@pytest.mark.parametrize("band", [2**22, 1])
@pytest.mark.parametrize("size", [(40, 60), (11, 11), (12, 500), (10, 60)])
def test_scores_in_bands_are_those_of_the_whole(tmp_path, monkeypatch, band, size):
    monkeypatch.setattr(scores, "_PIXELS", band)
    clean, spoilt = photo(*size), noisy(photo(*size))
    paths = [write(tmp_path / name, pixels) for name, pixels in (("c.png", clean), ("s.png", spoilt))]
    with Pages(paths[0]) as original, Pages(paths[1]) as other:
        told = scores.psnr_and_ssim(other[0], original[0])
    assert told[0] == pytest.approx(evaluation.psnr(spoilt / 255, clean / 255))
    if min(size) < 11:
        assert told[1] is None
    else:
        assert told[1] == pytest.approx(evaluation.ssim(spoilt / 255, clean / 255))


def test_equal_photos(tmp_path):
    path = write(tmp_path / "a.png", photo())
    write_gallery(tmp_path / "page.html", [Comparison("same", path, path, path, seconds=1.5)])
    [entry] = data_of(tmp_path / "page.html")[0]["entries"]
    assert entry["scores"] == {"before": [None, 1], "after": [None, 1]} and entry["seconds"] == 1.5


def test_restore_makes_a_page_of_what_it_did(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "in" / f"{name}.png", noisy(photo(16, 24)))
    (tmp_path / "in" / "c.png").write_bytes(b"no image")
    page, given = tmp_path / "page.html", (tmp_path / "in", tmp_path / "out")
    run("restore", tmp_path / "in" / "a.png", tmp_path / "out" / "a.png")
    result = run("restore", *given, "--gallery", page)
    assert result.exit_code == 1 and f"{page}: 2 photos, " in result.stdout
    data, shown = data_of(page)
    skipped, restored = data["entries"]
    assert [entry["name"] for entry in data["entries"]] == ["a.png", "b.png"]
    assert str(tmp_path) not in page.read_text()
    assert skipped["seconds"] is None and restored["seconds"] > 0
    assert restored["notes"][0].startswith("Noise of ") and restored["notes"][1].startswith("Strength ")
    pixels = cv2.imread(str(tmp_path / "out" / "b.png"))[:, :, ::-1]
    assert np.array_equal(shown[restored["views"][0]["pictures"]["after"]], pixels)
    result = run("restore", *given, "--gallery", page, "--json", "--overwrite")
    assert [json.loads(line)["kind"] for line in result.stdout.splitlines()] == [*["file"] * 3, "summary"]
    assert f"{page}: 2 photos, " in result.stderr
    assert run("restore", *given, "--gallery", tmp_path / "in" / "a.png").exit_code == 2


def test_help_tells_the_limit_that_is_used():
    assert cli.MAX_MB == MAX_MB


def test_pages_and_damage_are_told(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([photo()] * 3), photometric="rgb")
    jpeg = write(tmp_path / "b.jpg", photo(200, 200)).read_bytes()
    (tmp_path / "b.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    pairs = [Comparison(name, *[tmp_path / name] * 2) for name in ("a.tif", "b.jpg")]
    write_gallery(tmp_path / "page.html", pairs)
    pages, damaged = (entry["notes"] for entry in data_of(tmp_path / "page.html")[0]["entries"])
    assert pages == ["The first of 3 pages or frames"]
    assert damaged[0].startswith("The file before is damaged: ") and len(damaged) == 2


def test_no_photos(tmp_path):
    with pytest.raises(ImageError, match="none were given"):
        write_gallery(tmp_path / "page.html", [])
