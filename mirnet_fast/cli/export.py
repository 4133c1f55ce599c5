"""mirnet-fast export: a network as an ONNX file."""

from pathlib import Path
from typing import Any

import click

from ._common import Command, network_file, network_of, network_options, weights_options


@click.command(cls=Command)
@click.argument("model", metavar="MODEL.onnx", type=click.Path(dir_okay=False, path_type=Path))
@weights_options
@network_options
def export(model: Path, task: str | None, weights: str | None, **options: Any) -> None:
    """Write the network of --weights, or one that comes along, as an ONNX file of plain operators.

    It takes any number of images of any height and width that are multiples of what the network needs. Where
    ONNX Runtime is installed the file is compared with the reference at three sizes; if they differ, nothing
    is written and the exit status is 1.
    """
    from .. import exporting
    from .._files import replaced
    from ..checkpoints import CheckpointError
    from ..inference import size_multiple

    if model.suffix.lower() != ".onnx":
        raise click.UsageError(f"MODEL.onnx must end in .onnx; got {str(model)!r}")
    network = network_of(network_file(task, weights), options)
    try:
        model.parent.mkdir(parents=True, exist_ok=True)
        with replaced(model) as new:
            exporting.export_onnx(network, new)
            checked = _check(new, network)
    except (CheckpointError, ImportError, OSError) as error:
        raise click.ClickException(str(error)) from error
    multiple = size_multiple(network)
    click.echo(
        f"{model}: {model.stat().st_size / 1e6:.1f} MB; image (N, 3, H, W) float32 from 0 to 1, "
        f"H and W multiples of {multiple}; {checked}"
    )


def _check(path, network):
    from .. import exporting

    try:
        difference = exporting.largest_difference(path, network)
    except ImportError:
        return "not checked, as onnxruntime is not installed"
    if not difference <= exporting.TOLERANCE:
        raise click.ClickException(
            f"not written: in ONNX Runtime it differs from the reference by {difference:.1e}, "
            f"which may be {exporting.TOLERANCE:.0e} at most"
        )
    return f"in ONNX Runtime at three sizes at most {difference:.1e} from the reference"
