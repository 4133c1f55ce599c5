"""Which modules of somebody else's network are, by name and structure, parts of MIRNet.

Nothing here looks at what a foreign `forward` computes; `prove` does. What a check does
not know, it refuses: a module taken for another one would compute something else in silence.
"""

import enum
import inspect
import types
from argparse import Namespace

import torch
from torch import nn

from .. import modules as ours
from ..modules._layers import ACCELERATED
from .fit import NotReplaceable
from .kinds import RECOGNISERS
from .layers import is_hooked

KINDS = (
    "Downsample",
    "SKFF",
    "DAU",
    "ResidualDownSample",
    "ResidualUpSample",
    "DownSample",
    "UpSample",
    "MSRB",
)
OURS = frozenset(getattr(ours, kind) for kind in KINDS)

# Code compiled in place by Module.compile() guards on the class, so it may stay.
_MODULE_ATTRIBUTES = frozenset(nn.Module().__dict__) | {ACCELERATED, "_compiled_call_impl"}
_OWN_METHODS = {"__init__", "forward", "extra_repr", "__repr__", "__module__", "__doc__", "__annotations__"}
_OWN_METHODS |= {"__dict__", "__weakref__", "__qualname__", "__firstlineno__", "__static_attributes__"}
_COPYING = {"__deepcopy__", "__copy__", "__getattribute__"}


def kind_of(module):
    """(kind, None) of a candidate; (None, reason) of what only looks like one; else (None, None)."""
    if isinstance(module, tuple(OURS)):
        return None, None
    if isinstance(module, torch.jit.ScriptModule):
        kind = getattr(module, "original_name", None)
        return (None, "scripted by TorchScript, its code is fixed") if kind in KINDS else (None, None)
    if type(module).__name__ in KINDS:
        return type(module).__name__, None
    for base in type(module).__mro__[1:]:
        if base.__name__ in KINDS:
            return None, f"is of a class derived from {base.__name__}, which may compute something else"
    for kind, parts in _LOOKS.items():
        if parts <= set(module._modules) | set(module._buffers):
            return None, f"has the parts of {kind}, but its class has another name"
    return None, None


_LOOKS = {
    "SKFF": {"conv_du", "fcs"},
    "DAU": {"body", "SA", "CA", "conv1x1"},
    "MSRB": {"blocks", "down", "up", "last_up", "selective_kernel"},
    "Downsample": {"filt"},
    "ResidualDownSample or ResidualUpSample": {"top", "bot"},
}


def recognise(kind, module, accepted):
    """The Fit of a module of a class named `kind`.

    Args:
        accepted: function that says whether an inner module is ours or about to become ours.

    Raises:
        NotReplaceable: something about the module is not as published; the message says what.
    """
    _check_class(module)
    fit = RECOGNISERS[kind](module, accepted)
    for path, inner in [("", module)] if fit.composite else module.named_modules():
        _check_instance(inner, path)
        # Even parts that ours does call: it may write into what a hook got, or call them in bands.
        if path and is_hooked(inner):
            raise NotReplaceable(f"{path} has hooks, which would no longer be called as before")
    if not fit.composite:
        tensors = [*module.parameters(), *module.buffers()]
        if len({(t.dtype, t.device) for t in tensors}) > 1:
            raise NotReplaceable("its parameters differ in dtype or device")
    for name in fit.attributes:
        if name in module._modules or name in module._parameters or name in module._buffers:
            raise NotReplaceable(f"its part {name} has the name of an attribute of ours")
    return fit


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


def attributes_of(module):
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
