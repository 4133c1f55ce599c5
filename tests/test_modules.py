"""The drop-in modules against the reference: names, values, gradients, and how they are used."""

import copy
import io
import json
import pickle
import threading

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

import mirnet_fast
from mirnet_fast import backends, reference
from mirnet_fast.engine import plan_of

from . import emulation
from .cases import each, first_of, pairwise
from .test_reference import CASES, GOLDEN, check_case, sharing


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "modules.npz")


def twins(**shape):
    """A reference network and a fast one with the same weights, float64."""
    torch.manual_seed(0)
    shape = {"n_feat": 8, "n_RRG": 1, "n_MSRB": 2} | shape
    published, fast = reference.MIRNet(**shape).double(), mirnet_fast.MIRNet(**shape).double()
    fast.load_state_dict(published.state_dict(), strict=True)
    return published, fast


@pytest.mark.parametrize("name", CASES)
def test_golden(golden, name):
    check_case(golden, name, CASES[name](mirnet_fast).double())


def test_published_names_and_sharing():
    published = json.loads((GOLDEN / "state_dict_default.json").read_text())
    network = mirnet_fast.MIRNet()
    assert {k: list(v.shape) for k, v in network.state_dict().items()} == published["entries"]
    assert sharing(network) == sorted(sorted(group) for group in published["shared"])
    reference.MIRNet().load_state_dict(network.state_dict(), strict=True)


@each(shape=[(3, 2), (3, 3), (2, 2), (4, 2), (2, 1), (1, 2)], bias=[False, True])
def test_network_equals_the_reference(shape, bias):
    height, width = shape
    published, fast = twins(height=height, width=width, bias=bias)
    x = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    expected, actual = published(x), fast(x)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), expected, rtol=1e-10, atol=1e-12)
    expected.square().sum().backward()
    actual.square().sum().backward()
    for (name, p), q in zip(published.named_parameters(), fast.parameters(), strict=True):
        if p.grad is None:
            assert q.grad is None or not q.grad.any(), name
        else:
            assert (q.grad - p.grad).norm() <= 1e-9 * p.grad.norm().clamp_min(1e-6), name


@pytest.mark.skipif("triton" in backends._UNAVAILABLE, reason="neither a GPU nor Triton's interpreter here")
def check_network(chosen, device):
    published, fast = twins(n_MSRB=1)
    published, fast = published.to(device), fast.to(device).float()
    x = torch.rand(1, 3, 16, 8, dtype=torch.float64, device=device)
    expected = published(x)
    expected.square().sum().backward()
    with chosen:
        actual = fast(x.float())
        actual.square().sum().backward()
    assert (actual - expected).norm() <= 1e-6 * expected.norm()
    for (name, p), q in zip(published.named_parameters(), fast.parameters(), strict=True):
        if p.grad is not None:
            assert (q.grad - p.grad).norm() <= 1e-5 * p.grad.norm().clamp_min(1e-6), name


ON_GPU = torch.cuda.is_available()


@pytest.mark.skipif("triton" in backends._UNAVAILABLE, reason=backends._UNAVAILABLE.get("triton", ""))
@pytest.mark.untraced
def test_network_on_triton():
    check_network(mirnet_fast.use_backend("triton"), "cuda" if ON_GPU else "cpu")


@pytest.mark.skipif(ON_GPU or emulation.missing() is not None, reason=emulation.missing() or "a GPU is here")
def test_network_on_the_emulated_gpu():
    check_network(emulation.emulated_gpu(), "cpu")


@pytest.mark.skipif(not ON_GPU or "cuda" in backends._UNAVAILABLE, reason="no GPU, or no CUDA kernels")
def test_network_on_cuda():
    check_network(mirnet_fast.use_backend("cuda"), "cuda")


