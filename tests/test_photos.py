"""benches/photos.py on a package made here, which an apt-get made here hands out."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from mirnet_fast.training import read_recipe

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("photos", ROOT / "benches" / "photos.py")
photos = importlib.util.module_from_spec(spec)
spec.loader.exec_module(photos)

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb makes the package")

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
SHARED = {"kind": "noise", "author": "A. Nobody", "licence": "CC0-1.0"}
MANIFEST = {
    "debian": "99 (none)",
    "packages": [
        {
            "name": "scenes",
            "version": "1:2-3",
            "folder": "usr/share/scenes",
            "photos": [
                {"name": "half", "file": "a.png", "scale": 0.5, **SHARED},
                {"name": "middle", "file": "b.png", "crop": [10, 6], "use": "held_out", **SHARED},
            ],
        },
        {
            "name": "skimage",
            "folder": "data",
            "photos": [{"name": "cat", "file": "chelsea.png", "use": "held_out", **SHARED}],
        },
    ],
}


def command(folder, name, script):
    """A command of that name in `folder`, before all others."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


class Place:
    """A folder with a manifest, an apt-get of its own, and photos to come."""

    def __init__(self, folder):
        self.folder, self.manifest, self.out = folder, folder / "photos.yaml", folder / "photos"
        self.sums = folder / "photos.sha256"
        tree = folder / "tree"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN" / "control").write_text(
            "Package: scenes\nVersion: 1:2-3\nArchitecture: all\nMaintainer: nobody\nDescription: none\n"
        )
        scenes = tree / "usr" / "share" / "scenes"
        scenes.mkdir(parents=True)
        cv2.imwrite(str(scenes / "a.png"), PIXELS[:, :, ::-1])
        cv2.imwrite(str(scenes / "b.png"), 255 - PIXELS[:, :, ::-1])
        deb = folder / "scenes_1%3a2-3_all.deb"
        subprocess.run(["dpkg-deb", "-b", "--root-owner-group", tree, deb], check=True, capture_output=True)
        command(folder / "bin", "apt-get", f'[ "$*" = "download scenes=1:2-3" ] && cp "{deb}" .')
        self.describe(MANIFEST)

    def describe(self, manifest):
        self.manifest.write_text(yaml.safe_dump(manifest))

    def run(self, *options):
        photos.main([os.path.relpath(self.out), "--manifest", str(self.manifest), *options])

    def fails(self, *options):
        """What it says."""
        with pytest.raises(SystemExit) as error:
            self.run(*options)
        return error.value.code

    def written(self):
        return {str(path.relative_to(self.out)): path for path in self.out.rglob("*") if path.is_file()}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    place = Place(tmp_path)
    place.run("--write")
    return place


def pixels(path):
    return cv2.imread(str(path))[:, :, ::-1]


@needs_dpkg
def test_photos_are_cut_and_scaled(place, capsys):
    assert set(place.written()) == {"train/half.png", "held_out/middle.png", "held_out/cat.png"}
    means = PIXELS.reshape(12, 2, 16, 2, 3).mean((1, 3))
    assert np.abs(pixels(place.out / "train/half.png") - means).max() <= 0.5
    assert np.array_equal(pixels(place.out / "held_out/middle.png"), 255 - PIXELS[9:15, 11:21])
    assert pixels(place.out / "held_out/cat.png").shape == (300, 451, 3)
    names = [line.split("  ", 1)[1] for line in place.sums.read_text().splitlines()]
    assert names == sorted(
        {
            "scenes=1:2-3",
            "scenes: usr/share/scenes/a.png",
            "scenes: usr/share/scenes/b.png",
            "skimage: data/chelsea.png",
            *place.written(),
        }
    )
    place.run()
    assert "held_out: 2 photos, 0.1 megapixels" in capsys.readouterr().out


@needs_dpkg
def test_what_is_right_is_left_alone(place):
    before = {path: path.stat().st_mtime_ns for path in place.written().values()}
    command(place.folder / "bin", "apt-get", "exit 1")
    place.run()
    assert {path: path.stat().st_mtime_ns for path in place.written().values()} == before


@needs_dpkg
@pytest.mark.parametrize("damage", ["missing", "cut off", "another"])
def test_what_is_not_right_is_made_again(place, damage):
    half, middle = place.out / "train/half.png", place.out / "held_out/middle.png"
    right, kept = half.read_bytes(), middle.stat().st_mtime_ns
    if damage == "missing":
        half.unlink()
    else:
        half.write_bytes(right[:-20] if damage == "cut off" else middle.read_bytes())
    (half.parent / ".new-01234567.png").touch()  # of a process that was killed
    place.run()
    assert half.read_bytes() == right and middle.stat().st_mtime_ns == kept
    assert len(place.written()) == 3


