"""last.pt, the checkpoint of a training: what is in it, and of whose recipe it is."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from .failures import TrainingError, last_line
from .recipe import Recipe, problems

LAST = "last.pt"
ANEW = "train in another folder, or remove it to start anew"


def read(path: Path) -> dict[str, Any]:
    """What is in a last.pt: tensors and plain values; it may not run code.

    Raises:
        TrainingError: it is damaged, or something else, or would run code.
    """
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()  # torch does not look at the check sums
        if damaged:
            raise ValueError(damaged)
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"recipe", "step", "best", "network", "optimizer", "scaler", "random"} - state.keys()
        if missing:
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
        return state
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error}") from error
    except pickle.UnpicklingError as error:
        # torch's own message advises to switch the protection off
        name = re.search(r"GLOBAL (\S+)", str(error))
        code = f"would run code ({name[1]})" if name else "is damaged"
        raise TrainingError(f"{path} was refused, as it {code}; {ANEW}") from error
    except Exception as error:  # a damaged file may raise anything
        raise TrainingError(
            f"{path} is damaged, or no training's checkpoint "
            f"({type(error).__name__}: {last_line(error)}); {ANEW}"
        ) from error


def recipe_in(state: dict[str, Any], path: Path) -> Recipe:
    """The Recipe of what was read from `path`.

    Raises:
        TrainingError: it is not one of this version.
    """
    try:
        return Recipe.model_validate_json(state["recipe"])
    except ValidationError as error:
        raise TrainingError(f"{path} is of another version: {problems(error)}; {ANEW}") from error


def identity(path: Path) -> tuple[int, int, int] | None:
    """Changes whenever a file takes the place of the one at the path."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
