"""The weights that a recipe begins with: a checkpoint's file, or a network that comes with the package."""

import hashlib

from pydantic import ValidationError
from torch import nn

from ..checkpoints import CheckpointError, load_checkpoint, network_arguments
from ..pretrained import tasks, weights_of
from .recipe import Recipe, RecipeError, problems


def completed(recipe: Recipe, before: Recipe | None = None) -> tuple[Recipe, str | None]:
    """(the recipe with those arguments of its network that its weights tell, SHA-256 of their file or None).

    Args:
        recipe: comes back as it is if it has no `weights`.
        before: the recipe of the checkpoint from which its training goes on. That has the weights, so their
            file need not be there any more; what it would tell, this recipe tells.

    Raises:
        RecipeError: the file cannot be read, or is of a network with other arguments than the recipe gives.
    """
    if recipe.weights is None:
        return recipe, None
    file, given = _file(recipe), recipe.network.model_dump(exclude_unset=True)
    if before is not None and not file.exists():
        return _with_network(recipe, {**before.network.model_dump(), **given}), None
    if not file.is_file():
        raise RecipeError(
            f"weights: there is no file {file}, and what comes with the package is {', '.join(tasks())}"
        )
    try:
        try:  # what is given may be needed, as not every file tells the number of columns
            arguments = network_arguments(file, recipe.key, **given)
        except CheckpointError:
            arguments = network_arguments(file, recipe.key)
        checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    except (CheckpointError, OSError) as error:
        raise RecipeError(f"weights: {error}") from error
    different = [
        f"network.{name} is {arguments[name]} in the weights and {value} here"
        for name, value in given.items()
        if arguments[name] != value
    ]
    if different:
        raise RecipeError("; ".join(different))
    return _with_network(recipe, arguments), checksum


def load_weights(network: nn.Module, recipe: Recipe) -> None:
    """Give a network, of a recipe that has `weights`, these.

    Raises:
        RecipeError: the file cannot be read, or does not fit the network.
    """
    try:
        load_checkpoint(network, _file(recipe), key=recipe.key)
    except CheckpointError as error:
        raise RecipeError(f"weights: {' '.join(str(error).split())}") from error


def _file(recipe):
    return weights_of(recipe.weights) if isinstance(recipe.weights, str) else recipe.weights


def _with_network(recipe, arguments):
    try:
        return Recipe.model_validate({**dict(recipe), "network": arguments})
    except ValidationError as error:
        raise RecipeError(f"weights: {problems(error)}") from error
