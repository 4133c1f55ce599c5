"""mirnet-fast evaluate: how close photos are to others."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._common import (
    Command,
    chosen_precision,
    device_option,
    network_of,
    network_options,
    precision_option,
    warnings_told,
)
from ._tables import json_option, print_json

if TYPE_CHECKING:
    import torch

# Names of the benchmarks: (channels, border in pixels that is not counted, None for the scale).
BENCHMARKS = {
    "sidd": ("rgb", 0),
    "dnd": ("rgb", 0),
    "realsr": ("y", None),
    "lol": ("rgb", 0),
    "fivek": ("rgb", 0),
}


@click.command(cls=Command)
@click.argument("inputs", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("targets", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--weights", help="A checkpoint; without one INPUTS are judged as they are.")
@click.option("--benchmark", type=click.Choice(sorted(BENCHMARKS)), help="Its channels and border.")
@click.option("--channels", type=click.Choice(["rgb", "y"]), help="Counted channels; rgb if not told.")
@click.option("--border", type=click.IntRange(0), help="Pixels along each side that do not count.")
@click.option("--ensemble", is_flag=True, help="The mean over eight orientations.")
@click.option("--lpips", is_flag=True, help="Also LPIPS, by the package lpips.")
@click.option(
    "--csv", "table", type=click.Path(dir_okay=False, path_type=Path), help="File for every photo's."
)
@json_option("Print JSON, with every photo's.")
@precision_option
@device_option
@network_options
def evaluate(
    inputs: Path,
    targets: Path,
    weights: str | None,
    benchmark: str | None,
    channels: str | None,
    border: int | None,
    ensemble: bool,
    lpips: bool,
    table: Path | None,
    as_json: bool,
    precision: str,
    device: "torch.device",
    **options: Any,
) -> None:
    """PSNR and SSIM of the photos in INPUTS, restored, against those of the same names in TARGETS.

    Both are judged as files of 8 bits a channel hold them. The exit status is 1 if a photo could not be
    judged, and 130 after Ctrl-C; the result is that of the others all the same.
    """
    from .. import evaluation, inference
    from .._progress import Progress
    from ..images import ImageError, matching_photos, read_photo

    asked = None if precision == "auto" else precision
    of_the_network = {**options, "ensemble": ensemble or None, "precision": asked}
    for parameter in click.get_current_context().command.params:
        if weights is None and of_the_network.get(parameter.name) is not None:
            raise click.UsageError(f"{parameter.opts[0]} needs --weights")
    if benchmark and BENCHMARKS[benchmark][1] is None and border is None:
        raise click.UsageError(f"--benchmark {benchmark} needs --border, the scale of the super-resolution")
    channels = channels or (BENCHMARKS[benchmark][0] if benchmark else "rgb")
    run = inference.restore_by_ensemble if ensemble else inference.restore
    try:
        pairs = matching_photos(inputs, targets)
        model = None
        if weights is not None:
            model = network_of(weights, options).to(device)
            chosen_precision(precision, model, device, as_json)
        if table:
            table.parent.mkdir(parents=True, exist_ok=True)
    except (ImageError, OSError) as error:
        raise click.ClickException(str(error)) from error

    scores, stopped = [], False
    try:
        with Progress(len(pairs), "photos") as bar:
            for given, target in pairs:
                try:
                    restored = read_photo(given).rgb
                    if model is not None:
                        with warnings_told(str(given), bar.tell):
                            restored = run(model, restored.to(device), precision=precision).cpu()
                    pair = [t[0].permute(1, 2, 0).numpy() for t in (restored, read_photo(target).rgb)]
                    counted = channels, border or 0, lpips, device
                    scores.append(evaluation.score(str(given), pair[0], pair[1], *counted))
                except (ValueError, OSError, RuntimeError, MemoryError, OverflowError) as error:
                    message = str(error) if str(given) in str(error) else f"{given}: {error}"
                    bar.tell(f"error: {message}")
                bar.advance()
    except ImportError as error:  # of the package lpips
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        stopped = True
    result = evaluation.mean(scores) if scores else None
    if as_json:
        counted = {"channels": channels, "border": border or 0, "ensemble": ensemble}
        print_json({**counted, "of": len(pairs), "photos": scores, "mean": result})
    elif result:
        count = f"{len(scores)}{f' of {len(pairs)}' if len(scores) < len(pairs) else ''}"
        click.echo(f"{count} photos, {channels}, border {border or 0}{', ensemble of 8' * ensemble}")
        click.echo(
            f"PSNR {result.psnr:.2f} dB, SSIM {result.ssim:.4f}"
            + (f", LPIPS {result.lpips:.4f}" if lpips else "")
        )
    if result and table:
        try:
            evaluation.write_csv(table, scores)
        except OSError as error:
            raise click.ClickException(f"{table} was not written: {error.strerror or error}") from error
    if stopped or len(scores) < len(pairs):
        sys.exit(130 if stopped else 1)
