"""accelerate() and revert() on a stranger's implementation (tests/lookalike.py)."""

import copy
import importlib.util
import io
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import mirnet_fast
from mirnet_fast import _equivalence, _recognition
from mirnet_fast.modules import resampling

from .cases import each

CLOSE = 1e-9


def strangers_code(import_path):
    """tests/lookalike.py, imported as a module of this name."""
    spec = importlib.util.spec_from_file_location(import_path, Path(__file__).with_name("lookalike.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[import_path] = module  # pickle looks there
    spec.loader.exec_module(module)
    return module


lookalike = strangers_code("somebodys_networks")


@pytest.fixture(autouse=True)
def one_thread():
    """The maps are tiny: on a busy machine more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(**options):
    torch.manual_seed(0)
    return lookalike.MIRNet(**{"base": 8, "groups": 1, "blocks": 1, **options}).double()


def picture(requires_grad=False):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 8, 12, generator=generator, dtype=torch.float64)
    return x.requires_grad_(requires_grad)


def arguments(module, height=8, width=12, channels=8):
    generator = torch.Generator().manual_seed(2)
    count = len(module.fcs) if hasattr(module, "fcs") else 1
    maps = [
        torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64)
        for _ in range(count)
    ]
    return maps if hasattr(module, "fcs") else maps[0]


def relative(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def reasons(report):
    return {entry.name: entry.reason for entry in report.left}


def is_ours(module):
    return type(module) in _recognition.OURS


def check_same_function(module, inputs):
    """A module alone, before and after: result, gradients, class."""
    module = module.double()
    twin = copy.deepcopy(module)
    report = mirnet_fast.accelerate(module)
    assert report.left == [] and is_ours(module), str(report)
    expected, actual = twin(inputs), module(inputs)
    assert relative(actual, expected) < CLOSE
    weights = torch.linspace(-1, 2, expected.numel(), dtype=expected.dtype).reshape(expected.shape)
    if expected.requires_grad:
        expected.backward(weights)
        actual.backward(weights)
    for (name, a), b in zip(module.named_parameters(), twin.parameters(), strict=True):
        assert relative(a.grad, b.grad) < CLOSE, name


# --- the whole network ---------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"rows": 2}, {"columns": 3}, {"columns": 1}, {"groups": 2}])
def test_network_computes_the_same(options):
    model = network(**options)
    twin = copy.deepcopy(model)
    report = mirnet_fast.accelerate(model)
    assert report.left == []
    left_theirs = {type(m).__name__ for m in model.modules() if type(m).__module__ == lookalike.__name__}
    # Parts of a DAU and of a blur-pool layer, and what only calls its children.
    assert left_theirs == {"MIRNet", "RRG", "PixelGate", "GateConv", "MaxAndMean", "FeatureGate"}
    x, y = picture(True), picture(True)
    expected, actual = twin(x), model(y)
    assert relative(actual, expected) < CLOSE
    expected.square().sum().backward()
    actual.square().sum().backward()
    assert relative(y.grad, x.grad) < CLOSE
    for (name, a), b in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert (a.grad is None) == (b[1].grad is None), name
        if a.grad is not None:
            assert relative(a.grad, b[1].grad) < CLOSE, name


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_inference(layout):
    model = network().eval()
    x = picture().contiguous(memory_format=layout)
    with torch.no_grad():
        expected = model(x)
        mirnet_fast.accelerate(model)
        assert relative(model(x), expected) < CLOSE
    assert torch.equal(x, picture())


def test_everything_is_shared_and_named_as_before():
    model = network()
    parameters = [(name, id(p)) for name, p in model.named_parameters(remove_duplicate=False)]
    buffers = [(name, id(b)) for name, b in model.named_buffers(remove_duplicate=False)]
    modules = [(name, id(m)) for name, m in model.named_modules(remove_duplicate=False)]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    mirnet_fast.accelerate(model)
    assert parameters == [(name, id(p)) for name, p in model.named_parameters(remove_duplicate=False)]
    assert buffers == [(name, id(b)) for name, b in model.named_buffers(remove_duplicate=False)]
    assert modules == [(name, id(m)) for name, m in model.named_modules(remove_duplicate=False)]
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    model.load_state_dict(state, strict=True)
    block = model.body[0].body[0]
    assert is_ours(block.blocks[1][0]) and block.blocks[1][0] is block.blocks[1][1]
    assert block.blocks[0][0].body[1] is block.blocks[2][0].body[1]


def test_a_loaded_state_is_the_reference_networks():
    model = network()
    reference = mirnet_fast.reference.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1).double()
    reference.load_state_dict(model.state_dict(), strict=True)
    mirnet_fast.accelerate(model)
    assert relative(model(picture()), reference(picture())) < CLOSE


def test_our_own_reference_network_can_be_accelerated():
    model = mirnet_fast.reference.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1).double()
    expected = model(picture())
    report = mirnet_fast.accelerate(model)
    assert report.left == [] and is_ours(model.body[0].body[0])
    assert relative(model(picture()), expected) < CLOSE


def test_optimiser_built_before_trains_as_before():
    model = network()
    twin = copy.deepcopy(model)

    def optimiser(m):
        return torch.optim.SGD(m.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-2)

    first, second = optimiser(model), optimiser(twin)
    start = copy.deepcopy(model.state_dict())
    mirnet_fast.accelerate(model)
    for _ in range(3):
        losses = []
        for m, step in ((model, first), (twin, second)):
            step.zero_grad()
            loss = (m(picture()) - 0.5).square().mean()
            loss.backward()
            step.step()
            losses.append(loss.detach())
        assert relative(*losses) < CLOSE
    for (name, a), b in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert relative(a, b) < CLOSE, name
        if not name.endswith("filt"):
            assert not torch.equal(a, start[name]), name


def test_down_sampling_shared_by_two_columns_is_computed_once(monkeypatch):
    def counted(cls):
        calls, original = [], cls.forward

        def forward(self, x):
            calls.append(1)
            return original(self, x)

        monkeypatch.setattr(cls, "forward", forward)
        return calls

    theirs, ours = counted(lookalike.ResidualDownSample), counted(resampling.ResidualDownSample)
    model = network()
    model(picture())
    assert (len(theirs), len(ours)) == (6, 0)
    mirnet_fast.accelerate(model)
    theirs.clear()
    ours.clear()
    model(picture())
    assert (len(theirs), len(ours)) == (0, 4)


def test_one_proof_for_each_kind_of_module(monkeypatch):
    proofs, prove = [], _equivalence.prove

    def counted(module, fit):
        proofs.append(type(module).__name__)
        prove(module, fit)

    monkeypatch.setattr(_equivalence, "prove", counted)
    mirnet_fast.accelerate(network(groups=2, blocks=2))
    expected = {"Downsample": 2, "SKFF": 3, "DAU": 3, "ResidualDownSample": 2, "ResidualUpSample": 2}
    expected |= {"DownSample": 3, "UpSample": 3, "MSRB": 1}
    assert {name: proofs.count(name) for name in proofs} == expected


def test_same_class_with_another_number_is_proved_again(monkeypatch):
    class SKFF(lookalike.SKFF):
        temperature = 1.0

        def forward(self, feats):
            code = self.conv_du(self.pool(sum(feats))) / self.temperature
            scores = self.normalise(torch.stack([head(code) for head in self.fcs]))
            return sum(feat * score for feat, score in zip(feats, scores, strict=True))

    model = nn.ModuleList([SKFF(8), SKFF(8), SKFF(8)])
    model[1].temperature = 2.0
    report = mirnet_fast.accelerate(model)
    assert [is_ours(m) for m in model] == [True, False, True]
    assert "computes something else" in reasons(report)["1"]


def test_import_path_does_not_matter():
    elsewhere = strangers_code("somebody_else.restoration.networks")
    model = elsewhere.MIRNet(8, 1, 1).double()
    expected = model(picture())
    report = mirnet_fast.accelerate(model)
    assert report.left == [] and len(report.replaced) == 34
    assert relative(model(picture()), expected) < CLOSE


# --- single modules ------------------------------------------------------------------------


@each(branches=[1, 2, 3, 4], nonlinearity=[nn.PReLU, lambda: nn.LeakyReLU(0.2), nn.ReLU])
def test_skff_branches_and_activations(branches, nonlinearity):
    module = lookalike.SKFF(8, branches, nonlinearity=nonlinearity())
    check_same_function(module, arguments(module))


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_skff_reductions_and_biases(ratio, use_bias):
    module = lookalike.SKFF(8, 2, ratio, use_bias, nn.PReLU(8 // ratio if ratio < 4 else 1))
    check_same_function(module, arguments(module, 7, 5))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_bias": True},
        {"with_pool": False},
        {"ratio": 2, "k": 5},
        {"gate_k": 1},
        {"gate_k": 3},
        {"gate_k": 7, "use_bias": True, "act": nn.GELU()},
    ],
)
def test_dau(options):
    module = lookalike.DAU(8, **options)
    check_same_function(module, arguments(module, 7, 9))


@each(border=["reflect", "replicate", "zero"], taps=range(1, 8))
def test_blur_pool(taps, border):
    for step, extra in ((2, 0), (1, 0), (3, 2), (2, -((taps - 1) // 2))):
        module = lookalike.Downsample(8, taps, step, border, extra)
        check_same_function(module, arguments(module, 9, 11))
        assert (module.pad_type, module.pad_off, module.filt_size) == (border, extra, taps)


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("cls", [lookalike.ResidualDownSample, lookalike.ResidualUpSample])
def test_residual_resamplers(cls, use_bias):
    module = cls(8, use_bias)
    check_same_function(module, arguments(module, 7, 9))


@pytest.mark.parametrize("cls", [lookalike.DownSample, lookalike.UpSample])
@pytest.mark.parametrize("factor", [2, 4])
def test_resamplers(cls, factor):
    module = cls(8, factor)
    check_same_function(module, arguments(module, 8, 12))


def test_a_network_that_borrowed_parts():
    class Borrower(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.fuse = lookalike.SKFF(8, 2)
            self.shrink = lookalike.Downsample(8, 5, border="replicate")
            self.block = lookalike.MSRB(8)
            self.listed = [self.fuse]

        def forward(self, x):
            y = self.first(x)
            # view() holds the result of every part to its input's memory format.
            z = self.block(self.fuse([y, y.flip(-1)]))
            return self.shrink(z.view(*z.shape)).view(len(x), -1)

    model = Borrower().double()
    expected = model(picture())
    report = mirnet_fast.accelerate(model)
    assert report.left == []
    assert is_ours(model.fuse) and is_ours(model.shrink) and is_ours(model.block)
    assert relative(model(picture()), expected) < CLOSE
    assert model.listed[0] is model.fuse


def test_a_module_under_two_names_is_replaced_once():
    unit = lookalike.DAU(8)
    model = nn.ModuleDict({"a": unit, "b": nn.Sequential(unit)})
    report = mirnet_fast.accelerate(model)
    assert [entry.name for entry in report.replaced] == ["a"]
    assert model["a"] is model["b"][0] and is_ours(unit)


# --- what must be left alone ---------------------------------------------------------------


def tampered(base, name=None, **members):
    """A class of the same name as `base` with other members."""
    return type(name or base.__name__, (base,), members)


def edited(module, edit):
    edit(module)
    return module


def swap(module, path, part):
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, part)


def own_parameter(value):
    return nn.Parameter(value.detach().as_subclass(OwnTensor))


def conv(*args, **options):
    return nn.Conv2d(*args, **{"bias": False, **options})


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
    "blur_unpadded": (with_edit(BLUR, lambda m: delattr(m, "border")), "nor a known pad_type"),
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
    "down_renamed_blur": (
        with_edit(DOWN, lambda m: setattr(m.top[4], "__class__", tampered(BLUR, "Blur"))),
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
    "down_empty": (lambda: lookalike.DownSample(8, 1), "body is empty"),
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
    "derived": (lambda: tampered(SKFF, "Fusion")(8), "derived from SKFF"),
    "deprecated_hook": (
        with_edit(DAU, lambda m: m.register_backward_hook(lambda *a: None)),
        "deprecated",
    ),
}


@pytest.mark.parametrize("case", STRUCTURE)
def test_structure_that_does_not_fit_is_left(case):
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
    assert reasons(report) == {"0": "has the parts of SKFF, but its class has another name"}
    assert "left 0 (Fusion)" in str(report)


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
def test_forward_that_computes_something_else_is_left(case):
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


def test_scripted_module_is_left():
    class Fixed(nn.Module):
        def forward(self, x):
            return x

    scripted = torch.jit.trace(tampered(Fixed, "SKFF")(), torch.ones(1))
    report = mirnet_fast.accelerate(nn.Sequential(scripted))
    assert "TorchScript" in reasons(report)["0"]


def test_only_modules_are_taken():
    with pytest.raises(TypeError, match=r"accelerate: model must be a torch\.nn\.Module; got dict"):
        mirnet_fast.accelerate({})
    with pytest.raises(TypeError, match=r"revert: model must be a torch\.nn\.Module; got list"):
        mirnet_fast.revert([])


def test_nothing_found():
    report = mirnet_fast.accelerate(nn.Sequential(nn.Conv2d(1, 1, 1)))
    assert report.replaced == [] and report.left == []
    assert str(report) == "mirnet_fast: nothing to replace was found"


# --- hooks ---------------------------------------------------------------------------------


def test_hooks_on_replaced_modules_survive_both_ways():
    model = network()
    block = model.body[0].body[0]
    fired = []

    def hook(name):
        return lambda *args: fired.append(name)

    handles = {
        "dau forward": block.blocks[0][0].register_forward_hook(hook("dau forward")),
        "dau pre": block.blocks[0][0].register_forward_pre_hook(hook("dau pre")),
        "skff backward": block.selective_kernel[0].register_full_backward_hook(hook("skff backward")),
        "up pre": block.up["16_2"].body[0].register_full_backward_pre_hook(hook("up pre")),
        "block": block.register_forward_hook(hook("block")),
    }

    def run():
        fired.clear()
        model(picture(True)).sum().backward()
        return sorted(fired)

    before = run()
    assert set(before) == set(handles) and before.count("dau forward") == 2
    fired.clear()
    assert mirnet_fast.accelerate(model).left == []
    assert fired == [], "the comparison itself fires no hook"
    assert run() == before
    handles["skff backward"].remove()
    assert set(run()) == set(handles) - {"skff backward"}
    mirnet_fast.revert(model)
    assert set(run()) == set(handles) - {"skff backward"}
    for handle in handles.values():
        handle.remove()
    assert run() == []


def test_hook_with_a_result_is_obeyed():
    module = lookalike.SKFF(8).double()
    module.register_forward_hook(lambda m, args, result: result * 2)
    expected = module(arguments(module))
    assert mirnet_fast.accelerate(module).left == []
    assert relative(module(arguments(module)), expected) < CLOSE


INNER = [
    *[(SKFF, path) for path in ("conv_du", "conv_du.0", "fcs.2", "pool")],
    *[(DAU, path) for path in ("body", "body.1", "SA", "SA.spatial.conv", "CA.conv_du.3", "conv1x1")],
    *[(BLUR, "border"), (DOWN, "top"), (DOWN, "top.2"), (DOWN, "top.4"), (UP, "top.0"), (UP, "bot.0")],
]
REGISTER = ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")


@pytest.mark.parametrize("register", REGISTER)
@pytest.mark.parametrize("cls, path", INNER)
def test_hook_inside(cls, path, register):
    module = cls(8).double()
    fired = []
    getattr(module.get_submodule(path), f"register_{register}")(lambda *args: fired.append(1))
    inputs = arguments(module)
    for x in inputs if isinstance(inputs, list) else [inputs]:
        x.requires_grad_()

    def run():
        fired.clear()
        module(inputs).sum().backward()
        return len(fired)

    before = run()
    report = mirnet_fast.accelerate(module)
    assert type(module) is cls
    assert reasons(report)[""] == f"{path} has hooks, which would no longer be called as before"
    assert run() == before == 1


# --- revert, and what else a model goes through --------------------------------------------


def test_loading_another_filter_is_refused():
    model = network()
    state = model.state_dict()
    mirnet_fast.accelerate(model)
    model.load_state_dict(state)
    name = "body.0.body.0.down.8_2.body.0.bot.0.filt"
    state[name] = state[name] * 2
    with pytest.raises(RuntimeError, match=name):
        model.load_state_dict(state)


def test_revert_brings_back_what_was_there():
    model = network()
    tower = [(name, id(m), type(m), dict(m.__dict__)) for name, m in model.named_modules()]
    mirnet_fast.accelerate(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    trained = model(picture())
    names = mirnet_fast.revert(model)
    assert len(names) == 34 and "body.0.body.0" in names
    for (name, key, cls, state), (now, module) in zip(tower, model.named_modules(), strict=True):
        assert (name, key, cls) == (now, id(module), type(module))
        assert list(state) == list(module.__dict__), name
        assert all(module.__dict__[k] is v for k, v in state.items()), name
    assert relative(model(picture()), trained) < CLOSE
    assert mirnet_fast.revert(model) == []


def test_revert_restores_attributes_that_ours_uses():
    module = lookalike.Downsample(8)
    module.pad_type, module.channels = "mirrored", "many"
    mirnet_fast.accelerate(module)
    assert (module.pad_type, module.channels) == ("reflect", 8)
    mirnet_fast.revert(module)
    assert (module.pad_type, module.channels) == ("mirrored", "many")
    assert not hasattr(module, "pad_off")


def test_twice_is_harmless():
    model = network()
    mirnet_fast.accelerate(model)
    states = [dict(m.__dict__) for m in model.modules()]
    report = mirnet_fast.accelerate(model)
    assert (report.replaced, report.left) == ([], [])
    assert all(dict(m.__dict__) == s for m, s in zip(model.modules(), states, strict=True))
    mirnet_fast.revert(model)
    assert not any(is_ours(m) for m in model.modules())


def test_a_second_call_takes_what_fits_by_then():
    model = nn.Sequential(lookalike.MSRB(8))
    handle = model[0].down["8_2"].register_forward_hook(lambda *a: None)
    assert list(reasons(mirnet_fast.accelerate(model))) == ["0"]
    handle.remove()
    report = mirnet_fast.accelerate(model)
    assert [entry.name for entry in report.replaced] == ["0"] and is_ours(model[0])


def test_our_own_modules_are_not_touched():
    model = mirnet_fast.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1)
    report = mirnet_fast.accelerate(model)
    assert (report.replaced, report.left) == ([], [])
    assert mirnet_fast.revert(model) == []


def test_the_users_module_and_random_state_are_not_disturbed():
    model = network()
    model.body[0].body[0].blocks[0].eval()
    for parameter in list(model.parameters())[::3]:
        parameter.requires_grad_(False)
    flags = [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    torch.set_num_threads(3)
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    mirnet_fast.accelerate(model)
    assert torch.equal(torch.randn(3), expected)
    assert flags == [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert mirnet_fast.current_backend() is None
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_inside_contexts_of_the_caller(context):
    model = network()
    with context(), torch.autocast("cpu"), mirnet_fast.use_backend("reference"):
        report = mirnet_fast.accelerate(model)
    assert report.left == [] and is_ours(model.body[0].body[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes(dtype):
    model = network().to(dtype)
    mirnet_fast.accelerate(model)
    assert {p.dtype for p in model.state_dict().values()} == {dtype}
    if dtype != torch.float16:
        assert model(picture().to(dtype)).dtype == dtype


def test_moved_after_the_swap():
    model = network()
    expected = model(picture())
    mirnet_fast.accelerate(model)
    model.float().double().eval()
    assert relative(model(picture()), expected) < 1e-5
    mirnet_fast.revert(model)
    assert relative(model(picture()), expected) < 1e-5
    assert not any(m.training for m in model.modules())


def test_modules_without_memory_of_their_own():
    model = lookalike.SKFF(8).to("meta")
    assert mirnet_fast.accelerate(model).left == []
    assert is_ours(model) and {p.device.type for p in model.parameters()} == {"meta"}


def test_copied_and_pickled():
    model = network()
    expected = model(picture())
    mirnet_fast.accelerate(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert is_ours(twin.body[0].body[0])
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
        assert relative(twin(picture()), expected) < CLOSE
        assert len(mirnet_fast.revert(twin)) == 34
        assert type(twin.body[0].body[0]) is lookalike.MSRB and is_ours(model.body[0].body[0])
        assert relative(twin(picture()), expected) < CLOSE


@pytest.mark.untraced
def test_compiled_before():
    for compiled in (torch.compile(network(), backend="eager"), network()):
        if not hasattr(compiled, "_orig_mod"):
            compiled.compile(backend="eager")
        expected = compiled(picture())
        assert len(mirnet_fast.accelerate(compiled).replaced) == 34
        calls, original = [], resampling.ResidualDownSample.forward

        def forward(self, x, calls=calls, original=original):
            calls.append(1)
            return original(self, x)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resampling.ResidualDownSample, "forward", forward)
            assert relative(compiled(picture()), expected) < CLOSE
        assert len(calls) == 4, "the code compiled before the swap must not run"


def test_data_parallel():
    model = nn.DataParallel(network())
    expected = model(picture())
    report = mirnet_fast.accelerate(model)
    assert report.left == [] and report.replaced[0].name.startswith("module.")
    assert relative(model(picture()), expected) < CLOSE


@pytest.fixture
def process_group():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_distributed_data_parallel(process_group):
    twin, inner = network(), network()
    model = nn.parallel.DistributedDataParallel(inner)
    optimisers = [torch.optim.SGD(m.parameters(), lr=1e-3) for m in (twin, model)]
    assert mirnet_fast.accelerate(model).left == []
    for _ in range(2):
        for m, optimiser in zip((twin, model), optimisers, strict=True):
            optimiser.zero_grad()
            m(picture()).square().mean().backward()
            optimiser.step()
    for a, b in zip(inner.parameters(), twin.parameters(), strict=True):
        assert relative(a, b) < CLOSE


def test_report_reads_well():
    model = nn.Sequential(lookalike.SKFF(8), lookalike.SKFF(8, nonlinearity=nn.GELU()))
    report = mirnet_fast.accelerate(model)
    assert str(report) == (
        "mirnet_fast: 1 module replaced, 1 left as it was\n"
        "  SKFF -> mirnet_fast.SKFF: 0\n"
        "  left 1 (SKFF): conv_du.1 is a GELU, not a PReLU or LeakyReLU or ReLU of torch.nn"
    )
