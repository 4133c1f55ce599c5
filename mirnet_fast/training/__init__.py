"""Training of restoration networks by a recipe: `mirnet-fast train RECIPE.yaml`.

Needs the extra `train` (pydantic, PyYAML).
"""

from .ablations import ablated, costs
from .distributed import processes
from .loop import Trainer, TrainingError
from .patches import extract_patches
from .recipe import Recipe, RecipeError, read_recipe

__all__ = [
    "Recipe",
    "RecipeError",
    "Trainer",
    "TrainingError",
    "ablated",
    "costs",
    "extract_patches",
    "processes",
    "read_recipe",
]
