"""What is done with photos that were handed in; knows nothing of the page."""

import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import collection
from ..gallery import Comparison, pictures, write_gallery
from ..images import FORMATS, ImageError, Limits, Pages
from ..restorer import Restorer

# Of a photo handed in: larger ones than cameras make would keep everyone else waiting.
LIMITS = Limits(pixels=2**27, bytes=2**28)
_SHOWN = 2048  # the longer side of what is shown
_PAGE = "before_and_after.html"
_PREFIX = "run-"
KEPT = 7200  # seconds that results can be fetched


@dataclass
class Outcome:
    """What became of a few photos.

    Attributes:
        records: of each, in order.
        files: the results.
        shown: {name: (before, after)}, small ones for a browser.
        page: all of them in a page of HTML, or None where there is none.
    """

    records: list[collection.Record] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    shown: dict[str, tuple[str, str]] = field(default_factory=dict)
    page: str | None = None


def restored(
    paths: Sequence[str],
    restorer: Restorer,
    folder: str | Path,
    limits: Limits = LIMITS,
    tell: Callable[[collection.Record], object] = lambda record: None,
) -> Outcome:
    """Restore files into a new folder below `folder`; what fails is told by its record.

    Results of earlier calls go after `KEPT` seconds.

    Args:
        tell: called with what became of each.
    """
    _forget(Path(folder))
    place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
    items = [collection.Item(path, str(target)) for path, target in _targets(paths, place / "restored")]
    outcome, compared = Outcome(), []

    def take(record):
        outcome.records.append(record)
        tell(record)

    how = collection.How(overwrite=True, limits=limits)
    collection.restore_files(items, restorer, how, take)
    for number, record in enumerate(outcome.records):
        if record.status != collection.RESTORED or record.output is None:
            continue
        outcome.files.append(record.output)
        name = Path(record.output).name
        shown = place / f"{number}_before.webp", place / f"{number}_after.webp"
        for path, small in zip((record.input, record.output), shown, strict=True):
            with Pages(path, limits=limits) as pages:
                small.write_bytes(pictures.preview(pictures.shown(pages[0]), _SHOWN))
        outcome.shown[name] = str(shown[0]), str(shown[1])
        compared.append(Comparison(name, Path(record.input), Path(record.output), seconds=record.seconds))
    if compared:
        try:
            write_gallery(place / _PAGE, compared)
            outcome.page = str(place / _PAGE)
        except (ImageError, ValueError):  # so many that they do not fit into a page
            pass
    return outcome


def _targets(paths, folder):
    """[(path, where its result goes)], each another one; a TIFF where its own format is only read."""
    taken = set()
    for path in map(Path, paths):
        suffix = path.suffix if path.suffix.lower() in FORMATS else ".tif"
        names = (f"{path.stem}{f'_{i}' if i else ''}{suffix}" for i in itertools.count())
        name = next(name for name in names if name.lower() not in taken)
        taken.add(name.lower())
        yield str(path), folder / name


def _forget(folder):
    for old in folder.glob(f"{_PREFIX}*"):
        if time.time() - old.stat().st_mtime > KEPT:
            shutil.rmtree(old, ignore_errors=True)
