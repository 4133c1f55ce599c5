"""Hooks, revert() and what else an accelerated model goes through."""

import copy
import io

import pytest
import torch
from torch import nn

import mirnet_fast
from mirnet_fast.modules import resampling

from .cases import first_of
from .strangers import CLOSE, arguments, is_ours, lookalike, network, picture, reasons, relative

pytestmark = pytest.mark.usefixtures("one_thread")

SKFF, DAU, BLUR = lookalike.SKFF, lookalike.DAU, lookalike.Downsample
DOWN, UP = lookalike.ResidualDownSample, lookalike.ResidualUpSample

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
    assert mirnet_fast.accelerate(model).skipped == []
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
    assert mirnet_fast.accelerate(module).skipped == []
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
    assert len(names) == 36 and "body.0.body.0" in names
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
    assert (report.replaced, report.skipped) == ([], [])
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
    assert (report.replaced, report.skipped) == ([], [])
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
    assert report.skipped == [] and is_ours(model.body[0].body[0])


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
    assert mirnet_fast.accelerate(model).skipped == []
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
        assert len(mirnet_fast.revert(twin)) == 36
        assert type(twin.body[0].body[0]) is lookalike.MSRB and is_ours(model.body[0].body[0])
        assert relative(twin(picture()), expected) < CLOSE


@pytest.mark.untraced
@pytest.mark.parametrize("by", first_of(["its method", "torch.compile"]))
def test_compiled_before(by):
    compiled = network()
    if by == "torch.compile":
        compiled = torch.compile(compiled, backend="eager")
    else:
        compiled.compile(backend="eager")
    expected = compiled(picture())
    assert len(mirnet_fast.accelerate(compiled).replaced) == 36
    calls, original = [], resampling.ResidualDownSample.forward

    def forward(self, x):
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
    assert report.skipped == [] and report.replaced[0].name == "module"
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
    assert mirnet_fast.accelerate(model).skipped == []
    for _ in range(2):
        for m, optimiser in zip((twin, model), optimisers, strict=True):
            optimiser.zero_grad()
            m(picture()).square().mean().backward()
            optimiser.step()
    for a, b in zip(inner.parameters(), twin.parameters(), strict=True):
        assert relative(a, b) < CLOSE
