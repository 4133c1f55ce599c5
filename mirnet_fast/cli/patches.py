"""mirnet-fast patches: large photos cut into windows once."""

from pathlib import Path

import click

from ._common import Command, training_package


@click.command(cls=Command)
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--size", type=click.IntRange(1), default=512, show_default=True, help="Side of a window.")
@click.option("--stride", type=click.IntRange(1), help="From one window to the next; SIZE if not given.")
@click.option("--workers", type=click.IntRange(1), help="Threads; one a core if not given.")
def patches(recipe: Path, folder: Path, size: int, stride: int | None, workers: int | None) -> None:
    """Cut the pairs that RECIPE trains on into windows, written to FOLDER/input and FOLDER/target.

    For photos of many megapixels, such as those of SIDD: a recipe with `train: {kind: pairs, input:
    FOLDER/input, target: FOLDER/target}` then trains much faster than one that decodes whole photos.
    """
    from ..images import ImageError

    training = training_package()
    try:
        source = training.read_recipe(recipe).train
        if source.kind == "clean":
            raise click.ClickException(f"{recipe}: train has no pairs of photos, but clean ones")
        count = training.extract_patches(source, folder, size, stride or size, workers)
    except (training.RecipeError, ImageError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{count:,} pairs of {size} x {size} pixels in {folder}")