@pairwise(rows=[1, 2, 3, 7], batch=[1, 2], bias=[False, True])
def test_bands_of_rows_give_the_same(monkeypatch, rows, batch, bias):
    published, fast = twins(bias=bias)
    x = torch.rand(batch, 3, 24, 16, dtype=torch.float64)
    expected = published(x)
    row = fast.conv_in(x)[:, :, :1].nbytes
    monkeypatch.setattr("mirnet_fast.engine.schedule.BAND_BYTES", rows * row)
    with torch.no_grad(), mirnet_fast.use_backend("cpu"):
        assert len({task.row for task in plan_of(fast, x).tasks}) > 3
        actual = fast(x)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_output_has_the_format_of_the_input(layout):
    _, fast = twins()
    x = torch.rand(2, 3, 8, 12, dtype=torch.float64).contiguous(memory_format=layout)
    assert fast(x).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    published, fast = twins()
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    expected = published(x)
    published, fast = published.to(dtype), fast.to(dtype)
    fast_error = (fast(x.to(dtype)).double() - expected).norm()
    error = (published(x.to(dtype)).double() - expected).norm()
    assert fast_error <= 2 * error + 2 * torch.finfo(dtype).eps * expected.norm()


@pytest.mark.parametrize("band", [2**9, 2**24])
def test_a_dtype_that_the_cpu_only_stores(monkeypatch, band):
    published, fast = twins()
    x = torch.rand(1, 3, 24, 16, dtype=torch.float64)
    expected = published(x)
    fast, x = fast.bfloat16(), x.bfloat16()
    seen = set()
    convolution = torch.nn.Conv2d._conv_forward

    def spy(conv, x, *args):
        seen.add(x.dtype)
        return convolution(conv, x, *args)

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", spy)
    monkeypatch.setattr("mirnet_fast.engine.schedule.BAND_BYTES", band)
    monkeypatch.setattr(backends, "cpu_computes", lambda dtype: dtype != torch.bfloat16)
    fast(x).sum().backward()
    assert all(p.grad is None or p.grad.dtype == torch.bfloat16 for p in fast.parameters())
    with torch.no_grad():
        actual = fast(x)
    assert seen == {torch.float32}
    assert actual.dtype == torch.bfloat16
    assert (actual - expected).norm() < 0.02 * expected.norm()


def test_autocast_keeps_the_dtype_of_the_reference():
    published, fast = twins()
    published, fast = published.float(), fast.float()
    x = torch.rand(1, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, actual = published(x), fast(x)
    assert actual.dtype == expected.dtype
    assert (actual.double() - expected.double()).norm() < 2e-2 * expected.double().norm()


def test_a_hook_sees_what_its_module_returned():
    _, fast = twins()
    x = torch.rand(1, 3, 24, 16, dtype=torch.float64)
    block = fast.body[0].body[0]
    for conv in (block.blocks[0][0].body[0], block.up["16_2"].body[0].top[0]):
        kept = []
        with conv.register_forward_hook(
            lambda _, inputs, output, kept=kept: kept.append((inputs[0], output))
        ):
            with torch.no_grad():
                fast(x)
            for given, returned in kept:
                assert torch.equal(returned, torch.nn.Conv2d.forward(conv, given))
        assert kept


def kept_by(register):
    """The tensors that a hook gets, each with its values at that time."""
    kept = []

    def hook(_, inputs, output):
        for value in tree_leaves((inputs, output)):
            kept.append((value, value.clone()))

    return kept, register(hook)


@pytest.mark.untraced
def test_what_a_hook_keeps_is_not_overwritten():
    _, fast = twins(n_MSRB=1)
    x = torch.rand(1, 3, 24, 16, dtype=torch.float64)
    registers = [module.register_forward_hook for module in fast.modules()]
    registers.append(torch.nn.modules.module.register_module_forward_hook)
    seen = 0
    for register in registers:
        kept, handle = kept_by(register)
        with handle, torch.no_grad():
            fast(x)
        assert all(torch.equal(value, then) for value, then in kept)
        seen += bool(kept)
    assert seen > 50  # the parts of fused ops are not called


def test_train_and_eval_compute_the_same():
    _, fast = twins()
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(fast.train()(x), fast.eval()(x))


def test_copies():
    _, fast = twins()
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    for copied in (
        copy.deepcopy(fast),
        pickle.loads(pickle.dumps(fast)),
        torch.load(file, weights_only=False),
    ):
        assert torch.equal(copied(x), fast(x))
        assert sharing(copied) == sharing(fast)
        assert not {id(p) for p in copied.parameters()} & {id(p) for p in fast.parameters()}


def test_functional_call():
    _, fast = twins()
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    doubled = {name: 2 * value for name, value in fast.named_parameters()}
    expected = copy.deepcopy(fast)
    with torch.no_grad():
        for p in expected.parameters():
            p.mul_(2)
    assert torch.equal(torch.func.functional_call(fast, doubled, (x,)), expected(x))


@pytest.mark.untraced
def test_compile():
    torch.compiler.reset()
    _, fast = twins(n_MSRB=1, height=2, width=1)
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), fast(x))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), fast(x))


