"""Kinds of fields that recipes are made of."""

from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class Part(BaseModel):
    """A mapping of a recipe: it has no other names, and its numbers are finite.

    A string below a field describes it, here and in the schema.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def _number(value):
    if isinstance(value, bool):  # which pydantic would take for 0 or 1
        raise ValueError(f"must be a number; got {str(value).lower()}")
    return value


def _rising(ends):
    if ends[0] > ends[1]:
        raise ValueError(f"must not begin above its end; got {ends[0]} to {ends[1]}")
    return ends


def _odd(value):
    if value % 2 == 0:
        raise ValueError(f"must be an odd integer; got {value}")
    return value


# The largest seed that NumPy takes; of all else far more than anybody trains.
MANY = 2**32 - 1

Positive = Annotated[float, Field(gt=0), BeforeValidator(_number)]
NotNegative = Annotated[float, Field(ge=0), BeforeValidator(_number)]
Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(_number)]
Decay = Annotated[float, Field(ge=0, lt=1), BeforeValidator(_number)]
Whole = Annotated[int, Field(ge=0, le=MANY), BeforeValidator(_number)]
Count = Annotated[int, Field(gt=0, le=MANY), BeforeValidator(_number)]
Few = Annotated[int, Field(gt=0, le=100), BeforeValidator(_number)]
Odd = Annotated[Few, AfterValidator(_odd)]
Quality = Annotated[int, Field(ge=1, le=100), BeforeValidator(_number)]

Number = TypeVar("Number")
Rising = Annotated[tuple[Number, Number], AfterValidator(_rising)]
Range = Rising[NotNegative]
Qualities = Rising[Quality]
