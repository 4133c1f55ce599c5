"""accelerate() on whole networks of two strangers: each becomes one mirnet_fast.MIRNet."""

import copy
import io

import pytest
import torch
from torch import nn

import mirnet_fast
from mirnet_fast.engine import eligibility

from .cases import exhaustive, first_of
from .strangers import (
    CLOSE,
    check_same,
    conv,
    lookalike,
    picture,
    reasons,
    relative,
    renamed,
    tampered,
    whole,
)

pytestmark = pytest.mark.usefixtures("one_thread")

STRANGERS = {"published names": lookalike.MIRNet, "other names": renamed.Restorer}


def accelerated(model):
    report = mirnet_fast.accelerate(model)
    assert report.skipped == [], str(report)
    return model


# --- replaced ------------------------------------------------------------------------------

SHAPES = [(8, 1, 1, 3), (8, 2, 2, 2), (8, 1, 1, 2, 3), (8, 1, 1, 3, 1), (8, 1, 1, 1), (8, 1, 1, 2, 2, 8)]


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("shape", first_of(SHAPES))
def test_a_network_becomes_one_of_ours(stranger, shape):
    model = whole(STRANGERS[stranger], *shape)
    twin = copy.deepcopy(model)
    accelerated(model)
    assert type(model) is mirnet_fast.MIRNet
    strange = {type(m).__name__ for m in model.modules() if type(m).__module__ == type(twin).__module__}
    assert strange == {type(m).__name__ for m in model.modules() if "Gate" in type(m).__name__} | (
        {"MaxAndMean"} if stranger == "published names" else set()
    )
    assert eligibility.snapshot_of(model).alone
    x = torch.randn(2, shape[5] if len(shape) > 5 else 3, 8, 12, dtype=torch.float64)
    assert relative(model(x), twin(x)) < CLOSE
    if x.shape == picture().shape:
        check_same(model, twin)


def test_as_fast_as_ours(monkeypatch):
    """No layer is called: the network runs as mirnet_fast.MIRNet does."""
    called, plain = [], nn.Conv2d.forward
    patched = lambda self, x: called.append(self) or plain(self, x)  # noqa: E731
    monkeypatch.setattr(nn.Conv2d, "forward", patched)
    monkeypatch.setitem(eligibility._FORWARDS, nn.Conv2d, patched)
    for cls in STRANGERS.values():
        model = accelerated(whole(cls).float())
        called.clear()
        with torch.no_grad():
            model(torch.rand(1, 3, 16, 16))
        assert not called


def test_nothing_but_classes_changes():
    model = whole()
    before = [
        [(name, id(value)) for name, value in found(remove_duplicate=False)]
        for found in (model.named_modules, model.named_parameters, model.named_buffers)
    ]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    accelerated(model)
    assert before == [
        [(name, id(value)) for name, value in found(remove_duplicate=False)]
        for found in (model.named_modules, model.named_parameters, model.named_buffers)
    ]
    assert list(model.state_dict()) == list(state) and "trunk.0.layers.0.sink.0 to 1" in repr(
        model.state_dict().keys()
    )
    for value in model.state_dict().values():
        value.add_(1)
    assert model.load_state_dict(state).missing_keys == []
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    twin = whole()
    twin.load_state_dict(model.state_dict())
    check_same(model, twin)


def test_our_names_find_their_parts_and_theirs_still_do():
    model = accelerated(whole())
    group = model.trunk[0]
    block = group.layers[0]
    assert model.conv_in is model.first and model.conv_out is model.last and model.body is model.trunk
    assert group.body is group.layers and block.conv_out is block.tail
    assert block.down == {"8_2": block.sink["0 to 1"]} and block.last_up == {"1": block.finish[0]}
    unit = block.units[0][0]
    assert unit.SA.spatial.conv is unit.pixels.look and unit.CA.conv_du is unit.channels.weigh
    assert block.down["8_2"].body[0].top[4].filt is block.sink["0 to 1"].path[0].main[4].kernel
    with pytest.raises(AttributeError, match="'MIRNet' object has no attribute 'nothing'"):
        model.nothing  # noqa: B018