@needs_dpkg
@pytest.mark.parametrize("name", ["scenes=1:2-3", "scenes: usr/share/scenes/a.png", "train/half.png"])
@pytest.mark.parametrize("recorded", ["another", "none"])
def test_a_wrong_checksum_is_named_and_nothing_written(place, name, recorded):
    shutil.rmtree(place.out)
    lines = [line.split("  ", 1) for line in place.sums.read_text().splitlines()]
    sums = {found: checksum for checksum, found in lines}
    right = sums.pop(name)
    if recorded == "another":
        sums[name] = right[::-1]
    place.sums.write_text("".join(f"{checksum}  {found}\n" for found, checksum in sums.items()))
    said = place.fails()
    assert f"{name} has the checksum {right}" in said
    assert (right[::-1] if recorded == "another" else "--write records it") in said
    assert place.written() == {} and list(place.out.glob(".*")) == []


@needs_dpkg
def test_a_photo_as_large_as_another_is_not_taken_for_it(place):
    """The checksum is one of pixels, of this photo."""
    half = place.out / "train/half.png"
    cv2.imwrite(str(half), 255 - cv2.imread(str(half)))
    command(place.folder / "bin", "apt-get", "echo 'E: no network' >&2; exit 100")
    assert "E: no network" in place.fails()


@needs_dpkg
def test_a_package_that_is_not_to_be_had(place, monkeypatch):
    shutil.rmtree(place.out)
    command(
        place.folder / "bin", "apt-get", "echo 'W: as root' >&2; echo 'E: Version not found' >&2; exit 100"
    )
    said = place.fails()
    assert said.startswith(
        "photos: apt-get download scenes=1:2-3: E: Version not found; it is one of Debian 99"
    )
    monkeypatch.setenv("PATH", str(place.folder))
    assert "there is no apt-get here" in place.fails()
    assert place.written() == {}


def changed(part, **fields):
    """MANIFEST with other fields in its package, or in its package's first photo."""
    first, *others = MANIFEST["packages"]
    if part == "photo":
        first = first | {"photos": [first["photos"][0] | fields, *first["photos"][1:]]}
    else:
        first = first | fields
    return MANIFEST | {"packages": [first, *others]}


@needs_dpkg
@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (changed("photo", file="c.png"), "scenes: usr/share/scenes/c.png is not in the package"),
        (changed("photo", crop=[40, 6]), "half: crop is 40 x 6, but a.png only 32 x 24 pixels"),
        (changed("photo", scale=1.5), "photos.0.scale: Input should be less than or equal to 1"),
        (changed("photo", name="Half"), "photos.0.name"),
        (changed("photo", author=""), "photos.0.author"),
        (changed("photo", colour="red"), "photos.0.colour: Extra inputs are not permitted"),
        (changed("photo", name="middle"), "the photo middle is there twice"),
        (changed("photo", file="b.png"), "the file scenes: usr/share/scenes/b.png is there twice"),
        (changed("package", name="skimage"), "the package skimage is there twice"),
        (changed("package", name="no_such_module", version=None), "no_such_module is not installed"),
        ("a: [", "cannot be read"),
    ],
)
def test_what_is_wrong_in_a_manifest_is_named(place, manifest, message):
    shutil.rmtree(place.out)
    place.manifest.write_text(manifest if isinstance(manifest, str) else yaml.safe_dump(manifest))
    sums = place.sums.read_bytes()
    assert message in place.fails("--write")
    assert not place.out.exists() or place.written() == {}
    assert place.sums.read_bytes() == sums


@needs_dpkg
def test_a_photo_that_is_not_listed_is_named(place):
    """As one that has gone from those for training to those for testing."""
    shutil.copy(place.out / "held_out/cat.png", place.out / "train/cat.png")
    assert "train/cat.png is none of the manifest's photos" in place.fails()


def test_credits(capsys):
    photos.main(["--credits"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| photo | use | author | licence | package |"
    assert "| dragonfly | train | Bolly | CC-BY-SA-4.0 | lomiri-wallpapers-16.04 |" in lines
    assert "| chelsea | held out | Stéfan van der Walt | CC0-1.0 | skimage |" in lines
    uses = [line.split(" | ")[1] for line in lines[2:]]
    assert uses == sorted(uses, reverse=True) and {*uses} == {"train", "held out"}


def test_every_photo_has_its_checksums():
    manifest = photos.read_manifest(photos.MANIFEST)
    recorded = photos.Checksums(photos.MANIFEST.with_suffix(".sha256"), recording=False).expected
    expected = {f"{p.name}={p.version}" for p in manifest.packages if p.version}
    for package in manifest.packages:
        for entry in package.photos:
            expected |= {entry.path, f"{package.name}: {package.folder}/{entry.file}"}
    assert recorded.keys() == expected


def test_no_recipe_trains_on_a_photo_for_testing():
    manifest = photos.read_manifest(photos.MANIFEST)
    held_out = {e.name for package in manifest.packages for e in package.photos if e.use == "held_out"}
    assert held_out >= {"grace_hopper", "fruits", "baboon", "home", "astronaut", "chelsea"}
    for path in (ROOT / "mirnet_fast" / "pretrained").glob("*.yaml"):
        carried = {photo.partition(":")[2] for photo in read_recipe(path).train.photos or []}
        assert not carried & held_out
