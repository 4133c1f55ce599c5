"""explain() says what a forward without gradients then does, and changes nothing."""

import copy
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import mirnet_fast
from mirnet_fast import engine, explain
from mirnet_fast.engine import eligibility, plan

from ..cases import first_of
from ..ops.common import needs_kernels
from ..strangers import lookalike, whole

pytestmark = [needs_kernels, pytest.mark.usefixtures("one_thread")]
SHAPE = (1, 3, 32, 32)
UNIT = "body.0.body.0.blocks.0.0"


def native(change=None, **options):
    torch.manual_seed(0)
    model = mirnet_fast.MIRNet(**{"n_feat": 8, "n_RRG": 1, "n_MSRB": 1, **options}).eval()
    if change is not None:
        change(model)
    return model


def unit_of(model):
    return model.get_submodule(UNIT)


def really_planned(model, x):
    """{name: how often a plan of it is run} in a forward."""
    names, found = {module: name for name, module in model.named_modules()}, Counter()

    def recorded(module, *args):
        result = engine.plan_of(module, *args)
        if isinstance(result, plan.Plan):
            found[names[module]] += 1
        return result

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(plan, "plan_of", recorded)
        model(x)
    return dict(found)


def check(model, like=SHAPE):
    """The Explanation, whose plans are those of a forward; says how each of the rest is."""
    explanation = explain(model, like)
    x = like if isinstance(like, torch.Tensor) else torch.rand(like, dtype=next(model.parameters()).dtype)
    assert {p.name: p.times for p in explanation.planned} == really_planned(model, x), str(explanation)
    for entry in (*explanation.planned, *explanation.ordinary):
        assert type(model.get_submodule(entry.name)).__name__ == entry.class_name
    return explanation


def reasons(entries):
    return {entry.name: entry.reason for entry in entries}


def test_a_whole_network():
    model = native()
    (planned,) = check(model).planned
    with torch.no_grad():
        wanted = engine.plan_of(model, torch.rand(SHAPE))
    assert planned.peak_bytes == wanted.peak_bytes > 0
    assert 20 < planned.kernel_calls < len(wanted.tasks)
    assert (planned.name, planned.class_name, planned.called) == ("", "MIRNet", ())
    assert planned.by_torch == ()
    explanation = explain(model, SHAPE)
    assert (explanation.ordinary, explanation.others) == ((), {})
    assert f"{planned.kernel_calls} kernel calls, 0.2 MB at its peak" in str(explanation)
    assert len(str(explanation).splitlines()) == 2


def hook(path, register="register_forward_hook"):
    return lambda model: getattr(model.get_submodule(path), register)(lambda *args: pytest.fail("called"))


def patch_forward(model):
    unit = unit_of(model)
    before = unit.forward
    unit.forward = lambda x: 2 * before(x)


class Doubling(mirnet_fast.DAU):
    def forward(self, x):
        return 2 * super().forward(x)


class Own(mirnet_fast.DAU):
    def forward(self, x):
        return self.body(x)


class Foreign(nn.Module):
    """A block of others that holds one of ours."""

    def __init__(self):
        super().__init__()
        self.first, self.unit = nn.Conv2d(8, 8, 1), mirnet_fast.DAU(8)

    def forward(self, x):
        return self.unit(self.first(x))


def put(path, module):
    parent, _, name = path.rpartition(".")
    return lambda model: setattr(model.get_submodule(parent), name, module())


def norm(model):
    parametrizations.weight_norm(unit_of(model).body[0])


DERIVED = "it is of a class derived from DAU with code of its own"
CALLED = {  # {what was done: (a function of the network, the module that its plan calls, why)}
    "forward": (patch_forward, UNIT, "it has a forward of its own"),
    "derived": (put(UNIT, lambda: Doubling(8)), UNIT, DERIVED),
    "own": (put(UNIT, lambda: Own(8)), UNIT, DERIVED),
    "foreign": (put("body.1", Foreign), "body.1", "it is code of others"),
    "norm": (norm, UNIT, f"{UNIT}.body.0 is a ParametrizedConv2d, none of the published layers"),
    "padding": (
        lambda model: setattr(unit_of(model).body[2], "padding_mode", "reflect"),
        UNIT,
        f"{UNIT}.body.2 is not as published",
    ),
    "longer": (
        lambda model: unit_of(model).CA.conv_du.append(nn.Identity()),
        UNIT,
        f"{UNIT}.CA.conv_du is not as published",
    ),
}


