"""Which modules of somebody else's network are, by name and structure, parts of MIRNet.

Nothing here looks at what a foreign `forward` computes; `prove` does. What a check does
not know, it refuses: a module taken for another one would compute something else in silence.
"""

import enum
import inspect
import types
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..engine.eligibility import ACCELERATED
from .fit import Fit, NotReplaceable
from .kinds import KINDS, OURS, Accepted
from .layers import is_hooked, nothing_but

# Code compiled in place by Module.compile() guards on the class, so it may stay.
_MODULE_ATTRIBUTES = frozenset(nn.Module().__dict__) | {ACCELERATED, "_compiled_call_impl"}
_OWN_METHODS = {"__init__", "forward", "extra_repr", "__repr__", "__module__", "__doc__", "__annotations__"}
_OWN_METHODS |= {"__dict__", "__weakref__", "__qualname__", "__firstlineno__", "__static_attributes__"}
_COPYING = {"__deepcopy__", "__copy__", "__getattribute__"}


def is_foreign(module: nn.Module) -> bool:
    """Whether the class of a module is neither ours nor torch's, so that it may become one of ours."""
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) and not named_kind(module):
        return False
    return not isinstance(module, tuple(OURS)) and type(module).__module__.partition(".")[0] != "torch"


def is_scripted(module: nn.Module) -> bool:
    """Whether it is TorchScript of a class of a published name."""
    return isinstance(module, torch.jit.ScriptModule) and getattr(module, "original_name", None) in KINDS


def named_kind(module: nn.Module) -> str | None:
    """The kind whose name its class has, or the first of those that it derives from; None for others."""
    return next((cls.__name__ for cls in type(module).__mro__ if cls.__name__ in KINDS), None)


def assignments(kind: str, module: nn.Module, accepted: Accepted) -> Iterator[dict[str, str]]:
    """Every {our name of a part: their name} by which a module may be of a kind, the likeliest first.

    Parts of our name are taken for what they are called; the others for what they look like. In a module
    whose class has another name each has to look so.
    """
    roles, is_named = KINDS[kind].roles, named_kind(module) == kind
    parts = {name: part for name, part in module._modules.items() if part is not None}

    def others(found, missing):
        if not missing:
            yield found
            return
        role, *rest = missing
        for name, part in parts.items():
            if name not in roles and name not in found.values() and roles[role](part, accepted):
                yield from others(found | {role: name}, rest)

    own = [role for role in roles if role in parts]
    if is_named or (KINDS[kind].looks(module) and all(roles[role](parts[role], accepted) for role in own)):
        yield from others({role: role for role in own}, [role for role in roles if role not in own])


def what_is_missing(kind: str, module: nn.Module) -> str:
    """Why a module that looked like one of a kind has no assignment; an empty string for all others."""
    names, own = set(KINDS[kind].roles) or {"filt"}, {*module._modules, *module._buffers}
    if named_kind(module) == kind:
        missing = next(name for name in KINDS[kind].roles if name not in own)
        return f"it has no submodule {missing}, nor another that looks like it"
    # One name tells nothing, but for the filter's.
    return "is not built as one" if names <= own and (len(names) > 1 or "filt" in names) else ""


def recognise(kind: str, module: nn.Module, found: Mapping[str, str], accepted: Accepted) -> Fit:
    """The Fit of a module as one of a kind.

    Args:
        found: one of `assignments`.

    Raises:
        NotReplaceable: something about the module is not as published; the message says what.
    """
    _check_class(module)
    parts = {role: (name, module.get_submodule(name)) for role, name in found.items()}
    if parts:
        nothing_but(module, "", [part for _, part in parts.values()])
    fit = KINDS[kind].fit(module, parts, accepted)
    for path, inner in [("", module)] if fit.composite and not fit.given else _outside(module, fit.given):
        _check_instance(inner, path)
        # Even parts that ours does call: it may write into what a hook got, or call them in bands.
        if path and is_hooked(inner):
            raise NotReplaceable(f"{path} has hooks, which would no longer be called as before")
    tensors = [*module.parameters(), *module.buffers()]
    if len({(t.dtype, t.device) for t in tensors}) > 1:
        raise NotReplaceable("its parameters differ in dtype or device")
    _check_names(module, fit)
    return fit


def _outside(module, given, path=""):
    yield path, module
    for name, part in module._modules.items():
        if part is not None and part not in given:
            yield from _outside(part, given, f"{path}.{name}" if path else name)


def _check_names(module, fit):
    for name in (*module._modules, *module._parameters, *module._buffers):
        if name in fit.attributes or hasattr(fit.target, name):
            raise NotReplaceable(f"its part {name} has the name of an attribute of ours")
    for name in fit.names:
        if name in module.__dict__:
            raise NotReplaceable(f"its attribute {name} has the name of a part of ours")


# --- what holds for every kind -------------------------------------------------------------


def _check_class(module):
    inherited = set(dir(nn.Module)) | _COPYING
    for base in type(module).__mro__:
        if base is nn.Module:
            break
        overridden = sorted((set(vars(base)) & inherited) - _OWN_METHODS)
        if overridden:
            raise NotReplaceable(f"its class overrides {', '.join(overridden)} of torch.nn.Module")
    parameters = inspect.signature(type(module).forward).parameters.values()
    if len(parameters) != 2 or any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters):
        raise NotReplaceable("its forward takes other arguments than one input")
    if module._is_full_backward_hook is False and module._backward_hooks:
        raise NotReplaceable(
            "has a backward hook of the deprecated kind, which sees the last operator inside"
        )


def _check_instance(module, path):
    prefix = f"{path}: " if path else ""
    if "forward" in module.__dict__:
        raise NotReplaceable(f"{prefix}forward was replaced on the object")
    for name, value in attributes_of(module).items():
        if not _is_plain(value):
            raise NotReplaceable(
                f"{prefix}attribute {name} is a {type(value).__name__}, which may be hidden state"
            )
    for name, value in [*module._parameters.items(), *module._buffers.items()]:
        if value is not None and type(value) not in (nn.Parameter, torch.Tensor):
            raise NotReplaceable(f"{prefix}{name} is a {type(value).__name__}, not a plain tensor")
        if value is not None and not value.is_floating_point():
            raise NotReplaceable(f"{prefix}{name} is {value.dtype}, not floating point")


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """What the object holds besides the state of every torch.nn.Module."""
    return {name: value for name, value in module.__dict__.items() if name not in _MODULE_ATTRIBUTES}


def _is_plain(value):
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(_is_plain(v) for v in value)
    if isinstance(value, dict):
        return all(_is_plain(v) for v in value.values())
    if type(value) in (types.SimpleNamespace, Namespace):
        return _is_plain(vars(value))
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
        # A closure can hold anything, a layer too.
        return not getattr(value, "__closure__", None) and not isinstance(
            getattr(value, "__self__", None), (nn.Module, torch.Tensor)
        )
    plain = (bool, int, float, complex, str, bytes, type, enum.Enum, torch.dtype, torch.device)
    return value is None or isinstance(value, plain)
