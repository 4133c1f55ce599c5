"""What each kind of module consists of."""

from torch import nn

from .. import modules as ours
from ..modules._layers import ACTIVATIONS
from .fit import Fit, NotReplaceable
from .layers import (
    blur_geometry,
    doubling_conv,
    expect,
    is_a,
    is_hooked,
    parts,
    plain_conv,
    prelu,
    same_bias,
    sequence,
)


def _downsample(module, accepted):
    size, pad_type, stride, pad_off, channels = blur_geometry(module)
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
    conv_du, fcs = parts(module, "", "conv_du", "fcs")
    reduce, activation = sequence(conv_du, "conv_du", 2)
    channels = plain_conv(reduce, 1).in_channels
    squeezed = reduce[1].out_channels
    prelu(activation, squeezed, nn.LeakyReLU, nn.ReLU)
    if type(fcs) is not nn.ModuleList or not len(fcs):
        raise NotReplaceable("fcs is not a torch.nn.ModuleList with at least one part")
    entries = [(f"fcs.{i}", fc) for i, fc in enumerate(fcs)]
    for entry in entries:
        plain_conv(entry, 1, squeezed, channels)
    same_bias(entries)
    return Fit(ours.SKFF, tuple(shapes * len(fcs) for shapes in _shapes(channels)), as_list=True)


def _dau(module, accepted):
    body, spatial, channel, conv1x1 = parts(module, "", "body", "SA", "CA", "conv1x1")
    first, activation, second = sequence(body, "body", 3)
    channels = plain_conv(first, None).in_channels
    plain_conv(first, None, channels, channels)
    plain_conv(second, None, channels, channels)
    prelu(activation, channels, *ACTIVATIONS[1:])
    (gate,) = parts(spatial, "SA", "spatial")
    (gate_conv,) = parts(gate, "SA.spatial", "conv")
    plain_conv(("SA.spatial.conv", gate_conv), None, 2, 1, bias=False)
    (conv_du,) = parts(channel, "CA", "conv_du")
    squeeze, relu, excite, sigmoid = sequence(conv_du, "CA.conv_du", 4)
    squeezed = plain_conv(squeeze, 1, channels).out_channels
    is_a(relu, nn.ReLU)
    plain_conv(excite, 1, squeezed, channels)
    is_a(sigmoid, nn.Sigmoid)
    plain_conv(("conv1x1", conv1x1), 1, 2 * channels, channels)
    return Fit(ours.DAU, _shapes(channels))


def _residual_down(module, accepted):
    top, bottom = parts(module, "", "top", "bot")
    expand, act, conv, tail_act, blur, project = sequence(top, "top", 6)
    low_blur, low_project = sequence(bottom, "bot", 2)
    channels = _residual_head(expand, act, tail_act)
    plain_conv(conv, 3, channels, channels)
    for path, layer in (blur, low_blur):
        expect(path, "geometry", blur_geometry(layer, path), (3, "reflect", 2, 0, channels))
        # Ours does not read filt: only our blur-pool layer refuses to load another one later.
        if not accepted(layer, ours.Downsample):
            raise NotReplaceable(f"{path} is no Downsample that can be replaced")
    plain_conv(low_project, 1, channels, plain_conv(project, 1, channels).out_channels)
    return Fit(ours.ResidualDownSample, _shapes(channels))


def _residual_up(module, accepted):
    top, bottom = parts(module, "", "top", "bot")
    expand, act, conv, tail_act, project = sequence(top, "top", 5)
    enlarge, low_project = sequence(bottom, "bot", 2)
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
    return Fit(ours.ResidualUpSample, _shapes(channels))


def _residual_head(expand, act, tail_act):
    channels = plain_conv(expand, 1).in_channels
    plain_conv(expand, 1, channels, channels)
    prelu(act, channels, *ACTIVATIONS[1:])
    prelu(tail_act, channels)
    return channels


def _steps(target, step):
    def recogniser(module, accepted):
        (body,) = parts(module, "", "body")
        entries = sequence(body, "body", None)
        for path, part in entries:
            if not accepted(part, step):
                raise NotReplaceable(f"{path} is no {step.__name__} that can be replaced")
        if not entries:
            raise NotReplaceable("body is empty")
        return Fit(target, _shapes(body[0].top[0].in_channels), composite=True)

    return recogniser


def _msrb(module, accepted):
    names = ("blocks", "last_up", "down", "up", "conv_out", "selective_kernel")
    blocks, last_up, down, up, _, fusions = parts(module, "", *names)
    if any(type(part) is not nn.ModuleList for part in (blocks, fusions, *blocks)):
        raise NotReplaceable("blocks, each of its parts and selective_kernel must be torch.nn.ModuleList")
    if any(type(part) is not nn.ModuleDict for part in (last_up, down, up)):
        raise NotReplaceable("last_up, down and up must be torch.nn.ModuleDict")
    height, widths = len(blocks), {len(row) for row in blocks}
    if height < 1 or len(widths) != 1 or 0 in widths or len(fusions) != height:
        raise NotReplaceable("blocks must be a table with one row for each part of selective_kernel")
    channels = [_stream_channels(row, f"blocks.{j}") for j, row in enumerate(blocks)]
    _keys("down", down, _resampler_keys(channels, lambda source, target: source < target))
    _keys("up", up, _resampler_keys(channels, lambda source, target: source > target))
    _keys("last_up", last_up, {str(j) for j in range(1, height)})
    for key, sampler in down.items():
        # Ours computes some of them once instead of twice, so they must be known to be functions.
        if not accepted(sampler, ours.DownSample):
            raise NotReplaceable(f"down.{key} is no DownSample that can be replaced")
        for path, inner in sampler.named_modules(prefix=f"down.{key}"):
            if is_hooked(inner):
                raise NotReplaceable(f"{path} has hooks, which would be called once instead of twice")
    attributes = {"height": height, "width": widths.pop(), "channels": channels}
    unit = 2 ** (height - 1)
    shapes = ([(2, channels[0], 2 * unit, 4 * unit)], [(1, channels[0], 3 * unit, 2 * unit)])
    return Fit(ours.MSRB, shapes, attributes, composite=True)


def _stream_channels(row, path):
    convs = [m for m in row.modules() if isinstance(m, nn.Conv2d)]
    if not convs:
        raise NotReplaceable(f"{path} has no convolution")
    return convs[0].in_channels


def _resampler_keys(channels, wanted):
    streams = range(len(channels))
    pairs = [(source, target) for source in streams for target in streams if wanted(source, target)]
    return {f"{channels[source]}_{2 ** abs(source - target)}" for source, target in pairs}


def _keys(name, table, wanted):
    if set(table) != wanted:
        raise NotReplaceable(f"{name} has the keys {sorted(table)}, not {sorted(wanted)}")


RECOGNISERS = {
    "Downsample": _downsample,
    "SKFF": _skff,
    "DAU": _dau,
    "ResidualDownSample": _residual_down,
    "ResidualUpSample": _residual_up,
    "DownSample": _steps(ours.DownSample, ours.ResidualDownSample),
    "UpSample": _steps(ours.UpSample, ours.ResidualUpSample),
    "MSRB": _msrb,
}
