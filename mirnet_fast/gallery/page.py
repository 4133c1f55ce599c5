"""The page: a template, its style and its script, and what is to be seen, in one file."""

import base64
import hashlib
import html
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from .._files import replaced
from .._version import __version__
from ..images import ImageError
from .entries import Entry, entry_of
from .matching import Comparison

MAX_MB = 64.0
# Of the template, style, script, and what is said of a photo beside its pictures.
_OVERHEAD = 100_000


@dataclass(frozen=True)
class Gallery:
    """What was written.

    Attributes:
        photos: how many comparisons are in the page.
        whole: of how many every pixel is in it.
        size: of the file in bytes.
        failed: [(comparison, why it is not there)].
    """

    photos: int
    whole: int
    size: int
    failed: list[tuple[Comparison, str]]


def write_gallery(
    path: str | Path,
    compared: Iterable[Comparison],
    title: str = "Before and after",
    max_mb: float = MAX_MB,
    progress: Callable[[Iterable[Comparison]], Iterable[Comparison]] = iter,
) -> Gallery:
    """Write a page of HTML that shows photos before and after, and needs nothing beside it.

    Each photo may take its share of what is left of `max_mb`: it is shown whole, every pixel as it is, or
    else smaller and with square parts of it that are shown so. A photo that cannot be read or compared is
    left out.

    Args:
        path: of the page; ends in .html.
        title: the page's; any text.
        max_mb: how large the page may be, in megabytes (10^6 bytes).
        progress: is given the comparisons and hands them on, as a bar does.

    Raises:
        ValueError: `path` does not end in .html, or not even the least of each photo fits into `max_mb`.
        ImageError: none of the photos can be shown.
        OSError: it cannot be written.
    """
    path, compared = Path(path), list(compared)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{path}: a gallery is a page of HTML, and its name must end in .html")
    numbers, entries, failed = itertools.count(), [], []
    room = int(max_mb * 1e6) - _OVERHEAD
    for index, comparison in enumerate(progress(compared)):
        try:
            entry = entry_of(comparison, max(0, room) // (len(compared) - index), numbers)
        except (ImageError, OSError, MemoryError) as error:
            failed.append((comparison, str(error)))
            continue
        entries.append(entry)
        room -= entry.size
        if room < 0:
            raise ValueError(
                f"max_mb: {len(compared)} photos do not fit into {max_mb:g} MB, as small as they are shown"
            )
    if not entries:
        reasons = "; ".join(reason for _, reason in failed) or "none were given"
        raise ImageError(f"{path} was not written, as no photo can be shown: {reasons}")
    # A file's name may be no text at all.
    page = page_of(entries, title).encode(errors="replace")
    with replaced(path) as new:
        new.write_bytes(page)
    whole = sum(entry.fields["views"][0]["kind"] == "full" for entry in entries)
    return Gallery(len(entries), whole, len(page), failed)


def page_of(entries: list[Entry], title: str) -> str:
    """The page's text. Its policy allows this script, this style, pictures inside, and no address."""
    style, script = (_part(name) for name in ("page.css", "page.js"))
    pictures = itertools.chain.from_iterable(entry.pictures.items() for entry in entries)
    data = {"title": title, "entries": [entry.fields for entry in entries]}
    parts = {
        "policy": f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        "title": html.escape(title),
        "version": html.escape(__version__),
        "style": style,
        "script": script,
        "pictures": "\n".join(
            f'<script type="text/plain" id="picture-{number}">{data}</script>' for number, data in pictures
        ),
        "data": _json(data),
    }
    pieces = _part("page.html").split("%%")  # text, name, text, name, ...
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def _part(name):
    return resources.files("mirnet_fast.gallery").joinpath(name).read_text()


def _hash(text):
    """As a policy names a script or style that stands in the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(data):
    """Inside of an element: nothing in it ends the element or begins another."""
    text = json.dumps(data, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
