"""accelerate() on a stranger's implementation: what is replaced, and that it computes the same."""

import copy

import pytest
import torch
from torch import nn

import mirnet_fast
from mirnet_fast.accelerate import prove
from mirnet_fast.modules import resampling

from .cases import each, first_of
from .strangers import (
    CLOSE,
    arguments,
    check_same_function,
    is_ours,
    lookalike,
    network,
    picture,
    reasons,
    relative,
    strangers_code,
)

pytestmark = pytest.mark.usefixtures("one_thread")

# --- the whole network ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", first_of([{"rows": 2}, {"columns": 3}, {"columns": 1}, {"groups": 2}, {}], 3)
)
def test_network_computes_the_same(options):
    model = network(**options)
    twin = copy.deepcopy(model)
    report = mirnet_fast.accelerate(model)
    assert report.skipped == []
    left_theirs = {type(m).__name__ for m in model.modules() if type(m).__module__ == lookalike.__name__}
    # The parts of a DAU.
    assert left_theirs == {"PixelGate", "GateConv", "MaxAndMean", "FeatureGate"}
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
    assert report.skipped == [] and is_ours(model.body[0].body[0])
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
    proofs, plain = [], prove.prove

    def counted(module, fit):
        proofs.append(type(module).__name__)
        plain(module, fit)

    monkeypatch.setattr(prove, "prove", counted)
    mirnet_fast.accelerate(network(groups=2, blocks=2))
    expected = {"Downsample": 2, "SKFF": 3, "DAU": 3, "ResidualDownSample": 2, "ResidualUpSample": 2}
    expected |= {"DownSample": 3, "UpSample": 3, "MSRB": 1, "RRG": 1, "MIRNet": 1}
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
    assert report.skipped == [] and len(report.replaced) == 36
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
    assert report.skipped == []
    assert is_ours(model.fuse) and is_ours(model.shrink) and is_ours(model.block)
    assert relative(model(picture()), expected) < CLOSE
    assert model.listed[0] is model.fuse


def test_a_module_under_two_names_is_replaced_once():
    unit = lookalike.DAU(8)
    model = nn.ModuleDict({"a": unit, "b": nn.Sequential(unit)})
    report = mirnet_fast.accelerate(model)
    assert [entry.name for entry in report.replaced] == ["a"]
    assert model["a"] is model["b"][0] and is_ours(unit)


def test_only_modules_are_taken():
    with pytest.raises(TypeError, match=r"accelerate: model must be a torch\.nn\.Module; got dict"):
        mirnet_fast.accelerate({})
    with pytest.raises(TypeError, match=r"revert: model must be a torch\.nn\.Module; got list"):
        mirnet_fast.revert([])


def test_nothing_found():
    report = mirnet_fast.accelerate(nn.Sequential(nn.Conv2d(1, 1, 1)))
    assert report.replaced == [] and report.skipped == []
    assert str(report) == "mirnet_fast: nothing to replace was found"


def test_report_reads_well():
    model = nn.Sequential(lookalike.SKFF(8), lookalike.SKFF(8, nonlinearity=nn.GELU()))
    report = mirnet_fast.accelerate(model)
    assert str(report) == (
        "mirnet_fast: 1 module replaced, 1 skipped\n"
        "  SKFF -> mirnet_fast.SKFF: 0\n"
        "  skipped 1 (SKFF): conv_du.1 is a GELU, not a PReLU or LeakyReLU or ReLU of torch.nn"
    )
