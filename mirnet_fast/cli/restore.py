"""mirnet-fast restore: images of any size."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._common import (
    Command,
    chosen_precision,
    device_option,
    network_config,
    network_options,
    precision_option,
    warnings_told,
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
@click.option("--task", help="What for, by a network that comes along; denoise if not given.")
@click.option("--weights", help="A checkpoint (.pth, .safetensors) instead of one that comes along.")
@click.option(
    "--strength",
    type=Strength(),
    show_default="auto for denoise, else 1",
    help="How much of the network's change to make; auto: by the noise of each image.",
)
@precision_option
@device_option
@network_options
def restore(
    inputs: tuple[str, ...],
    output: str,
    task: str | None,
    weights: str | Path | None,
    strength: float | str | None,
    precision: str,
    device: "torch.device",
    **options: Any,
) -> None:
    """Restore images of any size, 8 or 16 bit, grey or colour, with or without transparency.

    OUT is a file if there is one IN and OUT has a suffix, doesn't end in / and is no folder, else a folder
    that gets files of the same names. The network's shape is taken from the checkpoint. The exit status is 1
    if an image failed, and 130 after Ctrl-C; the others are written all the same.
    """
    from tqdm import tqdm

    from .. import pretrained
    from ..checkpoints import CheckpointError, load_checkpoint
    from ..images import ImageError
    from ..modules import MIRNet

    if weights is None:
        task = pretrained.DEFAULT if task is None else task
        if task not in pretrained.tasks():
            raise click.UsageError(
                f"--task must be one of those that come along, {', '.join(pretrained.tasks())}; got {task!r}"
            )
        weights = pretrained.weights_of(task)
        click.echo(f"weights: {weights.stem}, which comes with mirnet-fast, for the task {task} ({weights})")
    elif task is not None:
        raise click.UsageError("--task and --weights both choose the network; give one of them")
    if strength is None:
        strength = "auto" if task == "denoise" else 1.0
    elif strength == "auto" and task not in (None, "denoise"):
        raise click.UsageError(f"--strength auto goes by the noise and is for denoise; got --task {task}")
    config = network_config(weights, options)
    model = MIRNet(**config).eval()
    try:
        load_checkpoint(model, weights, key=options["key"])
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error
    model.to(device)
    chosen_precision(precision, model, device)
    place = Path(output)
    into_folder = len(inputs) > 1 or output.endswith(os.sep) or place.is_dir() or not place.suffix
    try:
        (place if into_folder else place.parent).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(str(error)) from error

    given = {_identity(path) for path in inputs} - {None}
    written, failed, stopped = set(), 0, False
    try:
        for path in tqdm(inputs, unit="image", disable=None):
            target = place / Path(path).name if into_folder else place
            try:
                there = _identity(target)
                if there in given:
                    raise ImageError(f"{path}: the result would overwrite the input {target}")
                if there in written:
                    raise ImageError(f"{path}: the result would overwrite that of another input, {target}")
                _restore_file(model, path, target, device, strength, precision)
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


def _restore_file(model, path, target, device, strength, precision):
    from tqdm import tqdm

    from .. import inference, noise
    from ..images import check_format, read_photo, write_photo

    photo = read_photo(path)
    check_format(target, photo)
    if strength == "auto":
        sigma = noise.estimate(photo.rgb)
        strength = noise.strength(sigma).item()
        tqdm.write(f"{path}: noise of {255 * sigma.item():.1f}/255, strength {strength:.2f}")
    with warnings_told(path):
        restored = inference.restore(model, photo.rgb.to(device), strength=strength, precision=precision)
    write_photo(target, dataclasses.replace(photo, rgb=restored))


def _identity(path):
    """What all names of one file have in common; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
