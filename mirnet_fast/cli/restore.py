"""mirnet-fast restore: images of any size."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._common import (
    Command,
    chosen_precision,
    device_option,
    network_file,
    network_of,
    network_options,
    precision_option,
    warnings_told,
    weights_options,
)

if TYPE_CHECKING:
    import torch


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
@click.argument("inputs", nargs=-1, required=True, metavar="IN...")
@click.argument("output", metavar="OUT", type=click.Path())
@weights_options
@click.option(
    "--strength",
    type=Strength(),
    show_default="auto for denoise, else 1",
    help="How much of the network's change to make; auto: by the noise of each image.",
)
@precision_option
@click.option(
    "--format",
    "suffix",
    help="What the files in the folder OUT are, such as png; if not given, what each IN is.",
)
@click.option("--salvage", is_flag=True, help="Restore damaged images as far as they go, too, and name them.")
@device_option
@network_options
def restore(
    inputs: tuple[str, ...],
    output: str,
    task: str | None,
    weights: str | None,
    strength: float | str | None,
    precision: str,
    suffix: str | None,
    salvage: bool,
    device: "torch.device",
    **options: Any,
) -> None:
    """Restore images of any size, grey or colour, with or without transparency, page by page.

    JPEG, PNG, TIFF, WebP, GIF, AVIF, BMP, PPM and JPEG 2000 are read and written, raw files of cameras read,
    HEIC where libvips was built for it. Depth, colour space, EXIF, XMP, ICC profile and quality stay.

    OUT is a file if there is one IN and OUT has a suffix, doesn't end in / and is no folder, else a folder
    that gets files of the same names. The network's shape is taken from the checkpoint. The exit status is 1
    if an image failed, and 130 after Ctrl-C; the others are written all the same.
    """
    from tqdm import tqdm

    from .. import pretrained
    from ..images import FORMATS, ImageError

    if suffix is not None and f".{suffix}" not in FORMATS:
        names = ", ".join(name[1:] for name in FORMATS)
        raise click.UsageError(f"--format must be one of {names}; got {suffix!r}")
    chosen = network_file(task, weights)
    if weights is None and task is None:
        task = pretrained.DEFAULT
    if strength is None:
        strength = "auto" if task == "denoise" else 1.0
    elif strength == "auto" and task not in (None, "denoise"):
        raise click.UsageError(f"--strength auto goes by the noise and is for denoise; got --task {task}")
    model = network_of(chosen, options).to(device)
    chosen_precision(precision, model, device)
    place = Path(output)
    into_folder = len(inputs) > 1 or output.endswith(os.sep) or place.is_dir() or not place.suffix
    if suffix is not None and not into_folder:
        raise click.UsageError(f"--format is for a folder OUT; {place} has a suffix of its own")
    try:
        (place if into_folder else place.parent).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(str(error)) from error

    given = {_identity(path) for path in inputs} - {None}
    written, failed, stopped = set(), 0, False
    try:
        for path in tqdm(inputs, unit="image", disable=None):
            target = place / Path(path).name if into_folder else place
            target = target.with_suffix(f".{suffix}") if suffix else target
            try:
                there = _identity(target)
                if there in given:
                    raise ImageError(f"{path}: the result would overwrite the input {target}")
                if there in written:
                    raise ImageError(f"{path}: the result would overwrite that of another input, {target}")
                _restore_file(model, path, target, device, strength, precision, salvage)
                written.add(_identity(target))
            except (
                ImageError,
                OSError,
                RuntimeError,
                MemoryError,
                OverflowError,
            ) as error:  # RuntimeError: memory, of torch
                failed += 1
                message = str(error) if path in str(error) else f"{path}: {error}"
                tqdm.write(f"error: {message}", file=sys.stderr)
    except KeyboardInterrupt:
        stopped = True
    click.echo(f"{'stopped; ' * stopped}restored {len(written)} of {len(inputs)} images to {place}")
    if stopped or failed:
        sys.exit(130 if stopped else 1)


def _restore_file(model, path, target, device, strength, precision, salvage):
    from tqdm import tqdm

    from .. import inference, noise
    from ..images import ImageError, Pages, PhotoWriter, check_format

    with Pages(path, salvage) as pages:
        first = pages[0]
        check_format(target, first, len(pages))
        if len({(page.pixels.shape, page.dtype) for page in pages}) > 1:
            raise ImageError(f"{path}: its pages differ in size or kind, which cannot be written in one file")
        with PhotoWriter(target, first, len(pages)) as writer:
            for number, page in enumerate(pages):
                name = f"{path}, page {number + 1}" if len(pages) > 1 else path
                if page.damage:
                    tqdm.write(f"warning: {name} is damaged ({page.damage}); restored as far as it goes")
                photo = page.photo()
                given, by = photo.rgb.to(device), 1.0 if strength == "auto" else strength
                with warnings_told(name):
                    restored = inference.restore(model, given, strength=by, precision=precision)
                if strength == "auto":
                    sigma = noise.estimate(given, restored)
                    by = noise.strength(sigma).item()
                    restored = restored if by == 1 else given.lerp(restored, by)
                    tqdm.write(f"{name}: noise of {255 * sigma.item():.1f}/255, strength {by:.2f}")
                writer.put(0, restored, photo.alpha, number)


def _identity(path):
    """What all names of one file have in common; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
