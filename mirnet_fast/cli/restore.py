"""mirnet-fast restore: images of any size, by file, folder or pattern."""

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ._common import (
    Command,
    chosen_precision,
    device_option,
    network_file,
    network_of,
    network_options,
    precision_option,
    weights_options,
)
from .gallery import MAX_MB, PagePath, of_records, write_page

if TYPE_CHECKING:
    import torch

DONE, FAILED, NOTHING, INTERRUPTED = 0, 1, 3, 130  # exit statuses; 2 is click's, of wrong options


class Strength(click.ParamType):
    """A number from 0 to 1, or "auto"."""

    name = "0..1|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        if value == "auto":
            return value
        try:
            number = float(value)
        except ValueError:
            number = -1
        if not 0 <= number <= 1:
            self.fail(f"{value!r} is neither a number from 0 to 1 nor 'auto'", param, ctx)
        return number


@click.command(cls=Command)
@click.argument("paths", nargs=-1, required=True, metavar="IN... [OUT]")
@weights_options
@click.option(
    "--strength",
    type=Strength(),
    show_default="auto for denoise, else 1",
    help="How much of the network's change to make; auto: by the noise of each image.",
)
@precision_option
@click.option(
    "--self-ensemble", is_flag=True, help="The mean over eight orientations, in eight times the time."
)
@click.option(
    "--memory",
    help="What an image may take, such as 4G; what is free if not given. Large ones are done in strips.",
)
@click.option(
    "--tile",
    type=click.IntRange(1),
    metavar="N",
    help="Large images in tiles of at most N x N pixels: not exact, in little memory. Not with --memory.",
)
@click.option(
    "--suffix",
    metavar="_NAME",
    help="Write beside each IN, with this added to the name, such as _restored; there is no OUT then.",
)
@click.option("--format", help="What the results are, such as png; if not given, what each IN is.")
@click.option(
    "--skip-existing/--overwrite",
    default=True,
    show_default=True,
    help="Whether a result that is there already is left, so that a run goes on where one before it ended.",
)
@click.option("--salvage", is_flag=True, help="Restore damaged images as far as they go, too, and name them.")
@click.option("--limit-pixels", type=click.IntRange(1), help="Of an image, at most.  [default: 2**30]")
@click.option("--limit-bytes", type=click.IntRange(1), help="Of a file, at most.  [default: 2**32]")
@click.option(
    "--json", "as_json", is_flag=True, help="A line of JSON for each file, and one for all of them."
)
@click.option(
    "--ray",
    "address",
    metavar="auto|ADDRESS",
    help="On a Ray cluster; auto: the one that this machine is part of, or all of this machine.",
)
@click.option("--workers", type=click.IntRange(1), help="With --ray: how many, at most.  [default: as fit]")
@click.option(
    "--worker-cpus",
    type=click.FloatRange(0, min_open=True),
    help="With --ray: of each worker.  [default: 1 beside a GPU, else up to 4]",
)
@click.option(
    "--worker-gpus",
    type=click.FloatRange(0),
    help="With --ray: of each worker; 0.5: two share one.  [default: 1 where there are some]",
)
@click.option(
    "--gallery",
    type=PagePath(),
    help="Also write a page of HTML that shows all of them before and after.",
)
@device_option
@network_options
def restore(
    paths: tuple[str, ...],
    task: str | None,
    weights: str | None,
    strength: float | str | None,
    precision: str,
    self_ensemble: bool,
    memory: str | None,
    tile: int | None,
    suffix: str | None,
    format: str | None,
    skip_existing: bool,
    salvage: bool,
    limit_pixels: int | None,
    limit_bytes: int | None,
    as_json: bool,
    address: str | None,
    workers: int | None,
    worker_cpus: float | None,
    worker_gpus: float | None,
    gallery: Path | None,
    device: "torch.device",
    **options: Any,
) -> None:
    """Restore images of any size, grey or colour, with or without transparency, page by page.

    JPEG, PNG, TIFF, WebP, GIF, AVIF, BMP, PPM and JPEG 2000 are read and written, raw files of cameras read,
    HEIC where libvips was built for it. Depth, colour space, EXIF, XMP, ICC profile and quality stay.

    IN is a file, a folder, which stands for the images in it and below it, or a pattern (*, ?, **). OUT is a
    file if there is one IN and OUT has a suffix, doesn't end in / and is no folder, else a folder; what was
    found in a folder keeps its path below it. The network's shape is taken from the checkpoint.

    No input is overwritten, and every result is written whole or not at all. The exit status is 0 if all
    results are there, 1 if an image failed (the others are restored all the same), 2 for wrong options, 3 if
    there was no image, 130 after Ctrl-C.
    """
    from .. import collection, pretrained
    from ..images import FORMATS
    from ..restorer import Restorer
    from ._report import Report

    if format is not None and f".{format}" not in FORMATS:
        names = ", ".join(name[1:] for name in FORMATS)
        raise click.UsageError(f"--format must be one of {names}; got {format!r}")
    if suffix is None and len(paths) < 2:
        raise click.UsageError("Missing OUT, or --suffix for results beside their inputs")
    if suffix is not None and (not suffix or os.path.basename(suffix) != suffix):
        raise click.UsageError(f"--suffix must be part of a file's name, such as _restored; got {suffix!r}")
    if address is None and (workers, worker_cpus, worker_gpus) != (None, None, None):
        raise click.UsageError("--workers, --worker-cpus and --worker-gpus need --ray")
    given = click.get_current_context().get_parameter_source("device") is not ParameterSource.DEFAULT
    if worker_gpus is None and given:
        worker_gpus = 0 if device.type == "cpu" else 1
    inputs, output = (paths, None) if suffix is not None else (paths[:-1], paths[-1])
    limits = {"pixels": limit_pixels, "bytes": limit_bytes}
    how = collection.How(not skip_existing, salvage, _limits(**limits))
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        chosen = network_file(task, weights)
        if weights is None and task is None:
            task = pretrained.DEFAULT
        if strength is None:
            strength = "auto" if task == "denoise" else 1.0
        elif strength == "auto" and task not in (None, "denoise"):
            raise click.UsageError(f"--strength auto goes by the noise and is for denoise; got --task {task}")
        network = network_of(chosen, options)
        if address is None:
            chosen_precision(precision, network.to(device), device)
    settings: dict[str, Any] = {
        "precision": precision,
        "strength": strength,
        "self_ensemble": self_ensemble,
        "memory": memory,
        "tile": tile,
    }
    try:
        restorer = Restorer(network, device=device, **settings) if address is None else None
    except ValueError as error:
        raise click.UsageError(f"--{error}") from error
    try:
        listing = collection.listed(inputs, output, suffix or "", format)
    except collection.ListingError as error:
        raise click.UsageError(str(error)) from error
    records = []
    total = len(listing.items) + len(listing.settled)
    with Report(total, output or "", as_json) as report:
        for note in listing.notes:
            report.warn(note)

        def tell(record):
            report.tell(record)
            if gallery is not None:
                records.append(record)

        try:
            if restorer is not None:
                summary = collection.restore_files(
                    listing.items, restorer, how, tell, listing.settled, report.watch
                )
            else:
                each = collection.Workers(workers, worker_cpus, worker_gpus)
                summary = _on_ray(
                    listing.items,
                    network,
                    how,
                    tell,
                    listing.settled,
                    address=address,
                    workers=each,
                    **settings,
                )
        except KeyboardInterrupt:  # the second: what is being written has a name that the next run removes
            os._exit(INTERRUPTED)
    report.end(summary)
    if summary.interrupted:
        sys.exit(INTERRUPTED)
    compared = of_records(records)
    shown = not compared or gallery is None or write_page(gallery, compared, "Restored", MAX_MB, err=as_json)
    failed = summary.failed or summary.stopped or not shown
    sys.exit(FAILED if failed else DONE if total else NOTHING)


def _on_ray(*arguments: Any, **options: Any) -> Any:
    from .. import collection

    try:
        # Ray tells on stdout, for many lines each, of workers that end; so do the records.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            return collection.restore_on_ray(*arguments, **options)
    except (ImportError, collection.ClusterError) as error:
        raise click.ClickException(str(error)) from error
    except ValueError as error:
        raise click.UsageError(f"--{error}") from error


def _limits(**given: int | None) -> Any:
    from ..images import Limits

    return Limits(**{name: value for name, value in given.items() if value is not None})
