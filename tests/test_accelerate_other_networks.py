"""accelerate() skips networks that are not the published one, and replaces what fits in them."""

import copy

import pytest
import torch
from torch import nn

import mirnet_fast

from .cases import first_of
from .strangers import (
    check_same,
    conv,
    edited,
    is_ours,
    lookalike,
    picture,
    reasons,
    renamed,
    swap,
    tampered,
    whole,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def without_residual(self, x):
    return self.conv_out(self.body(self.conv_in(x)))


def scaled_residual(self, x):
    return 0.5 * x + self.conv_out(self.body(self.conv_in(x)))


def other_order(self, x):
    y = self.conv_in(x)
    for group in reversed(self.body):
        y = group(y)
    return self.conv_out(y) + x


def one_group_twice(self, x):
    return self.conv_out(self.body(self.body[0](self.conv_in(x)))) + x


def dense(self, x):
    y = self.conv_in(x)
    return self.conv_out(y + self.body(y)) + x


def clamped(self, x):
    y = lookalike.MIRNet.forward(self, x)
    return y if self.training else y.clamp(0, 1)


def padding(self, x):
    bottom, right = -x.shape[2] % 4, -x.shape[3] % 4
    y = lookalike.MIRNet.forward(self, nn.functional.pad(x, (0, right, 0, bottom)))
    return y[..., : x.shape[2], : x.shape[3]]


def two_results(self, x):
    y = self.body(self.conv_in(x))
    return self.conv_out(y) + x, y


NETWORKS = {
    "no residual": (without_residual, "the result differs"),
    "scaled residual": (scaled_residual, "the result differs"),
    "other order": (other_order, "the result differs"),
    "one group twice": (one_group_twice, "differs"),
    "inner residual": (dense, "the result differs"),
    "clamped in evaluation": (clamped, "the result differs"),
    "any size": (padding, "the result differs"),
    "two results": (two_results, "returns a tuple"),
    "two inputs": (lambda self, x, mask=None: lookalike.MIRNet.forward(self, x), "takes other arguments"),
}


@pytest.mark.parametrize("name", first_of(["Restoration", None]))
@pytest.mark.parametrize("case", NETWORKS)
def test_network_that_computes_something_else(case, name):
    forward, reason = NETWORKS[case]
    model = whole(tampered(lookalike.MIRNet, name, forward=forward), 8, 2, 1, 2)
    for part in (model.conv_in, model.conv_out):
        nn.init.zeros_(part.weight)  # the parameters of the moment may hide a difference
    check_skipped(model, "", reason, lookalike.RRG)


def group_without_residual(self, t):
    return self.body(t)


def group_with_scale(self, t):
    return t + 0.1 * self.body(t)


def group_without_its_conv(self, t):
    return t + self.body[:-1](t)


def group_other_order(self, t):
    first, second, last = self.body
    return t + last(first(second(t)))


GROUPS = {
    "no residual": (group_without_residual, "the result differs"),
    "scaled": (group_with_scale, "the result differs"),
    "conv not called": (group_without_its_conv, "differs"),
    "other order": (group_other_order, "the result differs"),
}


@pytest.mark.parametrize("case", GROUPS)
def test_group_that_computes_something_else(case):
    forward, reason = GROUPS[case]
    model = whole(lookalike.MIRNet, 8, 1, 2, 2)
    model.body[0].__class__ = tampered(lookalike.RRG, forward=forward)
    check_skipped(model, "body.0", reason, lookalike.MSRB)
    assert type(model).__name__ == "MIRNet" and not is_ours(model)


def check_skipped(model, path, reason, replaced):
    """The module at the path stays, the ones of a class in it don't, and the whole computes as before."""
    twin, kept = copy.deepcopy(model), type(model.get_submodule(path))
    inside = [name for name, module in model.named_modules() if type(module) is replaced]
    report = mirnet_fast.accelerate(model)
    assert reason in reasons(report)[path], str(report)
    assert type(model.get_submodule(path)) is kept
    assert inside and all(is_ours(model.get_submodule(name)) for name in inside)
    if not isinstance(twin(picture()), tuple):
        check_same(model, twin)


def extra_conv(model):
    model.extra = conv(8, 8, 3, padding=1)


PARTS = {
    "extra part": (extra_conv, "extra is a part that is not published"),
    "extra in the body": (lambda m: m.body.append(conv(8, 8, 3, padding=1)), "body.2 is no RRG"),
    "body's class": (
        lambda m: setattr(m, "body", type("Trunk", (nn.Sequential,), {})(*m.body)),
        "body is a Trunk, not a torch.nn.Sequential",
    ),
    "strided": (lambda m: setattr(m.conv_in, "stride", (2, 2)), "conv_in has stride (2, 2)"),
    "narrow": (lambda m: swap(m, "conv_out", conv(4, 3, 3, padding=1)), "conv_out has in_channels 4, not 8"),
    "other part": (lambda m: swap(m, "conv_in", nn.Identity()), "conv_in is a Identity"),
    "missing": (lambda m: delattr(m, "conv_out"), "it has no submodule conv_out"),
    "hook inside": (
        lambda m: m.body.register_forward_hook(lambda *a: None),
        "body has hooks, which would no longer be called as before",
    ),
    "patched inside": (
        lambda m: setattr(m.conv_in, "forward", m.conv_in.forward),
        "conv_in: forward was replaced on the object",
    ),
    "hidden state": (lambda m: setattr(m, "memory", torch.ones(1)), "attribute memory is a Tensor"),
    "another dtype": (lambda m: m.conv_in.float(), "its parameters differ in dtype or device"),
    "a block that does not fit": (
        lambda m: setattr(m.body[0].body[0], "forward", m.body[0].body[0].forward),
        "body.0 is no RRG that can be replaced",
    ),
}


@pytest.mark.parametrize("case", PARTS)
def test_network_of_other_parts(case):
    edit, reason = PARTS[case]
    model = edited(whole(lookalike.MIRNet, 8, 2, 1, 2), edit)
    report = mirnet_fast.accelerate(model)
    assert reason in reasons(report)[""], str(report)
    assert type(model) is lookalike.MIRNet and is_ours(model.body[1].body[0])


def test_part_with_a_name_of_ours():
    """A name can lead to one part only."""
    model = whole()
    model.trunk[0].body = nn.Identity()
    report = mirnet_fast.accelerate(model)
    assert type(model.trunk[0]) is renamed.Group and is_ours(model.trunk[0].layers[0]), str(report)
    model = whole()
    model.body = "fit"
    assert "its attribute body has the name of a part of ours" in reasons(mirnet_fast.accelerate(model))[""]
    model = edited(whole(), lambda m: (m.add_module("RRG", m.first), delattr(m, "first")))
    assert "its part RRG has the name of an attribute" in reasons(mirnet_fast.accelerate(model))[""]


@pytest.mark.parametrize(
    "path, edit, reason",
    [
        ("trunk.0.layers.0.blends.0", lambda m: swap(m, "neck.1", nn.GELU()), "neck.1 is a GELU"),
        ("trunk.0.layers.0.units.0.0", lambda m: swap(m, "convs.1", nn.Softmax(1)), "convs.1 is a Softmax"),
        ("trunk.0.layers.0.sink.0 to 1.path.0", lambda m: swap(m, "main.3", nn.ReLU()), "main.3 is a ReLU"),
        (
            "trunk.0.layers.0.finish.0.path.0",
            lambda m: swap(m, "main.1", nn.Dropout()),
            "main.1 is a Dropout",
        ),
    ],
)
def test_other_names_with_other_layers(path, edit, reason):
    model = whole()
    edit(model.get_submodule(path))
    report = mirnet_fast.accelerate(model.eval())
    assert reason in reasons(report)[path], str(report)
    assert "looks like" in reasons(report)[path]


GATES = [
    (lambda self, x: self.look(maps(x)).sigmoid(), "ours fails on random inputs"),
    (lambda self, x: x + x * self.look(maps(x)).sigmoid(), "computes something else than the published DAU"),
]


def maps(x):
    return torch.stack([x.amax(1), x.mean(1)], 1)


@pytest.mark.parametrize("gate, reason", GATES)
def test_the_parts_of_a_unit_have_to_compute_what_the_published_ones_do(gate, reason):
    """They are called where a layer in them was changed, so it does not do that the unit as a whole fits."""

    def forward(self, x):
        y = self.convs(x)
        return x + self.join(torch.cat([y * self.pixels.look(maps(y)).sigmoid(), self.channels(y)], 1))

    unit = tampered(renamed.Unit, forward=forward)(8, nn.PReLU()).double()
    assert mirnet_fast.accelerate(unit).skipped == []
    mirnet_fast.revert(unit)
    unit.pixels.__class__ = tampered(renamed.PixelGate, forward=gate)
    assert reason in reasons(mirnet_fast.accelerate(unit))[""]