def test_a_part_that_is_replaced_later_counts():
    model = whole()
    twin = copy.deepcopy(model)
    accelerated(model)
    for one in (model, twin):
        torch.manual_seed(1)
        one.first = conv(3, 8, 3, padding=1).double()
        unit = one.trunk[0].layers[0].units[0][0]
        unit.pixels.look = conv(2, 1, 3, padding=1).double()
        unit.join = nn.Sequential(unit.join, nn.Tanh())
    check_same(model, twin)
    for one in (model, twin):
        one.trunk[0].layers[0].sink["0 to 1"].path[0].skip[0].kernel.mul_(2)
    check_same(model, twin)


@exhaustive
def test_a_hook_on_any_module_has_its_effect():
    model = whole()
    twin = copy.deepcopy(model)
    accelerated(model)
    for name, _ in twin.named_modules():
        hooked = [m.get_submodule(name) for m in (model, twin)]
        handles = [m.register_forward_hook(lambda m, args, result: 2 * result) for m in hooked]
        with torch.no_grad():
            assert relative(model(picture()), twin(picture())) < CLOSE, name
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_class_that_derives_from_theirs(stranger):
    class Published(STRANGERS[stranger]):
        limit = 0.5

        def forward(self, x):
            return super().forward(x)

        def clamped(self, x):
            return self(x).clamp(-self.limit, self.limit)

        @property
        def features(self):
            return next(self.parameters()).shape[0]

        @classmethod
        def small(cls):
            return cls, "small"

        @staticmethod
        def twice(x):
            return 2 * x

    model = whole(Published)
    twin = copy.deepcopy(model)
    accelerated(model)
    assert type(model) is mirnet_fast.MIRNet
    check_same(model, twin)
    assert relative(model.clamped(picture()), twin.clamped(picture())) < CLOSE
    assert (model.features, model.small(), model.twice(3)) == (twin.features, (Published, "small"), 6)
    model.limit = 0.25
    assert relative(model.clamped(picture()), twin(picture()).clamp(-0.25, 0.25)) < CLOSE


def test_a_class_that_derives_from_ours_is_not_foreign():
    class Mine(mirnet_fast.MIRNet):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(Mine(n_feat=8, n_RRG=1, n_MSRB=1, height=2))
    report = mirnet_fast.accelerate(model)
    assert (report.replaced, report.skipped) == ([], [])
    assert type(model[0]) is Mine


