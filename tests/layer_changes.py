"""What tests do to the layers of a network."""

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

SHAPE = {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1, "height": 2}  # of the network that they are tried on
# Layers of every kind that a fused module reads without calling it.
LAYERS = {
    "conv_in": lambda n: n.conv_in,
    "conv_out": lambda n: n.conv_out,
    "body": lambda n: n.body,
    "group's body": lambda n: n.body[0].body,
    "group's conv": lambda n: n.body[0].body[-1],
    "block's conv": lambda n: block(n).conv_out,
    "down": lambda n: block(n).down["8_2"],
    "down's body": lambda n: block(n).down["8_2"].body,
    "down's step": lambda n: block(n).down["8_2"].body[0],
    "up": lambda n: block(n).up["16_2"],
    "last up's body": lambda n: block(n).last_up["1"].body,
    **{f"DAU's {name}": lambda n, f=f: f(dau(n)) for name, f in {
        "body": lambda d: d.body,
        "first conv": lambda d: d.body[0],
        "PReLU": lambda d: d.body[1],
        "second conv": lambda d: d.body[2],
        "SA": lambda d: d.SA,
        "SA's gate": lambda d: d.SA.spatial,
        "SA's conv": lambda d: d.SA.spatial.conv,
        "CA": lambda d: d.CA,
        "CA's layers": lambda d: d.CA.conv_du,
        "CA's squeeze": lambda d: d.CA.conv_du[0],
        "CA's ReLU": lambda d: d.CA.conv_du[1],
        "CA's excite": lambda d: d.CA.conv_du[2],
        "CA's sigmoid": lambda d: d.CA.conv_du[3],
        "1x1": lambda d: d.conv1x1,
    }.items()},
    "SKFF's layers": lambda n: skff(n).conv_du,
    "SKFF's squeeze": lambda n: skff(n).conv_du[0],
    "SKFF's PReLU": lambda n: skff(n).conv_du[1],
    "SKFF's fc": lambda n: skff(n).fcs[1],
    "down's top": lambda n: down(n).top,
    "down's first": lambda n: down(n).top[0],
    "down's PReLU": lambda n: down(n).top[1],
    "down's conv": lambda n: down(n).top[2],
    "down's tail PReLU": lambda n: down(n).top[3],
    "down's blur": lambda n: down(n).top[4],
    "down's 1x1": lambda n: down(n).top[5],
    "down's bot": lambda n: down(n).bot,
    "down's lower blur": lambda n: down(n).bot[0],
    "up's top": lambda n: up(n).top,
    "up's first": lambda n: up(n).top[0],
    "up's transposed conv": lambda n: up(n).top[2],
    "up's tail PReLU": lambda n: up(n).top[3],
    "up's 1x1": lambda n: up(n).top[4],
    "up's bot": lambda n: up(n).bot,
    "up's enlargement": lambda n: up(n).bot[0],
    "up's lower 1x1": lambda n: up(n).bot[1],
}  # fmt: skip


def block(network):
    return network.body[0].body[0]


def dau(network):
    return block(network).blocks[0][0]


def skff(network):
    return block(network).selective_kernel[0]


def down(network):
    return block(network).down["8_2"].body[0]


def up(network):
    return block(network).last_up["1"].body[0]


def put(network, old, new):
    """Replace a layer wherever it stands."""
    for module in [*network.modules()]:
        for name, child in module._modules.items():
            if child is old:
                module._modules[name] = new


class Doubled(nn.Module):
    """A wrapper that passes what it wraps on, as adapters do."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer

    def forward(self, x):
        return 2 * self.base_layer(x)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)

    def __getitem__(self, i):
        return self.base_layer[i]

    def __iter__(self):
        return iter(self.base_layer)

    def __len__(self):
        return len(self.base_layer)


def wrapped(network, layer):
    put(network, layer, Doubled(layer))


def own_forward(network, layer):
    before = layer.forward
    layer.forward = lambda x: 2 * before(x)


def derived(network, layer):
    cls = type(layer)
    layer.__class__ = type(cls.__name__, (cls,), {"forward": lambda self, x: 2 * cls.forward(self, x)})


def hooked(network, layer):
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)


def pre_hooked(network, layer):
    layer.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))


def backward_hooked(network, layer):
    layer.register_full_backward_hook(lambda module, given, taken: (2 * given[0],))


def backward_pre_hooked(network, layer):
    layer.register_full_backward_pre_hook(lambda module, taken: (2 * taken[0],))


CHANGES = (wrapped, own_forward, derived, hooked, pre_hooked, backward_hooked, backward_pre_hooked)


def weight_norm(network):
    nn.utils.weight_norm(dau(network).conv1x1)
    dau(network).conv1x1.weight_g.data.mul_(3)


def spectral_norm(network):
    torch.manual_seed(0)
    nn.utils.spectral_norm(dau(network).body[0])
    network.eval()


def parametrized(network):
    parametrizations.weight_norm(skff(network).fcs[0])
    skff(network).fcs[0].parametrizations.weight.original0.data.mul_(3)


class Squared(nn.Module):
    def forward(self, value):
        return value * value


def parametrized_slope(network):
    parametrize.register_parametrization(up(network).top[3], "weight", Squared())


def pruned(network):
    conv = down(network).top[5]
    prune.custom_from_mask(conv, "weight", (torch.arange(conv.weight.numel()) % 2).view_as(conv.weight))
    conv.weight_orig.data.mul_(3)


def gate_with_a_bias(network):
    conv = dau(network).SA.spatial.conv
    conv.bias = nn.Parameter(torch.full((1,), 0.7, dtype=torch.float64))


def other_filter(network):
    down(network).top[4].filt.mul_(2)


def other_filter_by_data(network):
    down(network).bot[0].filt.data[:, :, 1, 1] += 0.25


def nearest(network):
    up(network).bot[0] = nn.Upsample(scale_factor=2, mode="nearest")


def aligned(network):
    up(network).bot[0].align_corners = True


def dilated(network):
    conv = dau(network).body[0]
    conv.dilation, conv.padding = (2, 2), (2, 2)


def mirrored(network):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect", bias=False, dtype=torch.float64)
    put(network, block(network).conv_out, conv)


def other_activation(network):
    put(network, dau(network).body[1], nn.GELU())


def other_stride(network):
    down(network).top[4].stride = down(network).bot[0].stride = 2
    down(network).top[4].pad_type = down(network).bot[0].pad_type = "replicate"


def average_pool(network):
    down(network).top[4] = nn.AvgPool2d(2)


def averaging_fusion(network):
    class Mean(nn.Module):
        def forward(self, branches):
            return sum(branches) / len(branches)

    block(network).selective_kernel[1] = Mean()


def own_sampler(network):
    class Blank(nn.Module):
        def forward(self, x):
            return x.new_zeros(x.shape[0], x.shape[1] // 2, 2 * x.shape[2], 2 * x.shape[3])

    block(network).last_up["1"] = Blank()


def sigmoid_for_relu(network):
    dau(network).CA.conv_du[1] = nn.Sigmoid()


NETWORK_CHANGES = [
    weight_norm,
    spectral_norm,
    parametrized,
    parametrized_slope,
    pruned,
    gate_with_a_bias,
    other_filter,
    other_filter_by_data,
    nearest,
    aligned,
    dilated,
    mirrored,
    other_activation,
    other_stride,
    average_pool,
    averaging_fusion,
    own_sampler,
    sigmoid_for_relu,
]
