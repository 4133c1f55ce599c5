"""What a training run is made of, read from YAML and checked field by field."""

import os
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.json_schema import GenerateJsonSchema

from ..images import matching_photos
from ..pretrained import tasks
from .degradations import Degradations
from .fields import Count, Decay, Few, NotNegative, Odd, Part, Positive, Share, Whole
from .layouts import FiveK, Lol, RealSr, Sidd

Model = TypeVar("Model", bound=BaseModel)

ERRORS_SHOWN = 5
# May change while a training goes on, as no weight depends on it.
OF_THE_RUN = ("workers", "save_every", "validation.samples")


class RecipeError(ValueError):
    """A recipe cannot be read, or a field of it does not fit; the message names it."""


class Network(Part):
    """Arguments of `mirnet_fast.MIRNet`; the published network's by default."""

    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    n_feat: Annotated[Count, Field(le=2**12)] = 64
    kernel_size: Odd = 3
    stride: Few = 2
    n_RRG: Few = 3
    n_MSRB: Few = 2
    height: Few = 3
    width: Few = 2
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

    def pairs(self) -> list[tuple[Path, Path]]:
        return matching_photos(self.input, self.target)


class Clean(Part):
    """Clean photos, spoilt as they are read: those of a folder, or some that installed packages carry.

    Attributes:
        photos: "skimage:NAME", a function of skimage.data, or "sklearn:FILE", a sample image.
        scales: sizes that each photo is used in; smaller than 1 it is sharper and has less noise of its own.
        sides: and as small as to have these shorter sides, in pixels, where it is larger: a patch of like
            size has the whole scene in it, by which the light can be told.
        degradations: one after another; the kinds are in `mirnet_fast.training.degradations`.
        target: what a network is to make of it: the "clean" photo, or the "processed" one, which went the
            same way with the same random numbers, but without noise and darkness. So noise is removed,
            but not what demosaicing, sharpening or JPEG have done.
        margin: pixels by which more than a patch is spoilt on each side, before the patch is cut out at a
            random place: JPEG's blocks then begin anywhere, and there are no edges in it.
    """

    kind: Literal["clean"] = "clean"
    folder: Path | None = None
    photos: list[str] | None = Field(None, min_length=1)
    scales: list[Annotated[Positive, Field(le=1)]] = Field([1.0], min_length=1)
    sides: list[Count] = []
    degradations: Degradations
    target: Literal["clean", "processed"] = "clean"
    margin: Annotated[Whole, Field(le=2**15)] = 0

    @model_validator(mode="after")
    def one_source(self) -> "Clean":
        if (self.folder is None) == (self.photos is None):
            raise ValueError("either folder or photos must be given, not both")
        return self


Source = Annotated[Pairs | Clean | Sidd | RealSr | Lol | FiveK, Field(discriminator="kind")]


class Validation(Part):
    """Whole photos that are restored every so many steps; the best PSNR keeps its weights."""

    source: Source
    every: Count = 5000
    samples: Whole = 2
    """Photos of which each validation keeps a picture, before | after | target, the middle 512 pixels."""


class Recipe(Part):
    """A training run; the defaults are the paper's (arXiv 2003.06792, section 4.2)."""

    network: Network = Network()
    ablation: Ablation = Ablation()
    weights: Literal[tuple(tasks())] | Path | None = None  # pyrefly: ignore[invalid-literal]
    """To begin with: a network that comes with the package, or a file as load_checkpoint takes it.

    An argument of the network that is not given is theirs.
    """
    key: str | None = None
    """Which one, if the file of `weights` holds several networks."""
    train: Source
    validation: Validation | None = None
    seed: Whole = 0
    steps: Count = 700_000
    """Updates of the weights."""
    batch: Annotated[Count, Field(le=2**20)] = 16
    """Patches of an update, of all processes and accumulated parts together."""
    patch: Annotated[Count, Field(le=2**15)] = 128
    """Side of the square patches in pixels."""
    accumulate: Count = 1
    """Parts that a process computes one after another."""
    learning_rate: Positive = 2e-4
    """Where the cosine begins."""
    final_learning_rate: NotNegative = 1e-6
    """Where the cosine ends."""
    warmup: Whole = 0
    """Steps in which the learning rate rises to where the cosine begins."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Of Adam."""
    epsilon: Positive = 1e-3
    """Of the Charbonnier loss."""
    mixup: Share = 0.0
    """The chance that a patch is mixed with the next one of its part of the batch."""
    clip: Positive | None = None
    """Largest norm of the gradient; None leaves it."""
    ema: Annotated[Decay, Field(gt=0)] | None = None
    """Decay of the averaged weights, which are validated and kept; None for the weights themselves."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """float32, or the dtype of autocast."""
    shard: bool = False
    """Give each of several processes a part of weights, gradients and Adam's state (FSDP2), not all (DDP)."""
    checkpoint_blocks: bool = False
    """Recompute each MSRB in the backward instead of keeping its feature maps."""
    workers: Annotated[Whole, Field(le=1024)] = 0
    """Processes that read photos."""
    save_every: Count = 5000
    """Steps between checkpoints."""

    @model_validator(mode="after")
    def parts_fit(self) -> "Recipe":
        multiple = 2 ** (self.network.height - 1)
        # What is not given the weights will tell.
        known = self.weights is None or "height" in self.network.model_fields_set
        if known and self.patch % multiple:
            raise ValueError(f"patch must be a multiple of {multiple}; got {self.patch}")
        if self.key is not None and self.weights is None:
            raise ValueError("key needs weights")
        if self.shard and self.precision == "float16":
            raise ValueError("shard needs precision float32 or bfloat16; got float16")
        if self.batch % self.accumulate:
            raise ValueError(f"batch, {self.batch}, must be a multiple of accumulate, {self.accumulate}")
        return self


