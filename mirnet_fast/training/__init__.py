"""Training of restoration networks by a recipe: `mirnet-fast train RECIPE.yaml`.

Needs the extra `train` (pydantic, PyYAML, TensorBoard).
"""

from .ablations import ablated, costs
from .distributed import processes
from .failures import TrainingError
from .loop import Trainer
from .patches import extract_patches
from .recipe import Recipe, RecipeError, read_recipe, schema

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
    "schema",
]
