"""Whether the layers of a foreign module are torch.nn's own, and of the published numbers."""

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..reference.filters import BINOMIAL, PADDING_ALIASES, PADDING_MODES, binomial_filter
from .fit import NotReplaceable

Entry = tuple[str, nn.Module]  # where a layer lies, and the layer
Layer = TypeVar("Layer", bound=nn.Module)

_RUN_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PADDING_MODULES = {
    nn.ReflectionPad2d: "reflect",
    nn.ReplicationPad2d: "replicate",
    nn.ZeroPad2d: "zero",
    nn.ConstantPad2d: "zero",
}


def nothing_but(module: nn.Module, path: str, wanted: Iterable[nn.Module]) -> None:
    """Check that besides the `wanted` modules in it nothing has any state, and nothing is random."""
    inside = {inner for part in wanted for inner in part.modules()}
    for name, inner in module.named_modules(prefix=path):
        if inner in inside:
            continue
        if isinstance(inner, nn.modules.dropout._DropoutNd) or type(inner) is nn.RReLU:
            raise NotReplaceable(f"{name} is a {type(inner).__name__}, which is random")
        if inside.isdisjoint(inner.modules()) and (inner._parameters or inner._buffers):
            raise NotReplaceable(f"{name} is a part that is not published")
        no_own_state(inner, name)


def no_own_state(module: nn.Module, path: str, *allowed: str) -> None:
    for name, value in [*module._parameters.items(), *module._buffers.items()]:
        if value is not None and name not in allowed:
            raise NotReplaceable(f"{path or 'it'} holds {name}, which is not published")


def sequence(module: nn.Module, path: str, length: int | None) -> list[Entry]:
    if type(module) is not nn.Sequential:
        raise NotReplaceable(f"{path} is a {type(module).__name__}, not a torch.nn.Sequential")
    if length is not None and len(module) != length:
        raise NotReplaceable(f"{path} has {len(module)} parts instead of {length}")
    no_own_state(module, path)
    return [(f"{path}.{name}", child) for name, child in module._modules.items()]


def is_a(entry: Entry, *classes: type[Layer]) -> Layer:
    path, module = entry
    if parametrize.is_parametrized(module):
        raise NotReplaceable(f"{path} is parametrised (torch.nn.utils.parametrize)")
    if type(module) not in classes:
        wanted = " or ".join(c.__name__ for c in classes)
        raise NotReplaceable(f"{path} is a {type(module).__name__}, not a {wanted} of torch.nn")
    return module  # pyrefly: ignore[bad-return]


