"""docs/training.md has every field of a recipe as it is, and its recipes can be read."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from mirnet_fast.training import Recipe, degradations, recipe

PAGE = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
# {heading: body}, backquotes taken away; a heading goes over those below it only to the first of them.
SECTIONS = dict(re.findall(r"^##+ `?(.*?)`?\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
RECIPES = [
    yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
]


def members(union):
    """{kind: class} of a discriminated union."""
    return {get_args(cls.model_fields["kind"].annotation)[0]: cls for cls in get_args(get_args(union)[0])}


SOURCES = members(recipe.Source)
PARTS = {
    "All fields": recipe.Recipe,
    "network": recipe.Network,
    "ablation": recipe.Ablation,
    "validation": recipe.Validation,
    **SOURCES,
}


def default(field):
    if field.is_required():
        return "needed"
    if isinstance(field.default, BaseModel):
        return {}
    return [*field.default] if isinstance(field.default, tuple) else field.default


@pytest.mark.parametrize("heading", PARTS)
def test_page_has_every_field_and_default(heading):
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]+) \|", SECTIONS[heading], re.MULTILINE)
    told = {
        name: yaml.safe_load(cell.strip("`"))
        for names, cell in rows
        for name in re.findall(r"`(\w+)`", names)
    }
    fields = PARTS[heading].model_fields
    assert told == {name: default(field) for name, field in fields.items() if name != "kind"}


def test_page_has_every_degradation():
    rows = re.findall(
        r"^\| `(\w+)` \| ([^|[]+)(?:\[(.*)\])? \|", SECTIONS["What spoils clean photos"], re.MULTILINE
    )
    told = {kind: tuple(re.findall(r"\w+", part) for part in parts) for kind, *parts in rows}
    expected = {
        kind: tuple(
            [
                name
                for name, field in cls.model_fields.items()
                if field.is_required() == needed and name != "kind"
            ]
            for needed in (True, False)
        )
        for kind, cls in members(degradations.Degradation).items()
    }
    assert {kind: tuple(map(sorted, parts)) for kind, parts in told.items()} == {
        kind: tuple(map(sorted, parts)) for kind, parts in expected.items()
    }


def test_recipes_of_the_page_can_be_read():
    assert {read.train.kind for read in map(Recipe.model_validate, RECIPES)} == set(SOURCES)
