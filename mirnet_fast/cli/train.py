"""mirnet-fast train: a network by a recipe."""

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ._common import Command, device_option, training_package

if TYPE_CHECKING:
    import torch


def _print_schema(context, parameter, wanted):
    if wanted:
        click.echo(json.dumps(training_package().schema(), indent=2))
        context.exit()


@click.command(cls=Command)
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="RECIPE's name if not given.")
@click.option("--threads", type=click.IntRange(1), help="Threads of torch; its own choice if not given.")
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_schema,
    help="Print the JSON schema of a recipe and exit.",
)
@device_option
def train(recipe: Path, out: Path | None, threads: int | None, device: "torch.device") -> None:
    """Train the network of RECIPE, a YAML file, in the folder OUT.

    OUT gets last.pt, with which the same command goes on after an interruption, best.safetensors, the
    weights of the best validation, pictures of it in samples, and log.csv, which TensorBoard shows, too
    (tensorboard --logdir OUT). Ctrl-C or SIGTERM saves last.pt first. On several GPUs:
    torchrun --nproc-per-node N -m mirnet_fast.cli train RECIPE
    """
    import torch

    from ..images import ImageError

    training = training_package()
    if threads is not None:
        torch.set_num_threads(threads)
    out = out or Path(recipe.stem)
    # What ends a job on a cluster is as good as Ctrl-C; and a shell's background jobs ignore that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    trainer = None
    try:
        with training.processes(device) as device:
            plan = training.read_recipe(recipe)
            trainer = training.Trainer(plan, out, device)
            parameters, flops = training.costs(trainer.recipe)
            if trainer.rank == 0:
                click.echo(f"{parameters:,} parameters, {flops / 1e9:.2f} GFLOP a patch of {plan.patch}²")
                click.echo(f"{device}, from step {trainer.step}, in {out}")
            trainer.run()
            if trainer.rank == 0 and trainer.validation:
                click.echo(f"best validation: {trainer.best:.2f} dB")
    except (training.RecipeError, training.TrainingError, ImageError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        if trainer is None:
            click.echo("stopped before the first step", err=True)
        else:
            step, saved = trainer.step, trainer.saved
            place = "there" if saved == step else f"step {saved}"
            click.echo(f"stopped at step {step}; the same command goes on from {place}", err=True)
        sys.exit(130)