def test_export():
    _, fast = twins(n_MSRB=1)
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        program = torch.export.export(fast.eval(), (x,))
    torch.testing.assert_close(program.module()(x), fast(x))


def test_two_networks_in_several_threads():
    networks = [twins()[1].eval(), twins(n_feat=16)[1].eval()]
    x = torch.rand(1, 3, 24, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = [network(x) for network in networks]
    results = []

    def work(i):
        with torch.no_grad():
            results.append((i, networks[i](x)))

    workers = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4
    assert all(torch.equal(value, expected[i]) for i, value in results)


def test_a_size_that_does_not_divide():
    _, fast = twins()
    with pytest.raises(ValueError, match=r"H and W multiples of 4; got \(1, 3, 10, 8\)"):
        fast(torch.rand(1, 3, 10, 8, dtype=torch.float64))


def test_another_filter_is_refused_and_not_loaded():
    layer = mirnet_fast.Downsample(channels=4)
    before = layer.filt.clone()
    with pytest.raises(RuntimeError, match="filt is not the binomial filter of 3 taps"):
        layer.load_state_dict({"filt": torch.full((4, 1, 3, 3), 1 / 9)})
    assert torch.equal(layer.filt, before)
    layer.load_state_dict(reference.Downsample(channels=4).state_dict())


def test_wrong_number_of_channels():
    with pytest.raises(ValueError, match="x must have 4 channels; got 3"):
        mirnet_fast.Downsample(channels=4)(torch.zeros(1, 3, 8, 8))


def test_the_shared_downsampling_runs_once(monkeypatch):
    published, fast = twins(n_MSRB=1)
    counts = {}
    for network, kind, method in ((published, reference, "forward"), (fast, mirnet_fast, "_fused")):
        plain = getattr(kind.ResidualDownSample, method)

        def counted(self, x, name=kind.__name__, plain=plain):
            counts[name] = counts.get(name, 0) + 1
            return plain(self, x)

        monkeypatch.setattr(kind.ResidualDownSample, method, counted)
        network(torch.rand(1, 3, 8, 8, dtype=torch.float64))
    assert counts == {"mirnet_fast.reference": 6, "mirnet_fast": 4}


def test_too_few_channels_for_the_channel_attention():
    """With fewer than 8 it has no channel inside."""
    x = torch.rand(1, 4, 8, 8)
    for cls in (reference.DAU, mirnet_fast.DAU):
        unit = cls(4)
        for mode in (torch.enable_grad, torch.no_grad):
            with mode(), pytest.raises((RuntimeError, ValueError)):
                unit(x)
    with pytest.raises(ValueError, match="dau_attention: squeeze_weight must have an output"):
        unit(x)


@pytest.mark.parametrize("size", first_of([1, 5, 3, 7], 2))
def test_kernel_sizes(size):
    """Without gradients a residual and statistics go with a convolution; not every one takes them."""
    torch.manual_seed(0)
    shape = {"n_feat": 16, "n_RRG": 1, "n_MSRB": 1, "height": 2, "kernel_size": size}
    pairs = [
        (mirnet_fast.MIRNet(**shape), reference.MIRNet(**shape), torch.rand(1, 3, 24, 32)),
        (
            mirnet_fast.DAU(16, kernel_size=size),
            reference.DAU(16, kernel_size=size),
            torch.rand(2, 16, 20, 24),
        ),
    ]
    for fast, slow, x in pairs:
        slow.load_state_dict(fast.state_dict())
        accelerated = copy.deepcopy(slow)
        assert mirnet_fast.accelerate(accelerated).replaced
        slow.double()
        expected = slow(x.double()) - x.double()
        for network in (fast, accelerated):
            for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
                with mode():
                    for _ in range(3):
                        result = network(x).double() - x.double()
                assert (result - expected).norm() <= 1e-5 * expected.norm()