@pytest.mark.parametrize("case", CALLED)
def test_a_plan_that_calls(case):
    change, name, reason = CALLED[case]
    explanation = check(native(change))
    assert reasons(explanation.planned[0].called) == {name: reason}
    assert explanation.planned[0].name == ""
    assert f"calls {name} (" in str(explanation)
    inside = {entry.name for entry in explanation.planned[1:]}
    assert inside == {"forward": {UNIT}, "derived": {UNIT}, "foreign": {"body.1.unit"}}.get(case, set())


@pytest.mark.parametrize(
    ("path", "register", "reason"),
    [
        (f"{UNIT}.body.0", "register_forward_hook", f"{UNIT}.body.0 has hooks"),
        (f"{UNIT}.SA.spatial", "register_forward_pre_hook", f"{UNIT}.SA.spatial has hooks"),
        (UNIT, "register_full_backward_hook", "it has hooks"),
    ],
)
def test_hooks(path, register, reason):
    explanation = explain(native(hook(path, register)), SHAPE)
    assert reasons(explanation.planned[0].called) == {UNIT: reason}
    assert reasons(explanation.ordinary) == ({} if path == UNIT else {UNIT: reason})
    assert f"calls {UNIT} (DAU): {reason.replace(f'{UNIT}.', 'its ')}" in str(explanation)


@pytest.mark.parametrize("broken", ["conv1x1", "SA"])
def test_a_network_that_does_not_run(broken):
    model = native()
    delattr(unit_of(model), broken)
    assert eligibility.unlowered(unit_of(model), UNIT) == "it has not the published structure"
    with pytest.raises(ValueError, match=f"explain: for shape .* the model's forward fails: .*{broken}"):
        explain(model, SHAPE)


def test_a_network_that_cannot_be_one_plan():
    explanation = explain(native(hook("conv_in")), SHAPE)
    assert reasons(explanation.ordinary) == {"": "conv_in has hooks"}
    assert [entry.name for entry in explanation.planned] == ["body.0"]
    model = native(lambda m: m.get_submodule("body.0.body.0.down.8_2.body.0.top.4").filt.mul_(2))
    explanation = check(model)
    told = reasons(explanation.ordinary)
    fusions = [told.pop(f"body.0.body.0.selective_kernel.{i}") for i in range(3)]
    assert fusions == ["it is one op, which is called, as its maps are not channels_last"] * 3
    assert told == {
        "": "body.0.body.0.down.8_2.body.0.top.4.filt is not the binomial filter",
        "body.0.body.0.down.8_2.body.0.bot.0": "it is one op, which is called",
    }
    assert {p.name: p.times for p in explanation.planned}[UNIT] == 2
    assert ", 2 times" in str(explanation)


