"""How our forward finds the parts of a foreign module that have other names than ours.

A module that became one of ours keeps its parts under the names that they had: state_dict and whoever
set them know no others. What is kept beside is how our names lead to theirs, never the parts: somebody may
put another one in a part's place. `Part.__getattr__` asks, where a name of ours is none of the module's.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Renamed:
    """A part that has another name."""

    part: str

    def of(self, module: nn.Module) -> Any:
        # Not getattr, which would find an attribute of our class first.
        return nn.Module.__getattr__(module, self.part)


@dataclass(frozen=True)
class Table(Renamed):
    """A ModuleDict or ModuleList, as {our key: part}.

    Attributes:
        keys: {our key: their key}.
    """

    keys: dict[str, str]

    def of(self, module: nn.Module) -> dict[str, nn.Module]:
        table = super().of(module)._modules
        return {ours: table[theirs] for ours, theirs in self.keys.items()}


@dataclass(frozen=True)
class Inside(Renamed):
    """A part whose own parts have other names.

    Attributes:
        names: {our path in it: their path in it}.
    """

    names: dict[str, str]

    def of(self, module: nn.Module) -> Any:
        return _View(super().of(module), self.names)


class _View:
    """A module as it is, but for paths in it that have our names."""

    def __init__(self, module, names):
        self._module, self._names = module, names

    def __call__(self, *inputs):
        return self._module(*inputs)

    def __getattr__(self, name):
        if name in self._names:
            return self._module.get_submodule(self._names[name])
        inside = {
            ours.removeprefix(f"{name}."): theirs
            for ours, theirs in self._names.items()
            if ours.startswith(f"{name}.")
        }
        return _View(self._module, inside) if inside else getattr(self._module, name)
