"""accelerate() leaves modules alone whose parts are not those published."""

import types

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import mirnet_fast

from .strangers import conv, edited, lookalike, reasons, swap, tampered

pytestmark = pytest.mark.usefixtures("one_thread")


def own_parameter(value):
    return nn.Parameter(value.detach().as_subclass(OwnTensor))


class WrappedConv(nn.Module):
    """As an adapter of low rank wraps a convolution."""

    def __init__(self, base):
        super().__init__()
        self.base, self.a, self.b = base, conv(base.in_channels, 1, 1), conv(1, base.out_channels, 1)

    def forward(self, x):
        return self.base(x) + self.b(self.a(x))


class ResidualSequence(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class OwnTensor(torch.Tensor):
    pass


class HiddenState:
    gain = 1.0


def negative(self, inputs):
    return -super(type(self), self).forward(inputs)


def with_part(cls, path, make):
    return lambda: edited(cls(8), lambda m: swap(m, path, make(m.get_submodule(path))))


def with_edit(cls, edit, **options):
    return lambda: edited(cls(8, **options), edit)


SKFF, DAU, BLUR = lookalike.SKFF, lookalike.DAU, lookalike.Downsample
DOWN, UP = lookalike.ResidualDownSample, lookalike.ResidualUpSample

STRUCTURE = {
    "skff_gelu": (lambda: SKFF(8, nonlinearity=nn.GELU()), "conv_du.1 is a GELU"),
    "skff_slopes": (lambda: SKFF(8, nonlinearity=nn.PReLU(3)), "conv_du.1 has 3 slopes"),
    "skff_longer": (with_edit(SKFF, lambda m: m.conv_du.append(nn.ReLU())), "conv_du has 3 parts"),
    "skff_kernel": (with_part(SKFF, "conv_du.0", lambda c: conv(8, 4, 3, padding=1)), "kernel_size (3, 3)"),
    "skff_groups": (with_part(SKFF, "conv_du.0", lambda c: conv(8, 4, 1, groups=2)), "groups 2"),
    "skff_stride": (with_part(SKFF, "fcs.1", lambda c: conv(4, 8, 1, stride=2)), "stride (2, 2)"),
    "skff_padding": (with_part(SKFF, "fcs.1", lambda c: conv(4, 8, 1, padding=1)), "padding (1, 1)"),
    "skff_some_bias": (with_part(SKFF, "fcs.1", lambda c: conv(4, 8, 1, bias=True)), "some have none"),
    "skff_dropout": (with_edit(SKFF, lambda m: m.add_module("drop", nn.Dropout(0.0))), "drop is a Dropout"),
    "skff_extra_layer": (with_edit(SKFF, lambda m: m.add_module("more", conv(8, 8, 1))), "not published"),
    "skff_extra_parameter": (
        with_edit(SKFF, lambda m: m.register_parameter("scale", nn.Parameter(torch.ones(1)))),
        "holds scale",
    ),
    "skff_extra_buffer": (
        with_edit(SKFF, lambda m: m.register_buffer("seen", torch.zeros(1))),
        "holds seen",
    ),
    "skff_no_fcs": (with_edit(SKFF, lambda m: delattr(m, "fcs")), "no submodule fcs"),
    "skff_hidden_tensor": (with_edit(SKFF, lambda m: setattr(m, "gain", torch.ones(1))), "gain is a Tensor"),
    "skff_hidden_list": (with_edit(SKFF, lambda m: setattr(m, "kept", [nn.ReLU()])), "kept is a list"),
    "skff_hidden_object": (
        with_edit(SKFF, lambda m: setattr(m, "state", HiddenState())),
        "state is a HiddenState",
    ),
    "skff_patched": (
        with_edit(SKFF, lambda m: setattr(m, "forward", types.MethodType(SKFF.forward, m))),
        "forward was replaced on the object",
    ),
    "inner_patched": (
        with_edit(SKFF, lambda m: setattr(m.fcs[0], "forward", m.fcs[0].forward)),
        "fcs.0: forward was replaced on the object",
    ),
    "mixed_dtype": (with_edit(SKFF, lambda m: m.fcs[0].half()), "differ in dtype"),
    "integer_buffer": (
        with_edit(BLUR, lambda m: setattr(m, "filt", torch.ones(8, 1, 1, 1, dtype=torch.int64)), taps=1),
        "filt is torch.int64",
    ),
    "wrapped_conv": (with_part(SKFF, "conv_du.0", WrappedConv), "conv_du.0 is a WrappedConv"),
    "wrapped_body_conv": (with_part(DAU, "body.0", WrappedConv), "body.0 is a WrappedConv"),
    "parametrised": (with_edit(DAU, lambda m: parametrizations.weight_norm(m.conv1x1)), "parametrised"),
    "weight_norm": (with_edit(DAU, lambda m: nn.utils.weight_norm(m.body[0])), "computes its weight"),
    "pruned": (
        with_edit(UP, lambda m: prune.l1_unstructured(m.top[4], "weight", 0.5)),
        "computes its weight",
    ),
    "sequence_class": (with_part(DAU, "body", lambda s: ResidualSequence(*s)), "body is a ResidualSequence"),
    "sequence_parameter": (
        with_edit(DAU, lambda m: m.body.register_parameter("scale", nn.Parameter(torch.ones(1)))),
        "body holds scale",
    ),
    "own_tensor": (
        with_edit(DAU, lambda m: setattr(m.body[0], "weight", own_parameter(m.body[0].weight))),
        "body.0: weight is a OwnTensor, not a plain tensor",
    ),
    "fcs_inputs": (with_part(SKFF, "fcs.1", lambda c: conv(5, 8, 1)), "fcs.1 has in_channels 5, not 4"),
    "fcs_outputs": (with_part(SKFF, "fcs.1", lambda c: conv(4, 1, 1)), "fcs.1 has out_channels 1, not 8"),
    "fcs_empty": (with_part(SKFF, "fcs", lambda c: nn.ModuleList()), "fcs is not a torch.nn.ModuleList"),
    "weight_shape": (
        with_edit(SKFF, lambda m: setattr(m.fcs[1], "weight", nn.Parameter(torch.ones(8, 4, 3, 3)))),
        "fcs.1 has weight's shape (8, 4, 3, 3), not (8, 4, 1, 1)",
    ),
    "conv_buffer": (
        with_edit(SKFF, lambda m: m.fcs[1].register_buffer("mask", torch.ones(1))),
        "fcs.1 holds more than a weight and a bias",
    ),
    "slope_pruned": (
        with_edit(SKFF, lambda m: prune.identity(m.conv_du[1], "weight")),
        "conv_du.1 computes its slope",
    ),
    "fcs_class": (with_part(SKFF, "fcs", lambda f: nn.Sequential(*f)), "fcs is not a torch.nn.ModuleList"),
    "dau_narrow_body": (
        with_edit(
            DAU, lambda m: m.body.__init__(conv(8, 4, 3, padding=1), m.body[1], conv(4, 8, 3, padding=1))
        ),
        "body.0 has out_channels 4, not 8",
    ),
    "dau_dropout": (with_part(DAU, "body.1", lambda a: nn.Dropout(0.0)), "body.1 is a Dropout"),
    "dau_excite": (
        with_part(DAU, "CA.conv_du.2", lambda c: conv(1, 8, 3, padding=1)),
        "CA.conv_du.2 has kernel_size (3, 3)",
    ),
    "dau_fuse": (with_part(DAU, "conv1x1", lambda c: conv(16, 8, 3, padding=1)), "conv1x1 has kernel_size"),
    "dau_oblong_kernel": (
        with_part(DAU, "body.0", lambda c: conv(8, 8, (3, 5), padding=(1, 2))),
        "kernel_size (3, 5)",
    ),
    "dau_even_kernel": (with_part(DAU, "body.0", lambda c: conv(8, 8, 2, padding="same")), "kernel_size"),
    "dau_dilated": (
        with_part(DAU, "body.2", lambda c: conv(8, 8, 3, padding=2, dilation=2)),
        "body.2 has padding (2, 2)",
    ),
    "dau_dilated_same": (
        with_part(DAU, "body.2", lambda c: conv(8, 8, 3, padding="same", dilation=2)),
        "dilation (2, 2)",
    ),
    "dau_reflected": (
        with_part(DAU, "body.2", lambda c: conv(8, 8, 3, padding=1, padding_mode="reflect")),
        "padding_mode reflect",
    ),
    "dau_batchnorm": (with_edit(DAU, lambda m: m.body.insert(1, nn.BatchNorm2d(8))), "body has 4 parts"),
    "dau_gate_bias": (
        with_part(DAU, "SA.spatial.conv", lambda c: conv(2, 1, 5, padding=2, bias=True)),
        "SA.spatial.conv has bias True",
    ),
    "dau_gate_norm": (
        with_edit(DAU, lambda m: swap(m, "SA.spatial.norm", nn.BatchNorm2d(1))),
        "SA.spatial.norm is a part that is not published",
    ),
    "dau_gate_elsewhere": (
        with_part(DAU, "SA.spatial", lambda gate: gate.conv),
        "SA has no submodule spatial.conv",
    ),
    "dau_gate_unpadded": (
        with_part(DAU, "SA.spatial.conv", lambda c: conv(2, 1, 5, padding=1)),
        "padding (1, 1)",
    ),
    "dau_hard_gate": (with_part(DAU, "CA.conv_du.3", lambda c: nn.Hardsigmoid()), "is a Hardsigmoid"),
    "dau_gate_prelu": (with_part(DAU, "CA.conv_du.1", lambda c: nn.PReLU()), "CA.conv_du.1 is a PReLU"),
    "blur_tampered": (with_edit(BLUR, lambda m: m.filt[0, 0, 0, 0].add_(1e-6)), "not the binomial filter"),
    "blur_one_channel_tampered": (with_edit(BLUR, lambda m: m.filt[7].mul_(-1)), "not the binomial filter"),
    "blur_learnable": (
        with_edit(BLUR, lambda m: m._parameters.update(filt=nn.Parameter(m._buffers.pop("filt")))),
        "no buffer filt",
    ),
    "blur_large": (with_edit(BLUR, lambda m: setattr(m, "filt", torch.zeros(8, 1, 9, 9))), "filt of shape"),
    "blur_lopsided": (with_part(BLUR, "border", lambda p: nn.ReflectionPad2d((1, 1, 2, 1))), "pads by"),
    "blur_constant": (with_part(BLUR, "border", lambda p: nn.ConstantPad2d(1, 0.5)), "is neither reflect"),
    "blur_circular": (with_part(BLUR, "border", lambda p: nn.CircularPad2d(1)), "is neither reflect"),
    "blur_unpadded": (with_edit(BLUR, lambda m: delattr(m, "border")), "its own forward fails"),
    "blur_unsized": (
        with_edit(BLUR, lambda m: (delattr(m, "border"), setattr(m, "pad_type", "refl"))),
        "nor four pad_sizes",
    ),
    "blur_parameter": (
        with_edit(BLUR, lambda m: m.register_parameter("gain", nn.Parameter(torch.ones(1)))),
        "it holds gain",
    ),
    "blur_other_size": (with_edit(BLUR, lambda m: setattr(m, "filt_size", 5)), "filt_size 5, not 3"),
    "blur_two_parts": (with_edit(BLUR, lambda m: m.add_module("act", nn.ReLU())), "more than one submodule"),
    "blur_name_taken": (
        with_edit(BLUR, lambda m: (m.add_module("pad_type", m.border), delattr(m, "border"))),
        "pad_type has the name of an attribute of ours",
    ),
    "blur_strides": (with_edit(BLUR, lambda m: setattr(m, "stride", (2, 1))), "no attribute stride"),
    "blur_meta": (lambda: BLUR(8).to("meta"), "meta device"),
    "down_blur_size": (
        with_part(DOWN, "top.4", lambda b: BLUR(8, 5)),
        "top.4 has geometry (5, 'reflect', 2, 0, 8)",
    ),
    "down_blur_border": (with_part(DOWN, "bot.0", lambda b: BLUR(8, border="zero")), "bot.0 has geometry"),
    "down_other_blur": (
        with_edit(DOWN, lambda m: setattr(m.top[4], "__class__", tampered(BLUR, "Blur", forward=negative))),
        "top.4 is no Downsample that can be replaced",
    ),
    "down_kernel": (with_part(DOWN, "top.2", lambda c: conv(8, 8, 5, padding=2)), "top.2 has kernel_size"),
    "down_outputs": (with_part(DOWN, "bot.1", lambda c: conv(8, 1, 1)), "bot.1 has out_channels 1, not 16"),
    "down_narrow": (
        with_edit(
            DOWN, lambda m: (swap(m, "top.0", conv(8, 4, 1)), swap(m, "top.2", conv(4, 8, 3, padding=1)))
        ),
        "top.0 has out_channels 4, not 8",
    ),
    "down_dropout": (with_part(DOWN, "top.1", lambda a: nn.Dropout(0.0)), "top.1 is a Dropout"),
    "down_empty": (lambda: lookalike.DownSample(8, 1), "body holds no ResidualDownSample"),
    "up_sized": (
        with_part(UP, "bot.0", lambda u: nn.Upsample(size=(16, 12), mode="bilinear")),
        "bot.0 has size (16, 12)",
    ),
    "up_recomputed": (
        with_part(
            UP, "bot.0", lambda u: nn.Upsample(scale_factor=2, mode="bilinear", recompute_scale_factor=True)
        ),
        "recompute_scale_factor True",
    ),
    "up_class_of_bilinear": (
        with_part(UP, "bot.0", lambda u: nn.UpsamplingBilinear2d(scale_factor=2)),
        "bot.0 is a UpsamplingBilinear2d",
    ),
    "up_project": (
        with_part(UP, "bot.1", lambda c: conv(8, 4, 3, padding=1)),
        "bot.1 has kernel_size (3, 3)",
    ),
    "down_leaky": (with_part(DOWN, "top.3", lambda p: nn.LeakyReLU()), "top.3 is a LeakyReLU"),
    "up_corners": (
        with_part(UP, "bot.0", lambda u: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)),
        "align_corners True",
    ),
    "up_nearest": (with_part(UP, "bot.0", lambda u: nn.Upsample(scale_factor=2)), "mode nearest"),
    "up_factor": (
        with_part(UP, "bot.0", lambda u: nn.Upsample(scale_factor=4, mode="bilinear")),
        "scale_factor",
    ),
    "up_output_padding": (
        with_part(UP, "top.2", lambda c: nn.ConvTranspose2d(8, 8, 3, 2, 1, 0, bias=False)),
        "output_padding (0, 0)",
    ),
    "up_padding": (
        with_part(UP, "top.2", lambda c: nn.ConvTranspose2d(8, 8, 3, 2, 0, 1, bias=False)),
        "top.2 has padding (0, 0)",
    ),
    "up_class": (with_part(UP, "top.2", WrappedConv), "top.2 is a WrappedConv"),
    "up_weight_norm": (with_edit(UP, lambda m: nn.utils.weight_norm(m.top[2])), "computes its weight"),
    "up_kernel": (
        with_part(UP, "top.2", lambda c: nn.ConvTranspose2d(8, 8, 4, 2, 1, bias=False)),
        "kernel_size (4, 4)",
    ),
    "up_groups": (
        with_part(UP, "top.2", lambda c: nn.ConvTranspose2d(8, 8, 3, 2, 1, 1, groups=2, bias=False)),
        "groups 2",
    ),
    "two_inputs": (
        lambda: tampered(SKFF, forward=lambda self, feats, gain=1.0: SKFF.forward(self, feats))(8),
        "takes other arguments",
    ),
    "overrides_train": (
        lambda: tampered(SKFF, train=lambda self, mode=True: nn.Module.train(self, False))(8),
        "overrides train",
    ),
    "derived": (
        lambda: tampered(SKFF, "Fusion", forward=negative)(8),
        "computes something else than the published SKFF",
    ),
    "deprecated_hook": (
        with_edit(DAU, lambda m: m.register_backward_hook(lambda *a: None)),
        "deprecated",
    ),
}


@pytest.mark.parametrize("case", STRUCTURE)
def test_structure_that_does_not_fit_is_skipped(case):
    make, reason = STRUCTURE[case]
    module = make()
    cls = type(module)
    report = mirnet_fast.accelerate(nn.Sequential(module))
    assert reason in reasons(report)["0"], str(report)
    assert type(module) is cls


def test_look_alike_by_structure_is_named():
    class Fusion(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_du, self.fcs = nn.Sequential(), nn.ModuleList()

    report = mirnet_fast.accelerate(nn.Sequential(Fusion()))
    assert reasons(report) == {"0": "looks like SKFF, but is not built as one"}
    assert "skipped 0 (Fusion)" in str(report)