def test_a_class_whose_forward_is_replaced(monkeypatch):
    monkeypatch.setattr(nn.PReLU, "forward", lambda self, x: x)
    explanation = check(native())
    assert explanation.planned == ()
    assert reasons(explanation.ordinary)[""] == "PReLU.forward was replaced"
    assert "without a plan: the model itself (MIRNet): PReLU.forward was replaced" in str(explanation)
    monkeypatch.setattr(mirnet_fast.MIRNet, "forward", lambda self, x: x)
    assert reasons(check(native()).ordinary) == {"": "MIRNet.forward was replaced"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    model = native().to(dtype)
    (planned,) = check(model).planned
    by_torch = {"conv_in", f"{UNIT}.body.0", "conv_out"} & {*planned.by_torch}
    assert len(by_torch) == (3 if dtype == torch.float64 else 0)
    assert explain(model, SHAPE, dtype) == explain(model, SHAPE)
    assert str(dtype) in explain(model, SHAPE).given
    with pytest.raises(
        ValueError, match=r"explain: for shape \(1, 3, 32, 32\), torch.float32, cpu, the model"
    ):
        explain(model, SHAPE, torch.float32)


def test_convolutions_that_pytorch_runs():
    explanation = check(native(kernel_size=5))
    assert explanation.planned[0].by_torch == ("conv_in", "conv_out")
    assert "    convolutions by PyTorch: conv_in, conv_out" in str(explanation).splitlines()
    with mirnet_fast.use_winograd(False):
        explanation = check(native())
    by_torch = explanation.planned[0].by_torch
    assert by_torch[:2] == ("conv_in", f"{UNIT}.body.0") and "body.0.body.0.up.32_2.body.0.top.2" in by_torch
    assert explanation.planned[0].kernel_calls < check(native()).planned[0].kernel_calls
    more = f"and {len(by_torch) - 3} more"
    assert f"convolutions by PyTorch: {', '.join(by_torch[:3])} {more}" in str(explanation)


def test_the_form_of_a_tensor_counts():
    model, x = native(), torch.rand(SHAPE)
    as_given = check(model, x).planned[0]
    channels_last = check(model, x.contiguous(memory_format=torch.channels_last)).planned[0]
    assert as_given.peak_bytes > channels_last.peak_bytes  # one copy more
    assert as_given.kernel_calls == channels_last.kernel_calls
    assert check(model.train(), x).planned[0] == as_given
    (ordinary,) = explain(copy.deepcopy(model).to("meta"), SHAPE).ordinary
    assert ordinary.reason == "the input is on meta; plans are for the CPU and for CUDA"
    branch = torch.rand(1, 8, 4, 4)
    (fusion,) = explain(mirnet_fast.SKFF(8, 2), [branch.to(memory_format=torch.channels_last)] * 2).planned
    assert (fusion.name, fusion.class_name) == ("", "SKFF")
    # The copies would cost more than the op.
    (ordinary,) = explain(mirnet_fast.SKFF(8, 2), [branch] * 2).ordinary
    assert ordinary.reason == "it is one op, which is called, as its maps are not channels_last"


def test_settings():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), mirnet_fast.DAU(8), mirnet_fast.DAU(8))
    with torch.autocast("cpu"):
        explanation = check(model)
    assert reasons(explanation.ordinary) == dict.fromkeys("12", "autocast is on")
    assert "without a plan: 1, 2 (DAU): autocast is on" in str(explanation)
    with mirnet_fast.use_backend("reference"):
        explanation = check(native())
    told = "the backend is 'reference', not 'cpu': 'reference' was chosen explicitly"
    assert reasons(explanation.ordinary) == {"": told}
    seen = []
    with nn.modules.module.register_module_forward_hook(lambda *args: seen.append(args)):
        explanation = explain(model, SHAPE)
    assert reasons(explanation.ordinary) == dict.fromkeys("12", "hooks on all modules are registered")
    assert not seen


class Restorer(nn.Module):
    """Of a stranger, with the blocks of MIRNet in a network of another kind."""

    def __init__(self):
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.unit, self.fusion = lookalike.DAU(8), lookalike.SKFF(8, 2)
        self.spare = lookalike.DAU(8)
        self.enlarge = nn.Upsample(scale_factor=2)

    def forward(self, x):
        y = self.unit(self.first(x))
        return self.fusion([y, self.enlarge(self.unit(self.down(y)))])


