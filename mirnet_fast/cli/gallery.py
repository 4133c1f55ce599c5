"""mirnet-fast gallery: photos before and after in a page of HTML."""

import sys
from pathlib import Path

import click


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--clean", type=click.Path(path_type=Path), help="The originals, if there are some: file or folder."
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), default="gallery.html", show_default=True
)
@click.option("--title", default="Before and after", show_default=True, help="Of the page.")
@click.option(
    "--max-mb",
    type=click.FloatRange(1),
    default=64,
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
    from tqdm import tqdm

    from ..gallery import comparisons, write_gallery
    from ..images import ImageError

    try:
        compared, alone = comparisons(before, after, clean)
        out.parent.mkdir(parents=True, exist_ok=True)
        written = write_gallery(
            out, compared, title, max_mb, lambda items: tqdm(items, unit="photo", disable=None)
        )
    except (ImageError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    for message in alone:
        click.echo(f"warning: {message}", err=True)
    for comparison, reason in written.failed:
        message = reason if str(comparison.before) in reason else f"{comparison.before}: {reason}"
        click.echo(f"error: {message}", err=True)
    some = written.photos - written.whole
    smaller = f", {some} of them smaller, with parts in full" if some else ""
    click.echo(f"{out}: {written.photos} photos{smaller}, {written.size / 1e6:.1f} MB")
    if written.failed:
        sys.exit(1)
