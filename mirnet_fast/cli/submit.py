"""mirnet-fast submit: the files that denoising benchmarks judge."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._common import (
    Command,
    device_option,
    network_file,
    network_of,
    network_options,
    training_package,
    weights_options,
)

if TYPE_CHECKING:
    import torch


@click.command(cls=Command)
@click.argument("benchmark", type=click.Choice(["sidd", "dnd"]))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--method", default="MIRNet", show_default=True, help="Its name in SIDD's table.")
@weights_options
@device_option
@network_options
def submit(
    benchmark: str,
    data: Path,
    out: Path,
    method: str,
    task: str | None,
    weights: str | None,
    device: "torch.device",
    **options: Any,
) -> None:
    """Restore the blocks of a benchmark that is judged elsewhere, into the files that it takes.

    sidd: DATA is BenchmarkNoisyBlocksSrgb.mat, OUT the SubmitSrgb.mat to upload, with the seconds a megapixel
    that were taken here. dnd: DATA is the folder with info.mat and images_srgb, OUT a folder that gets a
    .mat an image.
    """
    from ..images import ImageError

    training_package()
    from ..training import matlab

    model = network_of(network_file(task, weights), options).to(device)
    try:
        if benchmark == "dnd":
            matlab.write_dnd_submission(model, data, out, device)
            click.echo(f"{len(list(out.glob('*.mat')))} images in {out}")
            return
        blocks = matlab.sidd_blocks(data, matlab.BENCHMARK_NOISY)
        started = time.perf_counter()
        restored = matlab.restored_blocks(model, blocks, device)
        pixels = blocks.size / blocks.shape[-1]
        seconds = (time.perf_counter() - started) / pixels * 1e6
        out.parent.mkdir(parents=True, exist_ok=True)
        matlab.write_sidd_submission(out, restored, seconds, method)
    except (ImageError, OSError) as error:
        raise click.ClickException(str(error)) from error
    count = blocks.shape[0] * blocks.shape[1]
    click.echo(f"{count:,} blocks in {out}, {seconds:.2f} s a megapixel on {device}")