def test_a_network_that_only_has_parts_of_ours():
    model = Restorer()
    explanation = explain(model, SHAPE)
    assert (explanation.planned, explanation.ordinary) == ((), ())
    assert explanation.others["DAU"] == 2
    assert "mirnet_fast.accelerate(model)" in str(explanation)
    mirnet_fast.accelerate(model)
    explanation = check_times(model)
    assert explanation.others == {"Restorer": 1, "Conv2d": 2, "Upsample": 1}
    assert reasons(explanation.ordinary) == {
        "fusion": "it is one op, which is called, as its maps are not channels_last",
        "spare": "the forward does not come to it",
    }
    large, small = explanation.planned
    assert large.peak_bytes > small.peak_bytes  # of the maps as they are inside


def check_times(model):
    """`check` of a network in which a module has plans for several shapes."""
    explanation, times = explain(model, SHAPE), Counter()
    for planned in explanation.planned:
        times[planned.name] += planned.times
    assert times == really_planned(model, torch.rand(SHAPE)) and times["unit"] == 2
    return explanation


@pytest.mark.parametrize("make", first_of([whole, lookalike.MIRNet]))
def test_an_accelerated_network(make):
    model = make(*([8, 1, 1, 2] if make is lookalike.MIRNet else [])).float()
    mirnet_fast.accelerate(model)
    assert [entry.name for entry in check(model).planned] == [""]
    path = next(name for name, module in model.named_modules() if type(module) is mirnet_fast.DAU)
    inner = next(name for name, m in model.named_modules() if name.startswith(path) and type(m) is nn.Conv2d)
    model.get_submodule(inner).register_forward_hook(lambda *args: None)
    assert reasons(check(model).planned[0].called) == {path: f"{inner} has hooks"}


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **options):
        return self.module(*args, **options)


@pytest.mark.parametrize("wrap", [Wrapper, nn.DataParallel])
def test_a_wrapped_network(wrap):
    explanation = check(wrap(native()))
    assert explanation.planned[0].name == "module"
    assert explanation.others == {wrap.__name__: 1}


def test_a_compiled_network():
    model = torch.compile(native(), backend="eager")
    assert reasons(explain(model, SHAPE).ordinary) == {"_orig_mod": "torch.compile runs it"}
    model = native()
    model.compile(backend="eager")
    assert reasons(explain(model, SHAPE).ordinary) == {"": "torch.compile runs it"}


class Asking(Foreign):
    """Asks for a value."""

    def forward(self, x):
        return super().forward(x) if x.mean().item() < 9 else x


def test_code_that_asks_for_values():
    explanation = explain(native(put("body.1", Asking)), SHAPE)
    why = "body.1 cannot be followed without values (aten._local_scalar_dense.default)"
    assert reasons(explanation.planned[0].called) == {"body.1": "it is code of others"}
    assert reasons(explanation.ordinary) == {"body.1.unit": why}
    explanation = explain(nn.Sequential(nn.Conv2d(3, 8, 1), Asking()), SHAPE)
    why = "the model itself cannot be followed without values (aten._local_scalar_dense.default)"
    assert reasons(explanation.ordinary) == {"1.unit": why}


WRONG = "body.1 gives (1, 8, 1, 1), torch.float32, cpu, and not (1, 8, 32, 32), torch.float32"


def test_a_module_that_returns_something_else():
    model = native(put("body.1", lambda: nn.AdaptiveAvgPool2d(1)))
    with torch.no_grad():
        model(torch.rand(SHAPE))  # the first forward finds it out
    foretold = explain(native(put("body.1", lambda: nn.AdaptiveAvgPool2d(1))), SHAPE)
    assert check(model).planned == foretold.planned == ()
    assert reasons(foretold.ordinary) == {"": WRONG}
    assert reasons(check(model).ordinary) == {"": "a AdaptiveAvgPool2d gave a Tensor (1, 8, 1, 1)"}


