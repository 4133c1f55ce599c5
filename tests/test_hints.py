"""Every public function says what it takes and what it gives: a type checker asks that of all or of none."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def is_public(name):
    return not name.startswith("_") or (name.startswith("__") and name.endswith("__"))


FILES = [
    path
    for folder in ("mirnet_fast", "build_support")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if all(is_public(part) for part in path.relative_to(ROOT).with_suffix("").parts)
]


def without_hints(tree, inside=""):
    """The names of the public functions and methods in a module or class that lack a hint, and of what."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and is_public(node.name):
            yield from without_hints(node, f"{inside}{node.name}.")
        elif isinstance(node, ast.FunctionDef) and is_public(node.name):
            given = node.args
            named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            is_static = any(ast.unparse(d) == "staticmethod" for d in node.decorator_list)
            named = named[1:] if inside and not is_static else named
            for argument in filter(None, named):
                if argument.annotation is None:
                    yield f"{inside}{node.name}: {argument.arg}"
            if node.returns is None:
                yield f"{inside}{node.name}: what it returns"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_functions_have_all_hints(path):
    assert list(without_hints(ast.parse(path.read_text()))) == []


def test_what_lacks_hints_is_found():
    code = """
def complete(a: int, *b: int, c: int = 0, **d: int) -> None: ...
def incomplete(a, *b, c=0, **d): ...
def _private(a): ...
class Public:
    def __init__(self, a) -> None: ...
    def _private(self, a): ...
    @staticmethod
    def static(a) -> None: ...
class _Private:
    def method(self, a): ...
"""
    assert list(without_hints(ast.parse(code))) == [
        *(f"incomplete: {name}" for name in ("a", "c", "b", "d", "what it returns")),
        "Public.__init__: a",
        "Public.static: a",
    ]
