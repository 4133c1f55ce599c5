"""Which modules of somebody else's network are, by name and structure, parts of MIRNet.

Nothing here looks at what a foreign `forward` computes; `_equivalence` does. What a check does
not know, it refuses: a module taken for another one would compute something else in silence.
"""

import enum
import inspect
import types
from argparse import Namespace
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.utils import parametrize

from . import modules as ours
from .engine.eligibility import ACCELERATED, ACTIVATIONS
from .reference.filters import BINOMIAL, PADDING_ALIASES, PADDING_MODES, binomial_filter

# Parts come before what is built of them: a composite asks what became of its parts.
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


_RUN_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Code compiled in place by Module.compile() guards on the class, so it may stay.
_MODULE_ATTRIBUTES = frozenset(nn.Module().__dict__) | {ACCELERATED, "_compiled_call_impl"}
_OWN_METHODS = {"__init__", "forward", "extra_repr", "__repr__", "__module__", "__doc__", "__annotations__"}
_OWN_METHODS |= {"__dict__", "__weakref__", "__qualname__", "__firstlineno__", "__static_attributes__"}
_COPYING = {"__deepcopy__", "__copy__", "__getattribute__"}
_PADDING_MODULES = {
    nn.ReflectionPad2d: "reflect",
    nn.ReplicationPad2d: "replicate",
    nn.ZeroPad2d: "zero",
    nn.ConstantPad2d: "zero",
}


class Misfit(Exception):
    """The module cannot be replaced; the message is the reason."""


@dataclass(frozen=True)
class Fit:
    """How our class takes a module's place.

    Attributes:
        target: our class.
        input_shapes: the cases to try, each a list of the shapes of its inputs.
        attributes: what our forward reads from the module besides its parts.
        composite: our forward calls its parts and touches no parameter of them.
        as_list: the inputs are one argument, a list.
    """

    target: type
    input_shapes: tuple
    attributes: dict = field(default_factory=dict)
    composite: bool = False
    as_list: bool = False


@dataclass
class Original:
    """What a module was before it became ours.

    Attributes:
        cls: its class.
        inner: the classes of the modules in it, which ours takes for published parts.
        attributes, absent: those that ours set, with their old values, and those that were not there.
    """

    cls: type
    inner: tuple
    attributes: dict
    absent: tuple