@pytest.mark.parametrize("stranger", STRANGERS)
def test_inside_another_module(stranger):
    class Wrapper(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net, self.gain = net, nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.gain * self.net(x).clamp(0, 1)

    model = Wrapper(whole(STRANGERS[stranger])).double()
    twin = copy.deepcopy(model)
    accelerated(model)
    assert type(model.net) is mirnet_fast.MIRNet and type(model) is Wrapper
    check_same(model, twin)


def test_two_groups_that_are_one_object():
    model = whole(lookalike.MIRNet, 8, 2, 1, 2)
    model.body[1] = model.body[0]
    twin = copy.deepcopy(model)
    accelerated(model)
    assert type(model) is mirnet_fast.MIRNet and model.body[0] is model.body[1]
    check_same(model, twin)
    assert "body.1" not in mirnet_fast.revert(model)
    check_same(model, twin)


def test_a_forward_that_recomputes_and_looks_at_its_parts():
    """What is called in place of a part in the comparison has its attributes."""

    def forward(self, x):
        assert x.shape[-1] % 2 ** (self.body[0].body[0].rows - 1) == 0, "of no use"
        y = self.conv_in(x)
        for group in self.body:
            y = (
                torch.utils.checkpoint.checkpoint(group, y, use_reentrant=False)
                if self.training
                else group(y)
            )
        return self.conv_out(y) + x

    model = whole(tampered(lookalike.MIRNet, "Frugal", forward=forward), 8, 2, 1, 2)
    twin = copy.deepcopy(model)
    accelerated(model)
    assert type(model) is mirnet_fast.MIRNet
    check_same(model, twin)


# --- what a network goes through -----------------------------------------------------------


def test_hooks_on_the_root():
    model, fired = whole(), []
    model.register_forward_pre_hook(lambda m, args: fired.append("before"))
    handle = model.register_forward_hook(lambda m, args, result: fired.append("after") or 2 * result)
    model.trunk[0].register_full_backward_hook(lambda *args: fired.append("backward"))
    twin = copy.deepcopy(model)
    fired.clear()
    accelerated(model)
    assert fired == [] and type(model) is mirnet_fast.MIRNet
    model(picture()).sum().backward()
    assert fired == ["before", "after", "backward"]
    check_same(model, twin)
    handle.remove()
    assert relative(2 * model(picture()), twin(picture())) < CLOSE


@pytest.mark.parametrize("stranger", STRANGERS)
def test_reverted(stranger):
    model = whole(STRANGERS[stranger])
    before = [(name, id(m), type(m), dict(m.__dict__)) for name, m in model.named_modules()]
    twin = copy.deepcopy(accelerated(model))
    with torch.no_grad():
        for one in (model, twin):
            for parameter in one.parameters():
                parameter.add_(0.01)
    assert "" in mirnet_fast.revert(model)
    for (name, key, cls, state), (now, module) in zip(before, model.named_modules(), strict=True):
        assert (name, key, cls) == (now, id(module), type(module))
        assert list(state) == list(module.__dict__), name
        assert all(module.__dict__[k] is v for k, v in state.items()), name
    assert not hasattr(model, "body") or stranger == "published names"
    check_same(model, twin)
    report = mirnet_fast.accelerate(model)
    assert report.skipped == [] and type(model) is mirnet_fast.MIRNet


@pytest.mark.parametrize("stranger", STRANGERS)
def test_copied_and_pickled(stranger):
    model = whole(STRANGERS[stranger])
    plain = copy.deepcopy(model)
    accelerated(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert type(twin) is mirnet_fast.MIRNet
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
        check_same(twin, plain)
        mirnet_fast.revert(twin)
        assert type(twin) is STRANGERS[stranger] and type(model) is mirnet_fast.MIRNet
        check_same(twin, plain)


@pytest.mark.parametrize("stranger", STRANGERS)
def test_trained(stranger):
    model = whole(STRANGERS[stranger])
    twin = copy.deepcopy(model)
    optimisers = [torch.optim.Adam(m.parameters(), lr=1e-3) for m in (model, twin)]
    accelerated(model)
    for _ in range(3):
        for one, optimiser in zip((model, twin), optimisers, strict=True):
            optimiser.zero_grad()
            (one(picture()) - 0.5).square().mean().backward()
            optimiser.step()
    check_same(model, twin)


def test_a_second_call_takes_the_network_once_it_fits():
    model = whole()
    handle = model.trunk.register_forward_hook(lambda *args: None)
    assert list(reasons(mirnet_fast.accelerate(model))) == [""]
    assert type(model.trunk[0]) is mirnet_fast.RRG
    handle.remove()
    report = mirnet_fast.accelerate(model)
    assert [entry.with_what for entry in report.replaced] == ["mirnet_fast.MIRNet"]
    report = mirnet_fast.accelerate(model)
    assert (report.replaced, report.skipped) == ([], [])


def test_parts_of_a_published_network_are_not_run_again(monkeypatch):
    """A whole network in float64 would take seconds and as much memory as several of it."""
    sizes, plain = [], copy.deepcopy

    def counted(module, memo=None):
        twin = plain(module, memo)
        if isinstance(module, lookalike.MIRNet):
            sizes.append(sum(p.numel() for p in twin.parameters()))
        return twin

    model = whole(lookalike.MIRNet)
    monkeypatch.setattr(copy, "deepcopy", counted)
    accelerated(model)
    assert (
        len(sizes) == 1
        and sizes[0] < sum(p.numel() for p in (model.conv_in.weight, model.conv_out.weight)) + 9
    )


@exhaustive
@pytest.mark.untraced
def test_compiled():
    torch.compiler.reset()
    model = whole()
    expected = model(picture())
    compiled = torch.compile(accelerated(model), backend="eager", fullgraph=True)
    assert relative(compiled(picture()), expected) < CLOSE


def test_sizes_that_do_not_fit_are_refused_as_ours_does():
    model = accelerated(whole())
    with pytest.raises(ValueError, match=r"MIRNet: x must be .* multiples of 2"):
        model(torch.zeros(1, 3, 7, 8, dtype=torch.float64))
