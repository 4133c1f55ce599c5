"""mirnet-fast compare: the reference and mirnet_fast on one photo."""

import sys
from collections.abc import Mapping
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
    sample_photo,
)
from ._tables import heading, json_option, print_json, print_pairs, print_table

if TYPE_CHECKING:
    import torch


class Size(click.ParamType):
    """A number of pixels, or "full", which is None."""

    name = "pixels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value in ("full", "0"):
            return None
        try:
            size = int(value)
        except ValueError:
            size = -1
        if size < 1:
            self.fail(f"{value!r} is neither a number of pixels nor 'full'", param, ctx)
        return size


@click.command(cls=Command)
@click.argument("image", required=False)
@click.option("--weights", help="A checkpoint (.pth, .safetensors); random weights without one.")
@click.option("--size", type=Size(), default="256", show_default=True, help="Centre crop, or 'full'.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Timed rounds.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="compare", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Threads of torch; its own choice if not given.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random weights.")
@json_option("Print JSON, in seconds and bytes.")
@precision_option
@device_option
@network_options
def compare(
    image: str | None,
    weights: str | None,
    size: int | None,
    rounds: int,
    out: Path,
    threads: int | None,
    seed: int,
    as_json: bool,
    precision: str,
    device: "torch.device",
    **options: Any,
) -> None:
    """Run the reference and mirnet_fast on one photo with the same weights.

    Prints the error of both against the reference in float64, after each part of the network, the
    time and the memory of both, and writes both pictures and their difference to OUT. The reference
    runs as published: NCHW, eager; both compute in the same precision. Without IMAGE the photo is
    scikit-image's astronaut. The exit status is 1 if they do not agree.
    """
    import numpy as np
    import torch

    from .. import comparison, inference, measure
    from .. import precision as precisions
    from ..checkpoints import CheckpointError, load_checkpoint
    from ..images import ImageError, Photo, read_photo, write_photo

    if threads is not None:
        torch.set_num_threads(threads)
    config = network_config(weights, options)
    try:
        rgb = sample_photo() if image is None else read_photo(image).rgb
        networks = comparison.build(
            config,
            None
            if weights is None
            else lambda network: load_checkpoint(network, weights, key=options["key"]),
            device,
            seed,
        )
        out.mkdir(parents=True, exist_ok=True)
    except (CheckpointError, ImageError, OSError) as error:
        raise click.ClickException(str(error)) from error
    rgb = _centre_crop(rgb, size)
    height, width = rgb.shape[2:]
    padded = inference.pad_by_reflection(rgb, inference.size_multiple(networks["reference"])).to(device)

    asked = chosen_precision(precision, networks["mirnet_fast"], device, as_json)
    dtype = precisions.DTYPES[asked]

    found = {
        "photo": image or "scikit-image astronaut",
        "size": [height, width],
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(device),
        "weights": weights,
        "rounds": rounds,
        "machine": measure.machine(),
    }
    if not as_json:
        _print_given(found)

    click.echo("(1/3) time", err=True)
    seconds = comparison.times(comparison.lowered(networks, dtype), padded.to(dtype), rounds)
    click.echo("(2/3) memory, each in a process of its own", err=True)
    peaks = comparison.memory(config, padded.shape, device, dtype)
    click.echo("(3/3) the reference in float64; at the published size this takes minutes on a CPU", err=True)
    errors, outputs = comparison.stage_errors(networks, padded, dtype)
    agree = all(error.agrees for error in errors)

    pictures = {name: output[..., :height, :width].cpu() for name, output in outputs.items()}
    difference = (pictures["mirnet_fast"] - pictures["reference"]).abs()
    largest = difference.max().item()
    factor = 2.0 ** np.floor(np.log2(1 / largest)) if 0 < largest < np.inf else 1.0
    paths = []
    try:
        for name, picture in {**pictures, "difference": difference * factor}.items():
            paths.append(out / f"{name}.png")
            write_photo(paths[-1], Photo(picture))
    except ImageError as error:
        raise click.ClickException(str(error)) from error

    found |= {
        "errors": [
            {
                "stage": error.stage,
                "reference": error.reference,
                "mirnet_fast": error.mirnet_fast,
                "agrees": error.agrees,
            }
            for error in errors
        ],
        "seconds": seconds,
        "peak_bytes": peaks,
        "pictures": [str(path) for path in paths],
        "difference_times": factor,
        "agree": agree,
    }
    (print_json if as_json else _print_found)(found)
    if not agree:
        sys.exit(1)


def _print_given(found: Mapping[str, Any]) -> None:
    print_pairs(found["machine"].items())
    width, height = reversed(found["size"])
    click.echo(f"\nphoto: {found['photo']}, {width} x {height} pixels, {found['dtype']}, {found['device']}")
    if found["weights"] is None:
        click.echo("weights: random, so this compares the computation; nothing is restored")
    else:
        click.echo(f"weights: {found['weights']}")


def _print_found(found: Mapping[str, Any]) -> None:
    heading("\nrelative error against the reference in float64")
    print_table(
        ("", "reference", "mirnet_fast", ""),
        [
            (
                e["stage"],
                f"{e['reference']:.2e}",
                f"{e['mirnet_fast']:.2e}",
                "" if e["agrees"] else "DISAGREES",
            )
            for e in found["errors"]
        ],
        style=lambda row: "bold red" if row[-1] else "",
    )
    heading(f"\nmedian of {found['rounds']} interleaved rounds, and peak memory of one forward pass")
    seconds, peaks = found["seconds"], found["peak_bytes"]
    print_table(
        ("", "time", "memory"),
        [(name, f"{seconds[name]:.3f} s", _megabytes(peaks[name])) for name in seconds],
    )

    pictures, last = found["pictures"], found["errors"][-1]
    click.echo(f"\n{pictures[-1]}: the absolute difference times {found['difference_times']:.3g}")
    ours, plain = peaks["mirnet_fast"], peaks["reference"]
    unknown = ours is None or plain is None
    memory = "not measured" if unknown else f"{ours / max(plain, 1):.2f} times"
    click.echo(
        f"{'agree' if found['agree'] else 'DO NOT AGREE'} "
        f"(error {last['mirnet_fast']:.1e}, the reference's own {last['reference']:.1e}); "
        f"mirnet_fast is {seconds['reference'] / seconds['mirnet_fast']:.2f} times as fast, "
        f"peak memory {memory}; {pictures[0]}, {pictures[1]}"
    )


def _centre_crop(rgb, size):
    if size is None:
        return rgb
    top, left = (max(0, (have - size) // 2) for have in rgb.shape[2:])
    return rgb[..., top : top + size, left : left + size].contiguous()


def _megabytes(peak):
    return "killed" if peak is None else f"{peak / 2**20:.0f} MiB"