def plain_conv(
    entry: Entry,
    kernel: int | None,
    in_channels: int | None = None,
    out_channels: int | None = None,
    bias: bool | None = None,
) -> nn.Conv2d:
    """A stride-1 torch.nn.Conv2d that keeps height and width; kernel None is any odd square."""
    path, module = entry[0], is_a(entry, nn.Conv2d)
    _plain_weight(entry)
    size = module.kernel_size[0]
    if kernel is not None or size % 2 == 0:
        expect(path, "kernel_size", module.kernel_size, (kernel or "odd",) * 2)
    expect(path, "kernel_size", module.kernel_size, (size, size))
    named = {"same": (size // 2,) * 2, "valid": (0, 0)}
    padding = named[module.padding] if isinstance(module.padding, str) else module.padding
    expect(path, "padding", padding, (size // 2,) * 2)
    expect(path, "padding_mode", module.padding_mode, "zeros")
    _conv_geometry(path, module, 1, in_channels, out_channels)
    if bias is not None:
        expect(path, "bias", module.bias is not None, bias)
    return module


def doubling_conv(entry: Entry, channels: int) -> nn.ConvTranspose2d:
    path, module = entry[0], is_a(entry, nn.ConvTranspose2d)
    _plain_weight(entry)
    expect(path, "kernel_size", module.kernel_size, (3, 3))
    expect(path, "padding", module.padding, (1, 1))
    expect(path, "output_padding", module.output_padding, (1, 1))
    _conv_geometry(path, module, 2, channels, channels)
    return module


def _conv_geometry(path, module, stride, in_channels, out_channels):
    expect(path, "stride", module.stride, (stride, stride))
    expect(path, "dilation", module.dilation, (1, 1))
    expect(path, "groups", module.groups, 1)
    if in_channels is not None:
        expect(path, "in_channels", module.in_channels, in_channels)
    if out_channels is not None:
        expect(path, "out_channels", module.out_channels, out_channels)
    incoming, outgoing = module.in_channels, module.out_channels
    pair = (incoming, outgoing) if isinstance(module, nn.ConvTranspose2d) else (outgoing, incoming)
    expect(path, "weight's shape", tuple(module.weight.shape), (*pair, *module.kernel_size))


def _plain_weight(entry):
    path, module = entry
    if set(module._parameters) != {"weight", "bias"} or module._parameters["weight"] is None:
        raise NotReplaceable(f"{path} computes its weight (weight_norm, spectral_norm or pruning)")
    if module._buffers or module._modules:
        raise NotReplaceable(f"{path} holds more than a weight and a bias")


def expect(path: str, what: str, value: object, wanted: object) -> None:
    if value != wanted:
        raise NotReplaceable(f"{path} has {what} {value}, not {wanted}")


def prelu(entry: Entry, channels: int, *others: type[nn.Module]) -> nn.Module:
    path, module = entry
    is_a(entry, nn.PReLU, *others)
    if isinstance(module, nn.PReLU):
        _plain_slope(entry)
        if module.weight.numel() not in (1, channels):
            raise NotReplaceable(f"{path} has {module.weight.numel()} slopes, not 1 or {channels}")
    return module


def _plain_slope(entry):
    path, module = entry
    if set(module._parameters) != {"weight"} or module._parameters["weight"] is None or module._buffers:
        raise NotReplaceable(f"{path} computes its slope")


def same_bias(entries: Iterable[Entry]) -> None:
    if len({module.bias is not None for _, module in entries}) > 1:
        paths = ", ".join(path for path, _ in entries)
        raise NotReplaceable(f"some of {paths} have a bias and some have none")


def filter_name(module: nn.Module) -> str | None:
    """The name of a blur-pool layer's filter: the published one, or that of the only buffer."""
    names = [name for name, buffer in module._buffers.items() if buffer is not None]
    return "filt" if "filt" in names else names[0] if len(names) == 1 else None


def blur_geometry(module: nn.Module, path: str = "") -> tuple[int, str, int, int, int]:
    """(filt_size, pad_type, stride, pad_off, channels) of a blur-pool layer."""
    where = path or "it"
    pads = [child for child in module._modules.values() if child is not None]
    name = filter_name(module)
    if name is None:
        raise NotReplaceable(f"{where} has no buffer filt")
    no_own_state(module, path, name)
    filt = module.get_buffer(name)
    if (
        filt.dim() != 4
        or filt.shape[1] != 1
        or filt.shape[2] != filt.shape[3]
        or filt.shape[2] not in BINOMIAL
    ):
        raise NotReplaceable(
            f"{where} has a filt of shape {tuple(filt.shape)}, not (channels, 1, k, k) with k to 7"
        )
    if filt.is_meta:
        raise NotReplaceable(f"{where} has its filt on the meta device, so its values are unknown")
    channels, size = filt.shape[0], filt.shape[2]
    if not torch.equal(filt, binomial_filter(size, filt.dtype, filt.device).expand_as(filt)):
        raise NotReplaceable(f"{where} has a filt that is not the binomial filter of {size} taps")
    expect(where, "filt_size", getattr(module, "filt_size", size), size)
    if len(pads) > 1:
        raise NotReplaceable(f"{where} has more than one submodule")
    if pads:
        pad_type, sizes = _pad_module(pads[0], where)
    elif hasattr(module, "pad_type") or hasattr(module, "pad_sizes"):
        pad_type, sizes = _pad_attributes(module, where)
    else:  # in its forward, so it shows there whether it does as published
        pad_type, sizes = "reflect", ((size - 1) // 2, size // 2) * 2
    pad_off = sizes[0] - (size - 1) // 2
    after = size // 2 + pad_off
    if sizes != (sizes[0], after, sizes[0], after) or sizes[0] < 0:
        raise NotReplaceable(f"{where} pads by {sizes}, which no pad_off gives for {size} taps")
    stride = getattr(module, "stride", 2)
    if isinstance(stride, (tuple, list)) and len(stride) == 2 and stride[0] == stride[1]:
        stride = stride[0]
    if type(stride) is not int or stride < 1:
        raise NotReplaceable(f"{where} has no attribute stride that is a number")
    return size, pad_type, stride, pad_off, channels


def _pad_module(pad, where):
    pad_type = _PADDING_MODULES.get(type(pad))
    if pad_type is None or getattr(pad, "value", 0) != 0:
        raise NotReplaceable(
            f"{where} pads by a {type(pad).__name__} that is neither reflect, replicate nor zero"
        )
    return pad_type, tuple(pad.padding)


def _pad_attributes(module, where):
    pad_type = getattr(module, "pad_type", None)
    sizes = getattr(module, "pad_sizes", None)
    if not isinstance(pad_type, str) or PADDING_ALIASES.get(pad_type, pad_type) not in PADDING_MODES:
        raise NotReplaceable(f"{where} has neither a padding module nor a known pad_type")
    if not isinstance(sizes, (tuple, list)) or [type(s) for s in sizes] != [int] * 4:
        raise NotReplaceable(f"{where} has neither a padding module nor four pad_sizes")
    return PADDING_ALIASES.get(pad_type, pad_type), tuple(sizes)


def is_hooked(module: nn.Module) -> bool:
    return any(getattr(module, hooks) for hooks in _RUN_HOOKS)
