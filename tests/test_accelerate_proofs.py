"""accelerate() leaves modules alone that compute something else, and replaces the parts inside."""

import pytest
import torch
from torch import nn

import mirnet_fast

from .strangers import CLOSE, conv, edited, is_ours, lookalike, reasons, relative, swap, tampered

pytestmark = pytest.mark.usefixtures("one_thread")

SKFF, DAU, BLUR = lookalike.SKFF, lookalike.DAU, lookalike.Downsample
DOWN, UP = lookalike.ResidualDownSample, lookalike.ResidualUpSample


def skff_sigmoid(self, feats):
    code = self.conv_du(self.pool(sum(feats)))
    return sum(feat * head(code).sigmoid() for feat, head in zip(feats, self.fcs, strict=True))


def skff_mean_of_branches(self, feats):
    code = self.conv_du(self.pool(sum(feats) / len(feats)))
    scores = torch.stack([head(code) for head in self.fcs]).softmax(0)
    return sum(feat * score for feat, score in zip(feats, scores, strict=True))


def skff_detached(self, feats):
    code = self.conv_du(self.pool(sum(feats)).detach())
    scores = torch.stack([head(code) for head in self.fcs]).softmax(0)
    return sum(feat * score for feat, score in zip(feats, scores, strict=True))


def skff_frozen_heads(self, feats):
    code = self.conv_du(self.pool(sum(feats)))
    logits = [nn.functional.conv2d(code, head.weight.detach()) for head in self.fcs]
    scores = torch.stack(logits).softmax(0)
    return sum(feat * score for feat, score in zip(feats, scores, strict=True))


def dau_without_residual(self, inp):
    return DAU.forward(self, inp) - inp


def dau_gates_exchanged(self, inp):
    feat = self.body(inp)
    return self.conv1x1(torch.cat((self.CA(feat), self.SA(feat)), 1)) + inp


def blur_zero_bordered(self, t):
    return nn.functional.conv2d(t, self.filt, None, self.stride, 1, groups=t.size(1))


def blur_writing_to_its_input(self, t):
    result = BLUR.forward(self, t)
    if not t.requires_grad:
        t.zero_()
    return result


