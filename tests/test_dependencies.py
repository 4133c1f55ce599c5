"""What pyproject.toml asks for: all that is imported, and each from a version on that is known to do."""

import ast
import importlib.metadata
import sys
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read pyproject.toml")

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, BUILD = PYPROJECT["project"], PYPROJECT["build-system"]["requires"]
GROUPS = {"build": BUILD, "always": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}

NOT_ASKED_FOR = {"bm3d"}  # its licence is for non-commercial use; `mirnet-fast demo` tells of it


@pytest.mark.parametrize("group", GROUPS)
def test_every_dependency_has_a_floor(group):
    asked = [Requirement(text) for text in GROUPS[group]]
    without = [
        str(requirement)
        for requirement in asked
        if requirement.name != PROJECT["name"] and not any(s.operator == ">=" for s in requirement.specifier)
    ]
    assert asked and without == []


def test_a_package_asked_for_twice_has_one_floor():
    asked = {}
    for requirement in map(Requirement, chain.from_iterable(GROUPS.values())):
        asked.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier))
    assert {name: floors for name, floors in asked.items() if len(floors) > 1} == {}


def imported(folder):
    """{distribution: a file that imports it}, the standard library and the project apart."""
    distributions = importlib.metadata.packages_distributions()
    found = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for module in {name.partition(".")[0] for name in names} - sys.stdlib_module_names:
                [distribution] = set(distributions.get(module, [module]))
                found[canonicalize_name(distribution)] = path.relative_to(ROOT)
    return {name: path for name, path in found.items() if name != PROJECT["name"]}


@pytest.mark.parametrize(
    ("folder", "groups"),
    [
        (
            "mirnet_fast",
            (
                *("always", "train", "lpips", "raw", "remote", "triton", "export", "hub"),
                *("report", "serve", "spandrel", "ray"),
            ),
        ),
        ("kernels", ("always", "triton")),
        ("benches", ("always", "bench", "peers", "train")),
        ("docs", ("always", "docs", "report")),
    ],
)
def test_all_that_is_imported_is_asked_for(folder, groups):
    asked = {canonicalize_name(Requirement(text).name) for group in groups for text in GROUPS[group]}
    asked |= NOT_ASKED_FOR
    found = imported(ROOT / folder)
    assert "torch" in found
    own = {path.stem for path in (ROOT / folder).iterdir()} | {"tests"}
    assert {n: p for n, p in found.items() if n not in asked and n.replace("-", "_") not in own} == {}
