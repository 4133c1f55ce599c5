"""What a training run is made of, read from YAML and checked field by field."""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from ..images import matching_photos
from .degradations import Degradation
from .layouts import FiveK, Lol, RealSr, Sidd


class RecipeError(ValueError):
    """A recipe cannot be read, or a field of it does not fit; the message names it."""


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Network(Part):
    """Arguments of `mirnet_fast.MIRNet`; the published network's by default."""

    in_channels: PositiveInt = 3
    out_channels: PositiveInt = 3
    n_feat: PositiveInt = 64
    kernel_size: PositiveInt = 3
    stride: PositiveInt = 2
    n_RRG: PositiveInt = 3
    n_MSRB: PositiveInt = 2
    height: PositiveInt = 3
    width: PositiveInt = 2
    bias: bool = False


class Ablation(Part):
    """What of the network is left out: see `mirnet_fast.training.ablations.ablated`."""

    skips: bool = True
    dau: bool = True
    skff: Literal["skff", "sum", "concat"] = "skff"


class Pairs(Part):
    """Photos in two folders under the same names."""

    kind: Literal["pairs"] = "pairs"
    input: Path
    target: Path

    def pairs(self):
        return matching_photos(self.input, self.target)


class Clean(Part):
    """Clean photos, spoilt as they are read: those of a folder, or some that installed packages carry.

    Attributes:
        photos: "skimage:NAME", a function of skimage.data, or "sklearn:FILE", a sample image.
        scales: sizes that each photo is used in; smaller than 1 it is sharper and has less noise of its own.
        degradations: one after another.
    """

    kind: Literal["clean"] = "clean"
    folder: Path | None = None
    photos: list[str] | None = None
    scales: list[Annotated[float, Field(gt=0, le=1)]] = Field([1.0], min_length=1)
    degradations: list[Degradation] = Field(min_length=1)

    @model_validator(mode="after")
    def one_source(self):
        if (self.folder is None) == (self.photos is None):
            raise ValueError("either folder or photos must be given, not both")
        return self


Source = Annotated[Pairs | Clean | Sidd | RealSr | Lol | FiveK, Field(discriminator="kind")]


class Validation(Part):
    """Whole photos that are restored every so many steps; the best PSNR keeps its weights."""

    source: Source
    every: PositiveInt = 5000


class Recipe(Part):
    """A training run; the defaults are the paper's (arXiv 2003.06792, section 4.2).

    Attributes:
        steps: updates of the weights.
        batch: patches of an update, of all processes and accumulated parts together.
        patch: side of the square patches in pixels.
        accumulate: parts that a process computes one after another.
        learning_rate, final_learning_rate: ends of the cosine; `warmup` steps rise to the first.
        mixup: the chance that a patch is mixed with the next one of its part of the batch.
        clip: largest norm of the gradient; None leaves it.
        ema: decay of the averaged weights, which are validated and kept; None for the weights themselves.
        precision: "float32", or the dtype of autocast.
        shard: give each of several processes a part of weights, gradients and Adam's state (FSDP2)
            instead of all (DDP).
        checkpoint_blocks: recompute each MSRB in the backward instead of keeping its feature maps.
        save_every: steps between checkpoints.
    """

    network: Network = Network()
    ablation: Ablation = Ablation()
    train: Source
    validation: Validation | None = None
    seed: int = Field(0, ge=0)
    steps: PositiveInt = 700_000
    batch: PositiveInt = 16
    patch: PositiveInt = 128
    accumulate: PositiveInt = 1
    learning_rate: PositiveFloat = 2e-4
    final_learning_rate: float = Field(1e-6, ge=0)
    warmup: int = Field(0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: PositiveFloat = 1e-3
    mixup: float = Field(0.0, ge=0, le=1)
    clip: PositiveFloat | None = None
    ema: float | None = Field(None, gt=0, lt=1)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    shard: bool = False
    checkpoint_blocks: bool = False
    workers: int = Field(0, ge=0)
    save_every: PositiveInt = 5000

    @model_validator(mode="after")
    def patch_fits(self):
        multiple = 2 ** (self.network.height - 1)
        if self.patch % multiple:
            raise ValueError(f"patch must be a multiple of {multiple}; got {self.patch}")
        if self.shard and self.precision == "float16":
            raise ValueError("shard needs precision float32 or bfloat16; got float16")
        if self.batch % self.accumulate:
            raise ValueError(f"batch, {self.batch}, must be a multiple of accumulate, {self.accumulate}")
        return self


def read_recipe(path):
    """The Recipe in a YAML file; its relative folders are below the file's own.

    Raises:
        RecipeError: the file cannot be read, or a field is unknown, missing or does not fit.
    """
    path = Path(path)
    try:
        fields = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: {error}") from error
    if not isinstance(fields, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of names to values")
    try:
        recipe = Recipe.model_validate(fields)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors()]
        raise RecipeError(f"{path}: " + "; ".join(found)) from error
    return _below(recipe, path.parent)


def _below(part, folder):
    changes = {}
    for name, value in part:
        if isinstance(value, Path):
            changes[name] = folder / value
        elif isinstance(value, BaseModel):
            changes[name] = _below(value, folder)
    return part.model_copy(update=changes)
