"""Fetch and prepare the photos of benches/photos.yaml: python benches/photos.py [FOLDER]

FOLDER, photos by default, gets train/ and held_out/, PNG files in sRGB. They come out of Debian packages, of
which none is installed (apt-get, dpkg-deb and the Debian release that the manifest names are needed), and of
Python packages that are. A photo is made upright, cut and scaled down as the manifest says, which also takes
its own noise and what JPEG did to it away. benches/photos.sha256 has the checksums of the packages, of their
files and of the pixels that come of them; what does not have its checksum is not written. What is there and
right is left alone.
"""

import argparse
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
import torch
import yaml
from pydantic import Field, StringConstraints, ValidationError, model_validator

from mirnet_fast._files import remove_halves, replaced
from mirnet_fast.images import ImageError, Photo, read_photo, write_photo
from mirnet_fast.training.fields import Count, Part
from mirnet_fast.training.recipe import problems

MANIFEST = Path(__file__).with_name("photos.yaml")
USES = ("train", "held_out")
Text = Annotated[str, StringConstraints(min_length=1)]


class PhotosError(Exception):
    """A photo is not to be had as the manifest says; the message names it."""


class Entry(Part):
    """A photo of a package."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")]
    use: Literal[USES] = "train"
    file: Text  # below the package's folder
    kind: Text  # what is to be seen
    author: Text
    licence: Text
    crop: tuple[Count, Count] | None = None  # width and height in pixels of the middle, before scaling
    scale: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def path(self):
        return f"{self.use}/{self.name}.png"


class Package(Part):
    """Where photos come from: a Debian package, or without a version an installed Python package."""

    name: Text
    version: Text | None = None
    folder: Text
    photos: tuple[Entry, ...] = Field(min_length=1)


class Manifest(Part):
    debian: Text
    packages: tuple[Package, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _each_once(self):
        for what, all_of_them in (
            ("package", [package.name for package in self.packages]),
            ("photo", [entry.name for package in self.packages for entry in package.photos]),
            ("file", [f"{p.name}: {p.folder}/{entry.file}" for p in self.packages for entry in p.photos]),
        ):
            twice = sorted({name for name in all_of_them if all_of_them.count(name) > 1})
            if twice:
                raise ValueError(f"the {what} {twice[0]} is there twice")
        return self


def read_manifest(path):
    """The Manifest in a YAML file.

    Raises:
        PhotosError: the file cannot be read, or a field is unknown, missing or does not fit.
    """
    try:
        return Manifest.model_validate(yaml.safe_load(path.read_bytes()))
    except ValidationError as error:
        raise PhotosError(f"{path}: {problems(error)}") from error
    except (OSError, yaml.YAMLError) as error:
        raise PhotosError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


class Checksums:
    """SHA-256 of packages, files and pixels by name, as in a file that sha256sum would write.

    Where `recording`, nothing is compared, and `write` keeps what came instead.
    """

    def __init__(self, path, recording):
        self.path, self.recording, self.found = path, recording, {}
        lines = [] if recording else path.read_text().splitlines()
        self.expected = {name: checksum for checksum, name in (line.split("  ", 1) for line in lines)}

    def check(self, name, data):
        """Raises PhotosError where `data`, bytes, is not what `name` was."""
        self.found[name] = hashlib.sha256(data).hexdigest()
        expected = self.expected.get(name, f"none yet in {self.path.name} (--write records it)")
        if not self.recording and self.found[name] != expected:
            raise PhotosError(f"{name} has the checksum {self.found[name]}, expected: {expected}")

    def write(self):
        with replaced(self.path) as new:
            new.write_text("".join(f"{self.found[name]}  {name}\n" for name in sorted(self.found)))


def fetch(package, debian, folder, checksums):
    """The folder below which the files of a package are, unpacked in `folder` if it is one of Debian's.

    Raises:
        PhotosError: it is not to be had, not in this version, or not what it was.
    """
    if package.version is None:
        spec = importlib.util.find_spec(package.name)
        if spec is None:
            raise PhotosError(f"the Python package {package.name} is not installed")
        return Path(spec.submodule_search_locations[0])
    asked = f"{package.name}={package.version}"
    _run("apt-get", "download", asked, cwd=folder, hint=f"; it is one of Debian {debian}: try apt-get update")
    [archive] = folder.glob("*.deb")
    checksums.check(asked, archive.read_bytes())
    _run("dpkg-deb", "-x", archive.name, "unpacked", cwd=folder)
    archive.unlink()
    return folder / "unpacked"


def _run(*command, cwd, hint=""):
    if shutil.which(command[0]) is None:
        raise PhotosError(f"there is no {command[0]} here: the photos come from Debian's packages")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if not line.startswith("W:")][-3:]
        raise PhotosError(f"{' '.join(command)}: {' '.join(said) or done.returncode}{hint}")


def _pixels(path):
    return (read_photo(path).rgb[0] * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def prepare(path, entry):
    """(H, W, 3) uint8 of the photo at `path`, upright, cut and scaled (OpenCV's INTER_AREA).

    Raises:
        ImageError, PhotosError: it cannot be read, or is smaller than the part to be cut out.
    """
    pixels = _pixels(path)
    height, width = pixels.shape[:2]
    if entry.crop:
        across, down = entry.crop
        if across > width or down > height:
            raise PhotosError(
                f"{entry.name}: crop is {across} x {down}, but {path.name} only {width} x {height} pixels"
            )
        left, top = (width - across) // 2, (height - down) // 2
        pixels = pixels[top : top + down, left : left + across]
    if entry.scale < 1:
        pixels = cv2.resize(pixels, None, fx=entry.scale, fy=entry.scale, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(pixels)


def _is_right(path, entry, checksums):
    try:
        checksums.check(entry.path, _pixels(path).tobytes())
    except (ImageError, PhotosError):  # not there, damaged, or of an older manifest
        return False
    return True


def make(manifest, out, checksums):
    """Write the photos of `manifest` that are not there yet, or not as they were, below `out`.

    Raises:
        PhotosError: something is not to be had, is not what it was, or lies in a folder but is not listed.
        ImageError, OSError: a photo cannot be read or written.
    """
    for use in USES:
        (out / use).mkdir(parents=True, exist_ok=True)
        remove_halves(out / use)
    listed = {entry.path for package in manifest.packages for entry in package.photos}
    strange = sorted({f"{use}/{path.name}" for use in USES for path in (out / use).iterdir()} - listed)
    if strange:
        raise PhotosError(f"{out / strange[0]} is none of the manifest's photos; remove it")
    for package in manifest.packages:
        wanted = [
            entry
            for entry in package.photos
            if checksums.recording or not _is_right(out / entry.path, entry, checksums)
        ]
        if not wanted:
            continue
        print(f"{package.name}: {len(wanted)} photos", flush=True)
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=out) as folder:
            root = fetch(package, manifest.debian, Path(folder), checksums)
            for entry in wanted:
                source = root / package.folder / entry.file
                name = f"{package.name}: {package.folder}/{entry.file}"
                if not source.is_file():
                    raise PhotosError(f"{name} is not in the package")
                checksums.check(name, source.read_bytes())
                pixels = prepare(source, entry)
                checksums.check(entry.path, pixels.tobytes())
                rgb = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
                write_photo(out / entry.path, Photo(rgb=rgb))


def credits(manifest):
    """A table in Markdown: whose photos they are."""
    rows = [("photo", "use", "author", "licence", "package"), ("---",) * 5]
    for use in USES:
        for package in manifest.packages:
            rows += [
                (entry.name, use.replace("_", " "), entry.author, entry.licence, package.name)
                for entry in package.photos
                if entry.use == use
            ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default="photos", metavar="FOLDER")
    parser.add_argument("--manifest", type=Path, default=MANIFEST)
    parser.add_argument("--write", action="store_true", help="make all anew and record their checksums")
    parser.add_argument("--credits", action="store_true", help="only print whose photos they are, as a table")
    given = parser.parse_args(arguments)
    try:
        manifest = read_manifest(given.manifest)
        if given.credits:
            print(credits(manifest))
            return
        checksums = Checksums(given.manifest.with_suffix(".sha256"), given.write)
        make(manifest, given.out, checksums)
        if given.write:
            checksums.write()
    except (PhotosError, ImageError, OSError) as error:
        sys.exit(f"photos: {error}")
    for use in USES:
        sizes = [cv2.imread(str(path)).shape[:2] for path in (given.out / use).glob("*.png")]
        area = sum(height * width for height, width in sizes)
        print(f"{given.out / use}: {len(sizes)} photos, {area / 1e6:.1f} megapixels")


if __name__ == "__main__":
    main()