FORWARDS = {
    "writes_to_its_input": (BLUR, blur_writing_to_its_input, "input 0 afterwards differs"),
    "different_without_gradients": (
        DAU,
        lambda self, inp: DAU.forward(self, inp) * (1 if torch.is_grad_enabled() else 1.001),
        "the result differs",
    ),
    "sigmoid_for_softmax": (SKFF, skff_sigmoid, "the result differs"),
    "mean_for_sum": (SKFF, skff_mean_of_branches, "the result differs"),
    "gradient_cut": (SKFF, skff_detached, "the gradient of input 0 differs"),
    "parameter_frozen": (SKFF, skff_frozen_heads, "the gradient of fcs.0.weight is of another form"),
    "random_in_training": (
        SKFF,
        lambda self, feats: nn.functional.dropout(SKFF.forward(self, feats), 0.1, self.training),
        "the result differs",
    ),
    "different_in_evaluation": (
        SKFF,
        lambda self, feats: SKFF.forward(self, feats) * (1 if self.training else 1.001),
        "the result differs",
    ),
    "single_precision": (
        SKFF,
        lambda self, feats: SKFF.forward(self, feats).float().double(),
        "the result differs",
    ),
    "another_dtype": (SKFF, lambda self, feats: SKFF.forward(self, feats).float(), "is of another form"),
    "clamped": (SKFF, lambda self, feats: SKFF.forward(self, feats).clamp(-4, 4), "the result differs"),
    "two_results": (SKFF, lambda self, feats: (SKFF.forward(self, feats), None), "returns a tuple"),
    "broken": (SKFF, lambda self, feats: self.nothing, "fails on random inputs"),
    "no_residual": (DAU, dau_without_residual, "the result differs"),
    "gates_exchanged": (DAU, dau_gates_exchanged, "the result differs"),
    "unused_parameter": (DAU, lambda self, inp: self.body(inp), "differs"),
    "zero_border": (BLUR, blur_zero_bordered, "the result differs"),
    "odd_sizes_cropped": (
        BLUR,
        lambda self, t: BLUR.forward(self, t[..., : t.shape[-1] // 2 * 2]),
        "is of another form",
    ),
    "half_skipped": (DOWN, lambda self, t: self.top(t), "differs"),
    "scaled": (UP, lambda self, t: 0.5 * (self.top(t) + self.bot(t)), "the result differs"),
    "steps_reversed": (
        lookalike.DownSample,
        lambda self, t: self.body(t).flip(-1),
        "the result differs",
    ),
}


@pytest.mark.parametrize("case", FORWARDS)
def test_forward_that_computes_something_else_is_skipped(case):
    cls, forward, reason = FORWARDS[case]
    module = tampered(cls, forward=forward)(*((8, 2) if cls is lookalike.DownSample else (8,)))
    for parameter in module.parameters():
        nn.init.zeros_(parameter)  # the parameters of the moment may hide a difference
    report = mirnet_fast.accelerate(nn.Sequential(module))
    assert reason in reasons(report)["0"], str(report)
    assert type(module).forward is forward


def msrb_without_residual(self, image):
    return lookalike.MSRB.forward(self, image) - image


def msrb_key_missing(module):
    del module.up["32_4"]


MSRBS = {
    "no_residual": (lambda: tampered(lookalike.MSRB, forward=msrb_without_residual)(8), "the result differs"),
    "sequence_of_fusions": (
        lambda: edited(
            lookalike.MSRB(8),
            lambda m: setattr(m, "selective_kernel", nn.Sequential(*m.selective_kernel)),
        ),
        "must be torch.nn.ModuleList",
    ),
    "own_dictionary": (
        lambda: edited(
            lookalike.MSRB(8), lambda m: setattr(m, "up", type("Table", (nn.ModuleDict,), {})(m.up.items()))
        ),
        "must be torch.nn.ModuleDict",
    ),
    "row_without_convolution": (
        lambda: edited(lookalike.MSRB(8), lambda m: swap(m, "blocks.1", nn.ModuleList([nn.Identity()] * 2))),
        "blocks.1 has no convolution",
    ),
    "uneven_rows": (
        lambda: edited(lookalike.MSRB(8), lambda m: m.blocks[0].append(m.blocks[0][0])),
        "blocks must be a table",
    ),
    "key_missing": (lambda: edited(lookalike.MSRB(8), msrb_key_missing), "up has the keys"),
    "extra_layer": (
        lambda: edited(lookalike.MSRB(8), lambda m: m.add_module("more", conv(8, 8, 1))),
        "more is a part that is not published",
    ),
    "down_that_does_not_fit": (
        lambda: edited(lookalike.MSRB(8), lambda m: m.down["8_2"].body[0].top[4].filt.mul_(2)),
        "down.8_2 is no DownSample that can be replaced",
    ),
    "hook_on_a_shared_down": (
        lambda: edited(
            lookalike.MSRB(8), lambda m: m.down["8_2"].body[0].register_forward_hook(lambda *a: None)
        ),
        "down.8_2.body.0 has hooks, which would be called once instead of twice",
    ),
}


@pytest.mark.parametrize("case", MSRBS)
def test_msrb_that_does_not_fit_still_gets_its_parts_replaced(case):
    make, reason = MSRBS[case]
    model = nn.Sequential(make().double())
    cls, x = type(model[0]), torch.randn(1, 8, 8, 8, dtype=torch.float64)
    expected = None if case in ("key_missing", "row_without_convolution") else model(x)
    report = mirnet_fast.accelerate(model)
    assert reason in reasons(report)["0"], str(report)
    assert type(model[0]) is cls
    assert is_ours(model[0].blocks[0][0]) and is_ours(model[0].selective_kernel[2])
    if expected is not None:
        assert relative(model(x), expected) < CLOSE


def test_msrb_with_a_fusion_that_does_not_fit_is_replaced_around_it():
    block = lookalike.MSRB(8).double()
    block.selective_kernel[1].conv_du[1] = nn.GELU()
    x = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    expected = block(x)
    report = mirnet_fast.accelerate(block)
    assert list(reasons(report)) == ["selective_kernel.1"]
    assert is_ours(block) and type(block.selective_kernel[1]) is SKFF
    assert relative(block(x), expected) < CLOSE


def test_scripted_module_is_skipped():
    class Fixed(nn.Module):
        def forward(self, x):
            return x

    scripted = torch.jit.trace(tampered(Fixed, "SKFF")(), torch.ones(1))
    report = mirnet_fast.accelerate(nn.Sequential(scripted))
    assert "TorchScript" in reasons(report)["0"]