class Changing(Foreign):
    """Counts, normalises, draws and keeps."""

    def __init__(self):
        super().__init__()
        self.calls, self.norm, self.drop = 0, nn.BatchNorm2d(8), nn.Dropout()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        self.calls += 1
        self.last = x
        self.mean.add_(1).mul_(2)
        self.mean = self.mean + x.mean((0, 2, 3))
        return super().forward(self.drop(self.norm(x)))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_nothing_changes():
    model = nn.Sequential(native(), nn.Conv2d(3, 8, 1), Changing(), mirnet_fast.DAU(8)).train()
    nn.utils.weight_norm(model[1])  # by a hook that sets the weight
    model[3].register_forward_hook(lambda *args: pytest.fail("called"))
    states = [(m, dict(vars(m)), dict(m._parameters), dict(m._buffers)) for m in model.modules()]
    values, kept = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    known = eligibility.snapshot_of(model[3])
    before = engine.engine_stats()
    explain(model, SHAPE)
    for module, *state in states:
        for was, now in zip(state, (vars(module), module._parameters, module._buffers), strict=True):
            assert [*was] == [*now] and all(now[name] is value for name, value in was.items())
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), kept)
    assert eligibility.snapshot_of(model[3]) is known
    after = engine.engine_stats()
    assert (after.runs, after.built) == (before.runs, before.built + 3)


def test_a_forward_has_the_plan(monkeypatch):
    model, x = native(), torch.rand(SHAPE)
    expected = copy.deepcopy(model)
    with torch.no_grad():
        expected = expected(x)
        explain(model, SHAPE)
        monkeypatch.setattr(plan, "Plan", lambda *args: pytest.fail("planned again"))
        assert torch.equal(model(x), expected)


def test_in_threads_and_modes():
    """While the network runs in others, and in the modes that it may be asked in."""
    model, x = Wrapper(native(patch_forward)), torch.rand(SHAPE)
    with torch.no_grad():
        expected, told = model(x), str(explain(model, SHAPE))
    wrong, start = [], threading.Barrier(4)

    def work(i):
        start.wait()
        for _ in range(3):
            with torch.no_grad():
                if str(explain(model, SHAPE)) != told if i % 2 else not torch.equal(model(x), expected):
                    wrong.append(i)

    with ThreadPoolExecutor(4) as pool:
        [*pool.map(work, range(4))]
    assert not wrong
    with torch.inference_mode():
        assert str(explain(model, SHAPE)) == told
    with torch.enable_grad():
        assert str(explain(model, SHAPE)) == told
        assert model(x).requires_grad


BAD = [
    (("model",), TypeError, r"model must be a torch.nn.Module; got str"),
    ((None, "a shape"), TypeError, r"shape must be \(N, C, H, W\), .*; got 'a shape'"),
    ((None, (1, 3, 32.0, 32)), TypeError, r"shape must be .*; got \(1, 3, 32.0, 32\)"),
    ((None, 7), TypeError, r"shape must be .*; got 7"),
    ((None, ()), ValueError, r"shape must have sizes of at least 1, .*; got \(\)"),
    ((None, (1, 3, 0, 32)), ValueError, r"shape must have sizes of at least 1, .*; got \(1, 3, 0, 32\)"),
    ((None, SHAPE, "float32"), TypeError, r"dtype must be a torch.dtype; got 'float32'"),
    ((None, SHAPE, torch.int32), ValueError, r"dtype must be floating-point.*; got torch.int32"),
    ((None, torch.rand(SHAPE), torch.float32), TypeError, r"dtype goes with a shape; a tensor has its own"),
    ((None, (1, 3, 30, 32)), ValueError, r"for shape \(1, 3, 30, 32\), .* H and W multiples of 4"),
    ((None, (1, 4, 32, 32)), ValueError, r"for shape \(1, 4, 32, 32\), .* to have 3 channels, but got 4"),
    ((None, (3, 32, 32)), ValueError, r"for shape \(3, 32, 32\), .* must be \(N, C, H, W\)"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments(arguments, error, message):
    model, *rest = arguments
    with pytest.raises(error, match=f"explain: {message}"):
        explain(model or native(), *(rest or [SHAPE]))
    assert not hasattr(plan.followed, "by")


def test_a_backend_that_cannot_run(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(mirnet_fast.backends, "_forced", "cuda")
    with pytest.raises(mirnet_fast.BackendError):
        explain(native(), SHAPE)
