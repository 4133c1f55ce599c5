"""accelerate() and revert(): the fused modules in a network built from somebody else's code."""

from torch import nn

from ..engine.eligibility import ACCELERATED, is_ours
from ..modules import Convolutions
from . import prove, recognise
from .chains import is_chain
from .fit import Fit, NotReplaceable, become
from .report import Replaced, Report, Skipped

__all__ = ["Replaced", "Report", "Skipped", "accelerate", "revert"]


def accelerate(model: nn.Module, convolutions: bool = False) -> Report:
    """Run the MIRNet parts of a network built from somebody else's code on the fused ops.

    A whole MIRNet becomes one mirnet_fast.MIRNet. In it, and wherever else they stand in `model`, the model
    itself included, RRG, MSRB, SKFF, DAU, DownSample, UpSample, ResidualDownSample, ResidualUpSample and
    Downsample (the blur-pool layer) are recognised: by what they consist of, whatever their classes and
    parts are called. Their code is not imported. A module is replaced if its parts are exactly those
    published and if, on random numbers in float64, its results and gradients and those of our module agree.
    What only looks like one stays as it is and is named in the report with the reason; what fits in it is
    replaced.

    A replaced module stays the same object with the same parameters, buffers, submodules, hooks
    and names; only its class changes (as torch.nn.utils.parametrize and FSDP do it). Whatever
    holds the module or its parameters - an optimiser, DDP, an EMA, a list - keeps working, and
    wrapped (DDP, DataParallel) and compiled models may be given as they are. Methods of its former class
    that ours lacks may be called as before. Hooks on a replaced module keep firing; a module with hooks on
    the layers inside it is skipped.

    What holds at the time of the call is what counts: numbers that a foreign forward reads from
    its own attributes, and the parts inside. Put in adapters, weight_norm, pruning or hooks
    before calling this, or call revert() first. A replaced module takes its one input as a
    positional argument.

    Calling it again is harmless: what is ours already is skipped.

    Args:
        model: any torch.nn.Module, on any device, in any floating dtype, training or not.
        convolutions: whether to take over, outside of such parts, each torch.nn.Sequential of 3x3 (and other)
            convolutions that keep height and width, with and without activations, too.

    Returns:
        What was replaced, and what was skipped and why.

    Raises:
        TypeError: `model` is no torch.nn.Module.
    """
    _check_model("accelerate", model)
    # All is decided before anything is changed: an error on the way leaves the model as it was.
    names = {module: name for name, module in model.named_modules()}
    fits, reasons, proofs = {}, {}, {}

    def accepted(module, target):
        return type(module) is target or (module in fits and fits[module].target is target)

    for kind in recognise.KINDS:
        for module in filter(recognise.is_foreign, names):
            if module not in fits:
                try:
                    fits[module] = _fit(kind, module, accepted, proofs)
                except NotReplaceable as error:
                    if recognise.named_kind(module) == kind:
                        reasons[module] = str(error)
                    elif str(error):
                        reasons.setdefault(module, f"looks like {kind}, but {error}")
    if convolutions:
        blocks = (module for module in names if module in fits or is_ours(module))
        inside = {inner for module in blocks for inner in module.modules()}
        chains = (module for module in names if module not in inside and is_chain(module))
        fits |= {module: Fit(Convolutions, ()) for module in chains}
    reasons |= {m: "scripted by TorchScript, its code is fixed" for m in filter(recognise.is_scripted, names)}

    report = Report()
    for module, name in names.items():
        if module in fits:
            what = f"mirnet_fast.{fits[module].target.__name__}"
            report.replaced.append(Replaced(name, _class_name(module), what))
            become(module, fits[module])
        elif module in reasons:
            report.skipped.append(Skipped(name, _class_name(module), reasons[module]))
    return report


def revert(model: nn.Module) -> list[str]:
    """Undo accelerate(): every replaced module gets its own class and attributes back.

    Parameters and buffers stay the ones in use, so what was trained meanwhile is kept.

    Args:
        model: an accelerated model, or a deep or unpickled copy of one.

    Returns:
        The names of the modules that were changed back.

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


def _fit(kind, module, accepted, proofs):
    """The first Fit that holds; NotReplaceable without a message for what has nothing of the kind."""
    reason = None
    for found in recognise.assignments(kind, module, accepted):
        try:
            fit = recognise.recognise(kind, module, found, accepted)
            _prove_once(module, fit, proofs)
            return fit
        except NotReplaceable as error:
            reason = reason or error
    raise reason or NotReplaceable(recognise.what_is_missing(kind, module))


def _prove_once(module, fit, proofs):
    key = fit.target, repr(fit.names), prove.signature(module)
    if key not in proofs:
        try:
            prove.prove(module, fit)
            proofs[key] = None
        except NotReplaceable as error:
            proofs[key] = str(error)
    if proofs[key]:
        raise NotReplaceable(proofs[key])