def become(module, fit):
    """Make the module one of ours; it stays the same object."""
    state = module.__dict__
    inner = tuple(dict.fromkeys(type(m) for m in module.modules() if m is not module))
    kept = {name: state[name] for name in fit.attributes if name in state}
    absent = tuple(name for name in fit.attributes if name not in state)
    state[ACCELERATED] = Original(type(module), inner, kept, absent)
    state.update(fit.attributes)
    module.__class__ = fit.target


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
        Misfit: something about the module is not as published; the message says what.
    """
    _check_class(module)
    fit = _RECOGNISERS[kind](module, accepted)
    for path, inner in [("", module)] if fit.composite else module.named_modules():
        _check_instance(inner, path)
        # Even parts that ours does call: it may write into what a hook got, or call them in bands.
        if path and _is_hooked(inner):
            raise Misfit(f"{path} has hooks, which would no longer be called as before")
    if not fit.composite:
        tensors = [*module.parameters(), *module.buffers()]
        if len({(t.dtype, t.device) for t in tensors}) > 1:
            raise Misfit("its parameters differ in dtype or device")
    for name in fit.attributes:
        if name in module._modules or name in module._parameters or name in module._buffers:
            raise Misfit(f"its part {name} has the name of an attribute of ours")
    return fit


# --- what holds for every kind -------------------------------------------------------------


def _check_class(module):
    inherited = set(dir(nn.Module)) | _COPYING
    for base in type(module).__mro__:
        if base is nn.Module:
            break
        overridden = sorted((set(vars(base)) & inherited) - _OWN_METHODS)
        if overridden:
            raise Misfit(f"its class overrides {', '.join(overridden)} of torch.nn.Module")
    parameters = inspect.signature(type(module).forward).parameters.values()
    if len(parameters) != 2 or any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters):
        raise Misfit("its forward takes other arguments than one input")
    if module._is_full_backward_hook is False and module._backward_hooks:
        raise Misfit("has a backward hook of the deprecated kind, which sees the last operator inside")


def _check_instance(module, path):
    prefix = f"{path}: " if path else ""
    if "forward" in module.__dict__:
        raise Misfit(f"{prefix}forward was replaced on the object")
    for name, value in attributes_of(module).items():
        if not _is_plain(value):
            raise Misfit(f"{prefix}attribute {name} is a {type(value).__name__}, which may be hidden state")
    for name, value in [*module._parameters.items(), *module._buffers.items()]:
        if value is not None and type(value) not in (nn.Parameter, torch.Tensor):
            raise Misfit(f"{prefix}{name} is a {type(value).__name__}, not a plain tensor")
        if value is not None and not value.is_floating_point():
            raise Misfit(f"{prefix}{name} is {value.dtype}, not floating point")


def _is_hooked(module):
    return any(getattr(module, hooks) for hooks in _RUN_HOOKS)


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


def _parts(module, path, *names):
    """The named parts, after a check that there is nothing else with any state."""
    children = {name: child for name, child in module._modules.items() if child is not None}
    for name in names:
        if name not in children:
            raise Misfit(f"{path or 'it'} has no submodule {name}")
    for name, child in children.items():
        if name not in names:
            inside = f"{path}.{name}" if path else name
            if isinstance(child, nn.modules.dropout._DropoutNd) or type(child) is nn.RReLU:
                raise Misfit(f"{inside} is a {type(child).__name__}, which is random")
            if list(child.children()) or list(child.parameters()) or list(child.buffers()):
                raise Misfit(f"{inside} is a part that is not published")
    _no_own_state(module, path)
    return [children[name] for name in names]


def _no_own_state(module, path, *allowed):
    for name, value in [*module._parameters.items(), *module._buffers.items()]:
        if value is not None and name not in allowed:
            raise Misfit(f"{path or 'it'} holds {name}, which is not published")


def _sequence(module, path, length):
    if type(module) is not nn.Sequential:
        raise Misfit(f"{path} is a {type(module).__name__}, not a torch.nn.Sequential")
    if length is not None and len(module) != length:
        raise Misfit(f"{path} has {len(module)} parts instead of {length}")
    _no_own_state(module, path)
    return [(f"{path}.{name}", child) for name, child in module._modules.items()]


def _is_a(entry, *classes):
    path, module = entry
    if parametrize.is_parametrized(module):
        raise Misfit(f"{path} is parametrised (torch.nn.utils.parametrize)")
    if type(module) not in classes:
        wanted = " or ".join(c.__name__ for c in classes)
        raise Misfit(f"{path} is a {type(module).__name__}, not a {wanted} of torch.nn")
    return module


# --- layers --------------------------------------------------------------------------------


def _conv(entry, kernel, in_channels=None, out_channels=None, bias=None):
    """A stride-1 torch.nn.Conv2d that keeps height and width; kernel None is any odd square."""
    path, module = entry
    _is_a(entry, nn.Conv2d)
    _plain_weight(entry)
    size = module.kernel_size[0]
    if kernel is not None or size % 2 == 0:
        _expect(path, "kernel_size", module.kernel_size, (kernel or "odd",) * 2)
    _expect(path, "kernel_size", module.kernel_size, (size, size))
    padding = {"same": (size // 2,) * 2, "valid": (0, 0)}.get(module.padding, module.padding)
    _expect(path, "padding", padding, (size // 2,) * 2)
    _expect(path, "padding_mode", module.padding_mode, "zeros")
    _conv_geometry(path, module, 1, in_channels, out_channels)
    if bias is not None:
        _expect(path, "bias", module.bias is not None, bias)
    return module


def _transposed_conv(entry, channels):
    path, module = entry
    _is_a(entry, nn.ConvTranspose2d)
    _plain_weight(entry)
    _expect(path, "kernel_size", module.kernel_size, (3, 3))
    _expect(path, "padding", module.padding, (1, 1))
    _expect(path, "output_padding", module.output_padding, (1, 1))
    _conv_geometry(path, module, 2, channels, channels)
    return module


def _conv_geometry(path, module, stride, in_channels, out_channels):
    _expect(path, "stride", module.stride, (stride, stride))
    _expect(path, "dilation", module.dilation, (1, 1))
    _expect(path, "groups", module.groups, 1)
    if in_channels is not None:
        _expect(path, "in_channels", module.in_channels, in_channels)
    if out_channels is not None:
        _expect(path, "out_channels", module.out_channels, out_channels)
    incoming, outgoing = module.in_channels, module.out_channels
    pair = (incoming, outgoing) if isinstance(module, nn.ConvTranspose2d) else (outgoing, incoming)
    _expect(path, "weight's shape", tuple(module.weight.shape), (*pair, *module.kernel_size))


def _plain_weight(entry):
    path, module = entry
    if set(module._parameters) != {"weight", "bias"} or module._parameters["weight"] is None:
        raise Misfit(f"{path} computes its weight (weight_norm, spectral_norm or pruning)")
    if module._buffers or module._modules:
        raise Misfit(f"{path} holds more than a weight and a bias")


def _expect(path, what, value, wanted):
    if value != wanted:
        raise Misfit(f"{path} has {what} {value}, not {wanted}")


def _prelu(entry, channels, *others):
    path, module = entry
    _is_a(entry, nn.PReLU, *others)
    if isinstance(module, nn.PReLU):
        _plain_slope(entry)
        if module.weight.numel() not in (1, channels):
            raise Misfit(f"{path} has {module.weight.numel()} slopes, not 1 or {channels}")
    return module


def _plain_slope(entry):
    path, module = entry
    if set(module._parameters) != {"weight"} or module._parameters["weight"] is None or module._buffers:
        raise Misfit(f"{path} computes its slope")


def _same_bias(entries):
    if len({module.bias is not None for _, module in entries}) > 1:
        paths = ", ".join(path for path, _ in entries)
        raise Misfit(f"some of {paths} have a bias and some have none")


def _blur_geometry(module, path=""):
    """(filt_size, pad_type, stride, pad_off, channels) of a blur-pool layer."""
    where = path or "it"
    pads = [child for child in module._modules.values() if child is not None]
    filt = module._buffers.get("filt")
    if filt is None:
        raise Misfit(f"{where} has no buffer filt")
    _no_own_state(module, path, "filt")
    if (
        filt.dim() != 4
        or filt.shape[1] != 1
        or filt.shape[2] != filt.shape[3]
        or filt.shape[2] not in BINOMIAL
    ):
        raise Misfit(f"{where} has a filt of shape {tuple(filt.shape)}, not (channels, 1, k, k) with k to 7")
    if filt.is_meta:
        raise Misfit(f"{where} has its filt on the meta device, so its values are unknown")
    channels, size = filt.shape[0], filt.shape[2]
    if not torch.equal(filt, binomial_filter(size, filt.dtype, filt.device).expand_as(filt)):
        raise Misfit(f"{where} has a filt that is not the binomial filter of {size} taps")
    _expect(where, "filt_size", getattr(module, "filt_size", size), size)
    if len(pads) > 1:
        raise Misfit(f"{where} has more than one submodule")
    pad_type, sizes = _pad_module(pads[0], where) if pads else _pad_attributes(module, where)
    pad_off = sizes[0] - (size - 1) // 2
    after = size // 2 + pad_off
    if sizes != (sizes[0], after, sizes[0], after) or sizes[0] < 0:
        raise Misfit(f"{where} pads by {sizes}, which no pad_off gives for {size} taps")
    stride = getattr(module, "stride", None)
    if isinstance(stride, (tuple, list)) and len(stride) == 2 and stride[0] == stride[1]:
        stride = stride[0]
    if type(stride) is not int or stride < 1:
        raise Misfit(f"{where} has no attribute stride that is a number")
    return size, pad_type, stride, pad_off, channels


def _pad_module(pad, where):
    pad_type = _PADDING_MODULES.get(type(pad))
    if pad_type is None or getattr(pad, "value", 0) != 0:
        raise Misfit(f"{where} pads by a {type(pad).__name__} that is neither reflect, replicate nor zero")
    return pad_type, tuple(pad.padding)


def _pad_attributes(module, where):
    pad_type = getattr(module, "pad_type", None)
    sizes = getattr(module, "pad_sizes", None)
    if not isinstance(pad_type, str) or PADDING_ALIASES.get(pad_type, pad_type) not in PADDING_MODES:
        raise Misfit(f"{where} has neither a padding module nor a known pad_type")
    if not isinstance(sizes, (tuple, list)) or [type(s) for s in sizes] != [int] * 4:
        raise Misfit(f"{where} has neither a padding module nor four pad_sizes")
    return PADDING_ALIASES.get(pad_type, pad_type), tuple(sizes)


# --- the kinds -----------------------------------------------------------------------------


def _downsample(module, accepted):
    size, pad_type, stride, pad_off, channels = _blur_geometry(module)
    attributes = {
        "filt_size": size,
        "pad_type": pad_type,
        "stride": stride,
        "pad_off": pad_off,
        "pad_sizes": ((size - 1) // 2 + pad_off, size // 2 + pad_off) * 2,
        "channels": channels,
    }
    base = 10 + 2 * abs(pad_off)
    return Fit(ours.Downsample, _shapes(channels, base), attributes)


def _shapes(channels, base=8):
    return ([(2, channels, base, base - 2)], [(2, channels, base - 1, base + 1)])


def _skff(module, accepted):
    conv_du, fcs = _parts(module, "", "conv_du", "fcs")
    reduce, activation = _sequence(conv_du, "conv_du", 2)
    channels = _conv(reduce, 1).in_channels
    squeezed = reduce[1].out_channels
    _prelu(activation, squeezed, nn.LeakyReLU, nn.ReLU)
    if type(fcs) is not nn.ModuleList or not len(fcs):
        raise Misfit("fcs is not a torch.nn.ModuleList with at least one part")
    entries = [(f"fcs.{i}", fc) for i, fc in enumerate(fcs)]
    for entry in entries:
        _conv(entry, 1, squeezed, channels)
    _same_bias(entries)
    return Fit(ours.SKFF, tuple(shapes * len(fcs) for shapes in _shapes(channels)), as_list=True)


def _dau(module, accepted):
    body, spatial, channel, conv1x1 = _parts(module, "", "body", "SA", "CA", "conv1x1")
    first, activation, second = _sequence(body, "body", 3)
    channels = _conv(first, None).in_channels
    _conv(first, None, channels, channels)
    _conv(second, None, channels, channels)
    _prelu(activation, channels, *ACTIVATIONS[1:])
    (gate,) = _parts(spatial, "SA", "spatial")
    (gate_conv,) = _parts(gate, "SA.spatial", "conv")
    _conv(("SA.spatial.conv", gate_conv), None, 2, 1, bias=False)
    (conv_du,) = _parts(channel, "CA", "conv_du")
    squeeze, relu, excite, sigmoid = _sequence(conv_du, "CA.conv_du", 4)
    squeezed = _conv(squeeze, 1, channels).out_channels
    _is_a(relu, nn.ReLU)
    _conv(excite, 1, squeezed, channels)
    _is_a(sigmoid, nn.Sigmoid)
    _conv(("conv1x1", conv1x1), 1, 2 * channels, channels)
    return Fit(ours.DAU, _shapes(channels))


def _residual_down(module, accepted):
    top, bottom = _parts(module, "", "top", "bot")
    expand, act, conv, tail_act, blur, project = _sequence(top, "top", 6)
    low_blur, low_project = _sequence(bottom, "bot", 2)
    channels = _residual_head(expand, act, tail_act)
    _conv(conv, 3, channels, channels)
    for path, layer in (blur, low_blur):
        _expect(path, "geometry", _blur_geometry(layer, path), (3, "reflect", 2, 0, channels))
        # Ours does not read filt: only our blur-pool layer refuses to load another one later.
        if not accepted(layer, ours.Downsample):
            raise Misfit(f"{path} is no Downsample that can be replaced")
    _conv(low_project, 1, channels, _conv(project, 1, channels).out_channels)
    return Fit(ours.ResidualDownSample, _shapes(channels))


def _residual_up(module, accepted):
    top, bottom = _parts(module, "", "top", "bot")
    expand, act, conv, tail_act, project = _sequence(top, "top", 5)
    enlarge, low_project = _sequence(bottom, "bot", 2)
    channels = _residual_head(expand, act, tail_act)
    _transposed_conv(conv, channels)
    path, layer = enlarge
    _is_a(enlarge, nn.Upsample)
    _expect(path, "mode", layer.mode, "bilinear")
    _expect(path, "align_corners", bool(layer.align_corners), False)
    _expect(path, "size", layer.size, None)
    _expect(path, "recompute_scale_factor", bool(layer.recompute_scale_factor), False)
    if layer.scale_factor not in (2, (2, 2)):
        raise Misfit(f"{path} has scale_factor {layer.scale_factor}, not 2")
    _conv(low_project, 1, channels, _conv(project, 1, channels).out_channels)
    return Fit(ours.ResidualUpSample, _shapes(channels))


def _residual_head(expand, act, tail_act):
    channels = _conv(expand, 1).in_channels
    _conv(expand, 1, channels, channels)
    _prelu(act, channels, *ACTIVATIONS[1:])
    _prelu(tail_act, channels)
    return channels


def _steps(target, step):
    def recogniser(module, accepted):
        (body,) = _parts(module, "", "body")
        entries = _sequence(body, "body", None)
        for path, part in entries:
            if not accepted(part, step):
                raise Misfit(f"{path} is no {step.__name__} that can be replaced")
        if not entries:
            raise Misfit("body is empty")
        return Fit(target, _shapes(body[0].top[0].in_channels), composite=True)

    return recogniser


def _msrb(module, accepted):
    names = ("blocks", "last_up", "down", "up", "conv_out", "selective_kernel")
    blocks, last_up, down, up, _, fusions = _parts(module, "", *names)
    if any(type(part) is not nn.ModuleList for part in (blocks, fusions, *blocks)):
        raise Misfit("blocks, each of its parts and selective_kernel must be torch.nn.ModuleList")
    if any(type(part) is not nn.ModuleDict for part in (last_up, down, up)):
        raise Misfit("last_up, down and up must be torch.nn.ModuleDict")
    height, widths = len(blocks), {len(row) for row in blocks}
    if height < 1 or len(widths) != 1 or 0 in widths or len(fusions) != height:
        raise Misfit("blocks must be a table with one row for each part of selective_kernel")
    channels = [_stream_channels(row, f"blocks.{j}") for j, row in enumerate(blocks)]
    _keys("down", down, _resampler_keys(channels, lambda source, target: source < target))
    _keys("up", up, _resampler_keys(channels, lambda source, target: source > target))
    _keys("last_up", last_up, {str(j) for j in range(1, height)})
    for key, sampler in down.items():
        # Ours computes some of them once instead of twice, so they must be known to be functions.
        if not accepted(sampler, ours.DownSample):
            raise Misfit(f"down.{key} is no DownSample that can be replaced")
        for path, inner in sampler.named_modules(prefix=f"down.{key}"):
            if _is_hooked(inner):
                raise Misfit(f"{path} has hooks, which would be called once instead of twice")
    attributes = {"height": height, "width": widths.pop(), "channels": channels}
    unit = 2 ** (height - 1)
    shapes = ([(2, channels[0], 2 * unit, 4 * unit)], [(1, channels[0], 3 * unit, 2 * unit)])
    return Fit(ours.MSRB, shapes, attributes, composite=True)


def _stream_channels(row, path):
    convs = [m for m in row.modules() if isinstance(m, nn.Conv2d)]
    if not convs:
        raise Misfit(f"{path} has no convolution")
    return convs[0].in_channels


def _resampler_keys(channels, wanted):
    streams = range(len(channels))
    pairs = [(source, target) for source in streams for target in streams if wanted(source, target)]
    return {f"{channels[source]}_{2 ** abs(source - target)}" for source, target in pairs}


def _keys(name, table, wanted):
    if set(table) != wanted:
        raise Misfit(f"{name} has the keys {sorted(table)}, not {sorted(wanted)}")


_RECOGNISERS = {
    "Downsample": _downsample,
    "SKFF": _skff,
    "DAU": _dau,
    "ResidualDownSample": _residual_down,
    "ResidualUpSample": _residual_up,
    "DownSample": _steps(ours.DownSample, ours.ResidualDownSample),
    "UpSample": _steps(ours.UpSample, ours.ResidualUpSample),
    "MSRB": _msrb,
}
