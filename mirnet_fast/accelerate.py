"""accelerate() and revert(): the fused modules in a network built from somebody else's code."""

from dataclasses import dataclass, field

from torch import nn

from . import _equivalence, _recognition
from ._recognition import Misfit
from .engine.eligibility import ACCELERATED


@dataclass(frozen=True)
class Replaced:
    """A module that is ours now: its first name in the model, its former class, our class."""

    name: str
    class_name: str
    with_what: str


@dataclass(frozen=True)
class Left:
    """A module that looked like one of ours and stayed as it was, with the reason."""

    name: str
    class_name: str
    reason: str


@dataclass
class Report:
    """What accelerate() did. A module with several names in the model is listed once, by its first."""

    replaced: list[Replaced] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    def __str__(self):
        if not self.replaced and not self.left:
            return "mirnet_fast: nothing to replace was found"
        modules = "module" if len(self.replaced) == 1 else "modules"
        rest = "it was" if len(self.left) == 1 else "they were"
        lines = [f"mirnet_fast: {len(self.replaced)} {modules} replaced, {len(self.left)} left as {rest}"]
        groups = {}
        for entry in self.replaced:
            groups.setdefault((entry.class_name, entry.with_what), []).append(entry.name)
        for (class_name, with_what), names in groups.items():
            shown = ", ".join(name or "the model itself" for name in names[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"  {class_name} -> {with_what}: {shown}{more}")
        for entry in self.left:
            lines.append(f"  left {entry.name or 'the model itself'} ({entry.class_name}): {entry.reason}")
        return "\n".join(lines)


def accelerate(model):
    """Run the MIRNet parts of a network built from somebody else's code on the fused ops.

    Modules of classes named SKFF, DAU, Downsample (the blur-pool layer), ResidualDownSample,
    ResidualUpSample, DownSample, UpSample and MSRB are recognised wherever they stand in
    `model`, the model itself included; their code is not imported. A module is replaced if its
    parts are exactly those published and if, on random numbers in float64, its results and
    gradients and those of our module agree. Everything else stays as it is and is named in
    the report with the reason.

    A replaced module stays the same object with the same parameters, buffers, submodules, hooks
    and names; only its class changes (as torch.nn.utils.parametrize and FSDP do it). Whatever
    holds the module or its parameters - an optimiser, DDP, an EMA, a list - keeps working, and
    wrapped (DDP, DataParallel) and compiled models may be given as they are. Hooks on a replaced
    module keep firing; a module with hooks on the layers inside it is left.

    What holds at the time of the call is what counts: numbers that a foreign forward reads from
    its own attributes, and the parts inside. Put in adapters, weight_norm, pruning or hooks
    before calling this, or call revert() first. A replaced module takes its one input as a
    positional argument.

    Calling it again is harmless: what is ours already is skipped.

    Args:
        model: any torch.nn.Module, on any device, in any floating dtype, training or not.

    Returns:
        Report: what was replaced, and what was left and why.

    Raises:
        TypeError: `model` is no torch.nn.Module.
    """
    _check_model("accelerate", model)
    order, candidates, left = {}, {}, {}
    for name, module in model.named_modules():
        order[id(module)] = name
        kind, reason = _recognition.kind_of(module)
        if kind:
            candidates.setdefault(kind, []).append(module)
        elif reason:
            left[id(module)] = Left(name, _class_name(module), reason)

    # All is decided before anything is changed: an error on the way leaves the model as it was.
    fits, proofs = {}, {}

    def accepted(module, target):
        return type(module) is target or (id(module) in fits and fits[id(module)][1].target is target)

    for kind in _recognition.KINDS:
        for module in candidates.get(kind, ()):
            try:
                fit = _recognition.recognise(kind, module, accepted)
                _prove_once(module, fit, proofs)
            except Misfit as misfit:
                left[id(module)] = Left(order[id(module)], _class_name(module), str(misfit))
            else:
                fits[id(module)] = module, fit

    report = Report(left=[left[key] for key in order if key in left])
    for key, name in order.items():
        if key in fits:
            module, fit = fits[key]
            report.replaced.append(Replaced(name, _class_name(module), f"mirnet_fast.{fit.target.__name__}"))
            _recognition.become(module, fit)
    return report


def revert(model):
    """Undo accelerate(): every replaced module gets its own class and attributes back.

    Parameters and buffers stay the ones in use, so what was trained meanwhile is kept.

    Args:
        model: an accelerated model, or a deep or unpickled copy of one.

    Returns:
        list of str: the names of the modules that were changed back.

    Raises:
        TypeError: `model` is no torch.nn.Module.
    """
    _check_model("revert", model)
    names = []
    for name, module in model.named_modules():
        original = module.__dict__.pop(ACCELERATED, None)
        if original is not None:
            module.__class__ = original.cls
            module.__dict__.update(original.attributes)
            for attribute in original.absent:
                module.__dict__.pop(attribute, None)
            names.append(name)
    return names


def _check_model(function, model):
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model must be a torch.nn.Module; got {type(model).__name__}")


def _class_name(module):
    return getattr(module, "original_name", type(module).__name__)


def _prove_once(module, fit, proofs):
    key = _equivalence.signature(module)
    if key not in proofs:
        try:
            _equivalence.prove(module, fit)
            proofs[key] = None
        except Misfit as misfit:
            proofs[key] = str(misfit)
    if proofs[key]:
        raise Misfit(proofs[key])