def read_recipe(path: str | Path) -> Recipe:
    """The Recipe in a YAML file, in UTF-8 or UTF-16; its relative folders are below the file's own.

    Raises:
        RecipeError: the file cannot be read, or a field is unknown, missing, there twice or does not fit.
    """
    path = Path(path)
    try:
        fields = yaml.load(path.read_bytes(), Loader=_Loader)
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    except yaml.MarkedYAMLError as error:
        where = error.problem_mark or error.context_mark
        place = f"{path}, line {where.line + 1}" if where else path
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise RecipeError(f"{place}: {what}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise RecipeError(f"{path}: too many brackets within each other") from error
    except Exception as error:  # PyYAML lets through what Python makes of a number or date that is none
        raise RecipeError(f"{path}: a value cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of names to values")
    try:
        recipe = Recipe.model_validate(fields)
    except (ValidationError, RecursionError) as error:
        raise RecipeError(f"{path}: {problems(error)}") from error
    return with_paths(recipe, lambda given: path.parent / given)


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe (draft 2020-12), for editors and other programs."""
    return {"$schema": GenerateJsonSchema.schema_dialect, **Recipe.model_json_schema()}


class _Loader(yaml.SafeLoader):
    """Of two fields with one name PyYAML would keep the second."""

    def construct_mapping(self, node, deep=False):
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                    if key.value in seen:
                        raise yaml.constructor.ConstructorError(
                            None, None, f"{key.value} is there twice", key.start_mark
                        )
                    seen.add(key.value)
        return super().construct_mapping(node, deep)


def problems(error: ValidationError | RecursionError) -> str:
    """What pydantic found, in a line."""
    if isinstance(error, RecursionError):
        return "too many brackets within each other"
    found = [f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors()]
    more = [f"and {len(found) - ERRORS_SHOWN} more"] if len(found) > ERRORS_SHOWN else []
    return "; ".join(found[:ERRORS_SHOWN] + more)


def with_paths(part: Model, change: Callable[[Path], Path]) -> Model:
    """A copy in which every path is what change(path) gives."""
    changes: dict[str, Any] = {}
    for name, value in part:
        if isinstance(value, Path):
            changes[name] = change(value)
        elif isinstance(value, BaseModel):
            changes[name] = with_paths(value, change)
    return part.model_copy(update=changes)


def real_paths(recipe: Recipe) -> Recipe:
    """The same recipe, for a process that runs in any folder."""
    return with_paths(recipe, lambda path: Path(os.path.realpath(path)))


def differences(old: Recipe, new: Recipe) -> list[str]:
    """["field is A there and B here"]: what keeps a training by `old` from going on by `new`.

    Paths that lead to one place are equal, and more steps may be asked for.
    """
    before, now = (dict(_values(real_paths(recipe).model_dump())) for recipe in (old, new))
    for name in OF_THE_RUN:
        before.pop(name, None)
        now.pop(name, None)
    if now["steps"] > before["steps"]:
        del before["steps"], now["steps"]
    return [
        f"{name} is {_shown(before.get(name))} there and {_shown(now.get(name))} here"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _values(value, name=""):
    """(dotted name, value) of every field; a list of mappings is taken apart, another one is a value."""
    items = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = enumerate(value)
    else:
        yield name, value
    for key, item in items:
        yield from _values(item, f"{name}.{key}" if name else key)


def _shown(value):
    return str(value) if isinstance(value, Path) else reprlib.repr(value)
