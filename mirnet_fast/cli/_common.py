"""What the commands share: their options, their failures and what they print."""

import contextlib
import re
import warnings
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import torch

    from ..modules import MIRNet

PRECISIONS = ("auto", "fp32", "fp16", "bf16")  # precision.CHOICES, which --help needs without torch
SHAPE_OPTIONS = {
    "--n-feat": ("n_feat", "Channels at full resolution."),
    "--n-rrg": ("n_RRG", "Recursive residual groups."),
    "--n-msrb": ("n_MSRB", "Multi-scale residual blocks a group."),
    "--height": ("height", "Streams (resolutions) of a block."),
    "--width": ("width", "Columns of a block."),
}


class Command(click.Command):
    """A command that runs ops: one sentence, and not a traceback, where none can run or the chosen one.

    Its --help is answered before.
    """

    def invoke(self, ctx: click.Context) -> Any:
        from .. import backends

        try:
            backends.check_environment()
            return super().invoke(ctx)
        except backends.BackendError as error:
            raise click.ClickException(str(error)) from error


class Device(click.ParamType):
    """A torch device that can be used here."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> "torch.device":
        import torch

        try:
            device = torch.empty(0, device=value).device
            torch.zeros(1, device=device).cpu()  # not from one without data, such as meta
        except Exception as error:  # AssertionError, ImportError and others, of other devices
            reason = re.split(r"\n|\. ", str(error).strip())[0]  # torch goes on for pages
            self.fail(f"{value!r} cannot be used: {reason}", param, ctx)
        return device


def _default_device():
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def weights_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that choose the network: what `network_file` takes."""
    command = click.option(
        "--weights", help="A checkpoint (.pth, .safetensors) instead of one that comes along."
    )(command)
    return click.option("--task", help="What for, by a network that comes along; denoise if not given.")(
        command
    )


def device_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--device",
        type=Device(),
        default=_default_device,
        show_default="cuda, or cpu where there is none",
    )(command)


def precision_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="auto",
        show_default=True,
        help="What networks compute in; auto: less than fp32 where faster and near enough.",
    )(command)


def chosen_precision(precision: str, model: "MIRNet", device: "torch.device", as_json: bool = False) -> str:
    """What `--precision` comes to for a network in eval mode; told where "auto" lowers it.

    Where stdout is for JSON, that is told on stderr.
    """
    from .. import inference
    from .. import precision as precisions

    try:
        precisions.check(precision, device)
    except ValueError as error:
        raise click.UsageError(f"--{error}") from error
    if precision != "auto":
        return precision
    verdict = precisions.automatic(model, device, multiple=inference.size_multiple(model))
    if verdict.precision != "fp32":
        click.echo(f"precision: {verdict.precision}; {verdict.reason}", err=as_json)
    return verdict.precision


@contextlib.contextmanager
def warnings_told(path: str, tell: Callable[[str], object]) -> Generator[None]:
    """Inside, what is warned of is told with the name of the file that it is about."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        yield
    for warning in caught:
        tell(f"warning: {path}: {warning.message}")


def network_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options for the arguments of MIRNet, without which a checkpoint decides, and for its part to take."""
    command = click.option("--key", help="Which one, where WEIGHTS holds several: params_ema, net_g.")(
        command
    )
    for option, (name, description) in reversed(SHAPE_OPTIONS.items()):
        command = click.option(option, name, type=click.IntRange(1), help=description)(command)
    return command


def network_config(weights: str | Path | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of MIRNet: the checkpoint's, or without one those of the options that were given."""
    from ..checkpoints import CheckpointError, network_arguments

    key = options["key"]
    given = {name: value for name, value in options.items() if value is not None and name != "key"}
    if weights is None:
        if key is not None:
            raise click.UsageError("--key needs --weights")
        return given
    try:
        config = network_arguments(weights, key, **given)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error
    if (config["in_channels"], config["out_channels"]) != (3, 3):
        raise click.ClickException(f"{weights} is not a network from RGB images to RGB images")
    return config


def network_file(task: str | None, weights: str | Path | None) -> str | Path:
    """The file with the weights: `weights`, or that of the network that comes along for a task."""
    from .. import pretrained

    if weights is not None:
        if task is not None:
            raise click.UsageError("--task and --weights both choose the network; give one of them")
        return weights
    task = pretrained.DEFAULT if task is None else task
    if task not in pretrained.tasks():
        raise click.UsageError(
            f"--task must be one of those that come along, {', '.join(pretrained.tasks())}; got {task!r}"
        )
    path = pretrained.weights_of(task)
    click.echo(f"weights: {path.stem}, which comes with mirnet-fast, for the task {task} ({path})")
    return path


def network_of(weights: str | Path, options: Mapping[str, Any]) -> "MIRNet":
    """The network in a checkpoint, in eval mode, on the CPU."""
    from ..checkpoints import CheckpointError, load_checkpoint
    from ..modules import MIRNet

    model = MIRNet(**network_config(weights, options)).eval()
    try:
        load_checkpoint(model, weights, key=options["key"])
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error
    return model


def training_package() -> ModuleType:
    try:
        from .. import training
    except ImportError as error:
        raise click.ClickException(f"{error}; try: pip install 'mirnet-fast[train]'") from error
    return training


def sample_photo() -> "torch.Tensor":
    import skimage.data
    import torch

    pixels = torch.from_numpy(skimage.data.astronaut())
    return pixels.permute(2, 0, 1)[None].float() / 255
