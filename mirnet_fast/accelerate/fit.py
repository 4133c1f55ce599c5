"""How one of our classes takes a foreign module's place, and how the module is changed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..engine.eligibility import ACCELERATED
from .names import Renamed

Shapes = Sequence[tuple[int, ...]]  # of the inputs of a module


class NotReplaceable(Exception):
    """The module cannot be replaced; the message is the reason."""


@dataclass(frozen=True)
class Fit:
    """How our class takes a module's place.

    Attributes:
        target: our class.
        input_shapes: the cases to try, each a list of the shapes of its inputs.
        uneven: one more case, a list as above, in which both may fail.
        attributes: what our forward reads from the module besides its parts.
        names: {our name of a part: Renamed}, for parts of other names.
        composite: our forward calls its parts and touches no parameter of them.
        given: parts of a composite that are ours or about to be; none other has to be looked at.
        as_list: the inputs are one argument, a list.
    """

    target: type[nn.Module]
    input_shapes: tuple[Shapes, ...]
    uneven: Shapes | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    names: dict[str, Renamed] = field(default_factory=dict)
    composite: bool = False
    given: tuple[nn.Module, ...] = ()
    as_list: bool = False


@dataclass
class Original:
    """What a module was before it became ours.

    Attributes:
        cls: its class.
        inner: the classes of the modules in it, which ours takes for published parts.
        attributes, absent: those that ours set, with their old values, and those that were not there.
        names: of its Fit.
    """

    cls: type[nn.Module]
    inner: tuple[type[nn.Module], ...]
    attributes: dict[str, Any]
    absent: tuple[str, ...]
    names: dict[str, Renamed]

    def attribute(self, module: nn.Module, name: str) -> Any:
        """What `module.name` is where neither the module nor our class has such a one."""
        if name in self.names:
            return self.names[name].of(module)
        for base in self.cls.__mro__:
            if name in vars(base):
                value = vars(base)[name]
                # A method of its former class, or a property.
                return value.__get__(module, self.cls) if hasattr(type(value), "__get__") else value
        raise AttributeError(f"{type(module).__name__!r} object has no attribute {name!r}")


def become(module: nn.Module, fit: Fit) -> None:
    """Make the module one of ours; it stays the same object."""
    state = module.__dict__
    inner = tuple(dict.fromkeys(type(m) for m in module.modules() if m is not module))
    kept = {name: state[name] for name in fit.attributes if name in state}
    absent = tuple(name for name in fit.attributes if name not in state)
    state[ACCELERATED] = Original(type(module), inner, kept, absent, fit.names)
    state.update(fit.attributes)
    module.__class__ = fit.target
