"""What each kind of module consists of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from .. import modules as ours
from ..engine.eligibility import ACTIVATIONS
from ..reference.filters import BINOMIAL
from .fit import Fit, NotReplaceable
from .layers import (
    Entry,
    blur_geometry,
    doubling_conv,
    expect,
    filter_name,
    is_a,
    is_hooked,
    nothing_but,
    plain_conv,
    prelu,
    same_bias,
    sequence,
)
from .names import Inside, Renamed, Table

# Whether a module is of a class of ours, or about to be.
Accepted = Callable[[nn.Module, type[nn.Module]], bool]


@dataclass(frozen=True)
class Kind:
    """One of our classes.

    Attributes:
        roles: {our name of a part: function(module, accepted), whether the module looks like it}.
        fit: function(module, {our name: (their name, part)}, accepted), which returns the Fit or raises
            NotReplaceable.
        looks: function(module), whether it looks so where there are no parts to know it by.
    """

    roles: Mapping[str, Callable[[nn.Module, Accepted], object]]
    fit: Callable[[nn.Module, dict[str, Entry], Accepted], Fit]
    looks: Callable[[nn.Module], bool] = lambda module: True


def _all(parts, wanted):
    return len(parts) > 0 and all(map(wanted, parts))


def _is_sequence(part, *classes):
    """Whether it is a torch.nn.Sequential of these; None is any class."""
    return (
        type(part) is nn.Sequential
        and len(part) == len(classes)
        and all(cls is None or type(layer) is cls for layer, cls in zip(part, classes, strict=True))
    )


def _is_conv(part, accepted=None):
    return type(part) is nn.Conv2d


def _renamed(parts):
    return {name: Renamed(theirs) for name, (theirs, _) in parts.items() if theirs != name}


def _shapes(channels, base=8):
    return ([(2, channels, base, base - 2)], [(2, channels, base - 1, base + 1)])


# --- Downsample ----------------------------------------------------------------------------


def _looks_like_blur(module):
    name = filter_name(module)
    shape = module._buffers[name].shape if name else ()
    return len(shape) == 4 and shape[1] == 1 and shape[2] == shape[3] > 1 and shape[2] in BINOMIAL


def _downsample(module, parts, accepted):
    size, pad_type, stride, pad_off, channels = blur_geometry(module)
    attributes = {
        "filt_size": size,
        "pad_type": pad_type,
        "stride": stride,
        "pad_off": pad_off,
        "pad_sizes": ((size - 1) // 2 + pad_off, size // 2 + pad_off) * 2,
        "channels": channels,
    }
    shapes = _shapes(channels, 10 + 2 * abs(pad_off))
    names = _renamed({"filt": (filter_name(module), None)})
    return Fit(ours.Downsample, shapes, attributes=attributes, names=names)


# --- SKFF ----------------------------------------------------------------------------------

_SKFF_ROLES = {
    "conv_du": lambda part, accepted: _is_sequence(part, nn.Conv2d, None),
    "fcs": lambda part, accepted: type(part) is nn.ModuleList and _all(part, _is_conv),
}


def _skff(module, parts, accepted):
    (path, conv_du), (heads_path, heads) = parts["conv_du"], parts["fcs"]
    reduce, activation = sequence(conv_du, path, 2)
    conv = plain_conv(reduce, 1)
    channels, squeezed = conv.in_channels, conv.out_channels
    prelu(activation, squeezed, nn.LeakyReLU, nn.ReLU)
    if type(heads) is not nn.ModuleList or not len(heads):
        raise NotReplaceable(f"{heads_path} is not a torch.nn.ModuleList with at least one part")
    entries = [(f"{heads_path}.{i}", head) for i, head in enumerate(heads)]
    for entry in entries:
        plain_conv(entry, 1, squeezed, channels)
    same_bias(entries)
    shapes = tuple(shape * len(heads) for shape in _shapes(channels))
    return Fit(ours.SKFF, shapes, names=_renamed(parts), as_list=True)


# --- DAU -----------------------------------------------------------------------------------


def _path_of(module, published, wanted):
    """Where the wanted part of a module lies: by the published name, or the only such one in it."""
    found = {name: inner for name, inner in module.named_modules() if name}
    if published in found:
        return published
    paths = [name for name, inner in found.items() if wanted(inner)]
    return paths[0] if len(paths) == 1 else None


def _gate_path(module, accepted=None):
    return _path_of(
        module,
        "spatial.conv",
        lambda inner: _is_conv(inner) and (inner.in_channels, inner.out_channels) == (2, 1),
    )


def _channel_path(module, accepted=None):
    classes = nn.Conv2d, nn.ReLU, nn.Conv2d, nn.Sigmoid
    return _path_of(module, "conv_du", lambda inner: _is_sequence(inner, *classes))


_DAU_ROLES = {
    "body": lambda part, accepted: _is_sequence(part, nn.Conv2d, None, nn.Conv2d),
    "SA": _gate_path,
    "CA": _channel_path,
    "conv1x1": _is_conv,
}


def _dau(module, parts, accepted):
    path, body = parts["body"]
    first, activation, second = sequence(body, path, 3)
    channels = plain_conv(first, None).in_channels
    plain_conv(first, None, channels, channels)
    plain_conv(second, None, channels, channels)
    prelu(activation, channels, *ACTIVATIONS[1:])
    names = _renamed(parts)
    gate = _inner("SA", "spatial.conv", parts, _gate_path, names)
    plain_conv(gate, None, 2, 1, bias=False)
    path, layers = _inner("CA", "conv_du", parts, _channel_path, names)
    squeeze, relu, excite, sigmoid = sequence(layers, path, 4)
    squeezed = plain_conv(squeeze, 1, channels).out_channels
    is_a(relu, nn.ReLU)
    plain_conv(excite, 1, squeezed, channels)
    is_a(sigmoid, nn.Sigmoid)
    plain_conv(parts["conv1x1"], 1, 2 * channels, channels)
    return Fit(ours.DAU, _shapes(channels), names=names)


def _inner(role, published, parts, path_of, names):
    """(path, part) of the only part with state in that of a role; `names` learns where it is."""
    theirs, part = parts[role]
    path = path_of(part)
    if path is None or (path != published and theirs == role):
        raise NotReplaceable(f"{theirs} has no submodule {published}")
    if path != published:
        names[role] = Inside(theirs, {published: path})
    inner = part.get_submodule(path)
    nothing_but(part, theirs, [inner])
    return f"{theirs}.{path}", inner


# --- the resamplers ------------------------------------------------------------------------

_RESIDUAL_DOWN_ROLES = {
    "top": lambda part, accepted: (
        _is_sequence(part, nn.Conv2d, None, nn.Conv2d, None, None, nn.Conv2d)
        and accepted(part[4], ours.Downsample)
    ),
    "bot": lambda part, accepted: _is_sequence(part, None, nn.Conv2d) and accepted(part[0], ours.Downsample),
}
_RESIDUAL_UP_ROLES = {
    "top": lambda part, accepted: _is_sequence(part, nn.Conv2d, None, nn.ConvTranspose2d, None, nn.Conv2d),
    "bot": lambda part, accepted: _is_sequence(part, nn.Upsample, nn.Conv2d),
}


def _residual_down(module, parts, accepted):
    (top_path, top), (bottom_path, bottom) = parts["top"], parts["bot"]
    expand, act, conv, tail_act, blur, project = sequence(top, top_path, 6)
    low_blur, low_project = sequence(bottom, bottom_path, 2)
    channels = _residual_head(expand, act, tail_act)
    plain_conv(conv, 3, channels, channels)
    for path, layer in (blur, low_blur):
        expect(path, "geometry", blur_geometry(layer, path), (3, "reflect", 2, 0, channels))
        # Ours does not read filt: only our blur-pool layer refuses to load another one later.
        if not accepted(layer, ours.Downsample):
            raise NotReplaceable(f"{path} is no Downsample that can be replaced")
    plain_conv(low_project, 1, channels, plain_conv(project, 1, channels).out_channels)
    return Fit(ours.ResidualDownSample, _shapes(channels), names=_renamed(parts))


def _residual_up(module, parts, accepted):
    (top_path, top), (bottom_path, bottom) = parts["top"], parts["bot"]
    expand, act, conv, tail_act, project = sequence(top, top_path, 5)
    enlarge, low_project = sequence(bottom, bottom_path, 2)
    channels = _residual_head(expand, act, tail_act)
    doubling_conv(conv, channels)
    path, layer = enlarge
    is_a(enlarge, nn.Upsample)
    expect(path, "mode", layer.mode, "bilinear")
    expect(path, "align_corners", bool(layer.align_corners), False)
    expect(path, "size", layer.size, None)
    expect(path, "recompute_scale_factor", bool(layer.recompute_scale_factor), False)
    if layer.scale_factor not in (2, (2, 2)):
        raise NotReplaceable(f"{path} has scale_factor {layer.scale_factor}, not 2")
    plain_conv(low_project, 1, channels, plain_conv(project, 1, channels).out_channels)
    return Fit(ours.ResidualUpSample, _shapes(channels), names=_renamed(parts))


def _residual_head(expand, act, tail_act):
    channels = plain_conv(expand, 1).in_channels
    plain_conv(expand, 1, channels, channels)
    prelu(act, channels, *ACTIVATIONS[1:])
    prelu(tail_act, channels)
    return channels


def _sampler(target, step):
    def is_body(part, accepted):
        return type(part) is nn.Sequential and any(accepted(layer, step) for layer in part)

    def fit(module, parts, accepted):
        path, body = parts["body"]
        _accepted_all(path, sequence(body, path, None), step, accepted)
        return Fit(target, _shapes(_channels(body)), names=_renamed(parts), composite=True)

    return Kind({"body": is_body}, fit)


def _accepted_all(path, entries, target, accepted):
    if not entries:
        raise NotReplaceable(f"{path} holds no {target.__name__}")
    _check_all(entries, target, accepted)


def _check_all(entries, target, accepted):
    for path, part in entries:
        if not accepted(part, target):
            raise NotReplaceable(f"{path} is no {target.__name__} that can be replaced")


def _channels(module):
    """The channels of what a residual resampler, or a sequence of them, takes."""
    return next(m for m in module.modules() if _is_conv(m)).in_channels


# --- MSRB ----------------------------------------------------------------------------------


def _is_table_of(target):
    return lambda part, accepted: (
        type(part) in (nn.ModuleDict, nn.ModuleList)
        and (not len(part) or any(accepted(sampler, target) for sampler in part._modules.values()))
    )


_MSRB_ROLES = {
    "blocks": lambda part, accepted: (
        type(part) is nn.ModuleList and _all(part, lambda row: type(row) is nn.ModuleList)
    ),
    "last_up": _is_table_of(ours.UpSample),
    "down": _is_table_of(ours.DownSample),
    "up": _is_table_of(ours.UpSample),
    "conv_out": _is_conv,
    "selective_kernel": lambda part, accepted: (
        type(part) is nn.ModuleList and any(accepted(fusion, ours.SKFF) for fusion in part)
    ),
}


def _msrb(module, parts, accepted):
    (blocks_path, blocks), (fusions_path, fusions) = parts["blocks"], parts["selective_kernel"]
    if any(type(part) is not nn.ModuleList for part in (blocks, fusions, *blocks)):
        raise NotReplaceable(
            f"{blocks_path}, each of its parts and {fusions_path} must be torch.nn.ModuleList"
        )
    height, widths = len(blocks), {len(row) for row in blocks}
    if height < 1 or len(widths) != 1 or 0 in widths or len(fusions) != height:
        raise NotReplaceable(f"{blocks_path} must be a table with one row for each part of {fusions_path}")
    channels = [_stream_channels(row, f"{blocks_path}.{j}", accepted) for j, row in enumerate(blocks)]
    wanted = {
        "down": _resampler_keys(channels, lambda source, target: source < target),
        "up": _resampler_keys(channels, lambda source, target: source > target),
        "last_up": {str(j) for j in range(1, height)},
    }
    names = _renamed(parts)
    for role, keys in wanted.items():
        _samplers(role, parts[role], keys, names, accepted)
    path, down = parts["down"]
    # Ours computes some of them once instead of twice, so they must be known to be functions.
    _check_all(_entries(parts["down"]), ours.DownSample, accepted)
    for inside, inner in down.named_modules(prefix=path):
        if is_hooked(inner):
            raise NotReplaceable(f"{inside} has hooks, which would be called once instead of twice")
    attributes = {"height": height, "width": widths.pop(), "channels": channels}
    unit = 2 ** (height - 1)
    shapes = ([(2, channels[0], 2 * unit, 4 * unit)], [(1, channels[0], 3 * unit, 2 * unit)])
    uneven = [(1, channels[0], 3 * unit + 1, 2 * unit)]
    return Fit(ours.MSRB, shapes, uneven, attributes, names, composite=True)


def _stream_channels(row, path, accepted):
    convs = [m for m in row.modules() if isinstance(m, nn.Conv2d)]
    if not convs:
        raise NotReplaceable(f"{path} has no convolution")
    if accepted(row[0], ours.DAU):  # whose parts may stand in any order
        return max(conv.out_channels for conv in convs)
    return convs[0].in_channels


def _resampler_keys(channels, wanted):
    streams = range(len(channels))
    pairs = [(source, target) for source in streams for target in streams if wanted(source, target)]
    return {f"{channels[source]}_{2 ** abs(source - target)}" for source, target in pairs}


def _samplers(role, part, wanted, names, accepted):
    """Check that a table has the samplers that we want; `names` learns their keys where those are others."""
    path, table = part
    if role == path and type(table) is not nn.ModuleDict:
        raise NotReplaceable("last_up, down and up must be torch.nn.ModuleDict")
    if set(table._modules) == wanted and type(table) is nn.ModuleDict:
        return
    if role == path:
        raise NotReplaceable(f"{path} has the keys {sorted(table._modules)}, not {sorted(wanted)}")
    target = ours.DownSample if role == "down" else ours.UpSample
    _check_all(_entries(part), target, accepted)
    keys = {_key(role, sampler, accepted): theirs for theirs, sampler in table._modules.items()}
    if set(keys) != wanted or len(keys) != len(table):
        raise NotReplaceable(f"{path} is for {sorted(keys)}, not {sorted(wanted)}")
    names[role] = Table(path, keys)


def _entries(part):
    path, table = part
    return [(f"{path}.{key}", sampler) for key, sampler in table._modules.items()]


def _key(role, sampler, accepted):
    steps = sum(
        accepted(m, ours.ResidualDownSample) or accepted(m, ours.ResidualUpSample) for m in sampler.modules()
    )
    return str(steps) if role == "last_up" else f"{_channels(sampler)}_{2**steps}"


# --- the network ---------------------------------------------------------------------------

# Whatever the number of scales: both sides are multiples of 32.
_SIDES, _UNEVEN = ((32, 64), (64, 32)), (7, 9)


def _is_group(part, accepted):
    return (
        type(part) is nn.Sequential
        and any(accepted(block, ours.MSRB) for block in part)
        and _is_conv(part[-1])
    )


def _rrg(module, parts, accepted):
    path, body = parts["body"]
    entries = sequence(body, path, None)
    blocks = entries[:-1]
    _accepted_all(path, blocks, ours.MSRB, accepted)
    channels = plain_conv(entries[-1], None).in_channels
    plain_conv(entries[-1], None, channels, channels)
    return _network_fit(ours.RRG, channels, blocks, parts)


def _is_trunk(part, accepted):
    return type(part) is nn.Sequential and any(accepted(group, ours.RRG) for group in part)


def _mirnet(module, parts, accepted):
    path, body = parts["body"]
    groups = sequence(body, path, None)
    _accepted_all(path, groups, ours.RRG, accepted)
    features = plain_conv(parts["conv_in"], None).out_channels
    plain_conv(parts["conv_out"], None, features)
    return _network_fit(ours.MIRNet, parts["conv_in"][1].in_channels, groups, parts)


def _network_fit(target, channels, given, parts):
    return Fit(
        target,
        tuple([(1, channels, *sides)] for sides in _SIDES),
        [(1, channels, *_UNEVEN)],
        names=_renamed(parts),
        composite=True,
        given=tuple(part for _, part in given),
    )


# Parts come before what is built of them: a composite asks what became of its parts.
KINDS = {
    "Downsample": Kind({}, _downsample, _looks_like_blur),
    "SKFF": Kind(_SKFF_ROLES, _skff),
    "DAU": Kind(_DAU_ROLES, _dau),
    "ResidualDownSample": Kind(_RESIDUAL_DOWN_ROLES, _residual_down),
    "ResidualUpSample": Kind(_RESIDUAL_UP_ROLES, _residual_up),
    "DownSample": _sampler(ours.DownSample, ours.ResidualDownSample),
    "UpSample": _sampler(ours.UpSample, ours.ResidualUpSample),
    "MSRB": Kind(_MSRB_ROLES, _msrb),
    "RRG": Kind({"body": _is_group}, _rrg),
    "MIRNet": Kind({"conv_in": _is_conv, "body": _is_trunk, "conv_out": _is_conv}, _mirnet),
}
OURS = frozenset(getattr(ours, kind) for kind in KINDS)
