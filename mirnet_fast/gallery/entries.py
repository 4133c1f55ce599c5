"""What the page knows of one comparison: its pictures, within so many bytes, and its numbers."""

import base64
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..images import ImageError, Page, Pages
from . import pictures
from .matching import Comparison
from .scores import psnr_and_ssim

FULL_PIXELS = 2**24  # more are shown smaller, and parts of them as they are
_THUMBNAIL = 176
_HEAT = 1600


class Rung(NamedTuple):
    """What is shown of a photo that is not shown whole: a smaller one, and square parts of its own pixels."""

    longest: int
    parts: int
    side: int


# Tried from the first on, until one fits.
LADDER = (
    Rung(2560, 6, 1024),
    Rung(2048, 4, 640),
    Rung(1600, 3, 512),
    Rung(1280, 2, 384),
    Rung(800, 1, 256),
    Rung(400, 0, 0),
    Rung(200, 0, 0),
)


@dataclass
class Entry:
    """One comparison of the page.

    Attributes:
        fields: for the page's script.
        pictures: {number: WebP in Base64} that `fields` name.
    """

    fields: dict[str, Any]
    pictures: dict[int, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes that all pictures take in the page."""
        return len(self.fields["thumbnail"]) + sum(map(len, self.pictures.values()))


@dataclass(frozen=True)
class Shown:
    """A comparison as pixels.

    Attributes:
        photos: {"before", "after", "clean": (H, W, 3 or 4) uint8}.
        differences: {"change", "error_before", "error_after": (H, W) uint8}, the errors where there is a
            clean one.
        scales: {name of a difference: the end of its scale in grey levels of 255}.
    """

    photos: dict[str, np.ndarray]
    differences: dict[str, np.ndarray]
    scales: dict[str, int]

    @staticmethod
    def of(photos: dict[str, np.ndarray]) -> "Shown":
        changed = pictures.difference(photos["before"], photos["after"])
        scales = {"change": pictures.scale_of(changed)}
        errors = {}
        if "clean" in photos:
            errors = {
                f"error_{name}": pictures.difference(photos[name], photos["clean"])
                for name in ("before", "after")
            }
            scales |= dict.fromkeys(errors, pictures.scale_of(*errors.values()))
        return Shown(photos, {"change": changed, **errors}, scales)

    def whole(self) -> dict[str, bytes]:
        """The very pixels of the photos, and their differences as heat maps."""
        return {name: pictures.exact(array) for name, array in self.photos.items()} | self._heat(_HEAT)

    def part(self, left: int, top: int, side: int) -> "Shown":
        def cut(arrays):
            return {name: array[top : top + side, left : left + side] for name, array in arrays.items()}

        return Shown(cut(self.photos), cut(self.differences), self.scales)

    def small(self, longest: int) -> dict[str, bytes]:
        """To be looked at only, the longer side at most `longest` pixels."""
        photos = {name: pictures.preview(array, longest) for name, array in self.photos.items()}
        return photos | self._heat(min(longest, _HEAT))

    def _heat(self, longest):
        return {
            name: pictures.preview(
                pictures.heat_map(pictures.smaller(array, longest), self.scales[name]), longest
            )
            for name, array in self.differences.items()
        }


def entry_of(comparison: Comparison, room: int, numbers: Iterator[int]) -> Entry:
    """The Entry of a comparison, of at most `room` bytes of pictures, but for the least that can be shown.

    Args:
        numbers: where the names of its pictures come from.

    Raises:
        ImageError: a file cannot be read, or they differ in size.
    """
    paths = {"before": comparison.before, "after": comparison.after, "clean": comparison.clean}
    with ExitStack() as files:
        opened = {
            name: files.enter_context(Pages(path, salvage=True))
            for name, path in paths.items()
            if path is not None
        }
        pages = {name: file[0] for name, file in opened.items()}
        count = len(opened["before"])
    _check_sizes(paths, pages)
    shown = Shown.of({name: pictures.shown(page) for name, page in pages.items()})
    fields = {
        "name": comparison.name,
        "width": pages["before"].width,
        "height": pages["before"].height,
        "notes": [*comparison.notes, *_notes(pages, count)],
        "seconds": comparison.seconds,
        "changed": pictures.root_mean_square(shown.differences["change"]),
        "scores": _scores(pages),
        "scales": shown.scales,
        "thumbnail": _text(pictures.preview(shown.photos["after"], _THUMBNAIL)),
    }
    entry = Entry(fields)
    for views in _attempts(shown, room):
        entry = Entry(fields | {"views": []})
        for view, images in views:
            named = {name: next(numbers) for name in images}
            entry.pictures |= {named[name]: _text(data) for name, data in images.items()}
            entry.fields["views"].append(view | {"pictures": named})
        if entry.size <= room:
            break
    return entry


def _notes(pages, count):
    if count > 1:
        yield f"The first of {count} pages or frames"
    for name, page in pages.items():
        if page.damage:
            yield f"The file {name} is damaged: {page.damage}"


def _text(data):
    return base64.b64encode(data).decode()


def _check_sizes(paths, pages):
    first = pages["before"]
    for name, page in pages.items():
        if (page.width, page.height) != (first.width, first.height):
            raise ImageError(
                f"{paths[name]} is {page.width} x {page.height} pixels, {paths['before']} "
                f"{first.width} x {first.height}; photos are compared pixel by pixel"
            )


def _scores(pages: dict[str, Page]):
    """{"before", "after": [PSNR or None where it is infinite, SSIM or None]}, where a clean one is known."""
    if "clean" not in pages:
        return {}
    scores = {name: psnr_and_ssim(pages[name], pages["clean"]) for name in ("before", "after")}
    return {name: [psnr if np.isfinite(psnr) else None, ssim] for name, (psnr, ssim) in scores.items()}


def _attempts(shown, room):
    """[(view, {name of a picture: WebP})] each, from the most that can be shown to the least."""
    height, width = shown.photos["before"].shape[:2]
    pixels = height * width
    # Half a byte a pixel is little for a photo without loss: what will not fit is not tried.
    if (
        max(height, width) <= pictures.LONGEST
        and pixels <= FULL_PIXELS
        and pixels * len(shown.photos) / 2 < room
    ):
        yield [(_view("full", width, height), shown.whole())]
    for rung in LADDER:
        factor = min(1, rung.longest / max(height, width))
        size = max(1, round(width * factor)), max(1, round(height * factor))
        views = [(_view("small", *size), shown.small(rung.longest))]
        places = pictures.striking_parts(
            shown.differences["change"], shown.photos["after"], rung.side, rung.parts
        )
        for left, top in places:
            part = shown.part(left, top, rung.side)
            down, across = part.differences["change"].shape
            views.append((_view("part", across, down, left, top), part.whole()))
        yield views


def _view(kind, width, height, left=0, top=0):
    return {"kind": kind, "width": width, "height": height, "left": left, "top": top}
