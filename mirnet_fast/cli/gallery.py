"""mirnet-fast gallery: photos before and after in a page of HTML."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..collection import Record
    from ..gallery import Comparison

MAX_MB = 64.0  # gallery.MAX_MB, which --help needs without torch


class PagePath(click.Path):
    """The path of a page of HTML to write, so that nothing else is overwritten."""

    name = "page.html"

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path.suffix.lower() not in (".html", ".htm"):
            self.fail(f"{str(path)!r} must end in .html", param, ctx)
        return path


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--clean", type=click.Path(path_type=Path), help="The originals, if there are some: file or folder."
)
@click.option("--out", type=PagePath(), default="gallery.html", show_default=True)
@click.option("--title", default="Before and after", show_default=True, help="Of the page.")
@click.option(
    "--max-mb",
    type=click.FloatRange(1),
    default=MAX_MB,
    show_default=True,
    help="Size of the page at most; what does not fit is shown smaller, with parts of it in full.",
)
def gallery(before: Path, after: Path, clean: Path | None, out: Path, title: str, max_mb: float) -> None:
    """Photos before and after in one page of HTML, to look at in a browser.

    It has a divider between the two, zoom to the pixels, and what differs. BEFORE and AFTER are two files, or
    two folders with files of the same names; so is what --clean names, and PSNR and SSIM are then told. The
    page needs nothing else, neither a server nor the network. The exit status is 1 if a photo could not be
    shown; the others are all the same.
    """
    from ..gallery import comparisons
    from ..images import ImageError

    try:
        compared, alone = comparisons(before, after, clean)
    except ImageError as error:
        raise click.ClickException(str(error)) from error
    for message in alone:
        click.echo(f"warning: {message}", err=True)
    if not write_page(out, compared, title, max_mb):
        sys.exit(1)


def of_records(records: "Iterable[Record]") -> "list[Comparison]":
    """What `restore` made, and what of it was there already, of files here and not at URLs.

    They are called by their paths below the folder that all are in: where that is, the page does not tell.
    """
    from ..collection import RESTORED
    from ..gallery import Comparison

    here = [record for record in records if record.output and _is_here(record.input, record.output)]
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(r.input)) for r in here]) if here else ""
    compared = []
    for record in here:
        notes = list(record.notes)
        seconds = record.seconds if record.status == RESTORED else None
        if record.noise is not None:
            notes.append(f"Noise of {record.noise:.1f}/255")
        if record.strength is not None:
            notes.append(f"Strength {record.strength:.2f}")
        name = Path(os.path.relpath(record.input, folder)).as_posix()
        files = Path(record.input), Path(str(record.output))
        compared.append(Comparison(name, *files, seconds=seconds, notes=tuple(notes)))
    return compared


def _is_here(*paths):
    return all(os.path.isfile(path) for path in paths)


def write_page(out: Path, compared: "list[Comparison]", title: str, max_mb: float, err: bool = False) -> bool:
    """Writes the page and says so, to stderr if `err`; whether all photos are in it."""
    from .._progress import followed
    from ..gallery import write_gallery
    from ..images import ImageError

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        written = write_gallery(
            out, compared, title, max_mb, lambda items: followed(items, len(compared), "photos")
        )
    except (ImageError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    for comparison, reason in written.failed:
        message = reason if str(comparison.before) in reason else f"{comparison.before}: {reason}"
        click.echo(f"error: {message}", err=True)
    some = written.photos - written.whole
    smaller = f", {some} of them smaller, with parts in full" if some else ""
    plural = "s" * (written.photos != 1)
    click.echo(f"{out}: {written.photos} photo{plural}{smaller}, {written.size / 1e6:.1f} MB", err=err)
    return not written.failed
