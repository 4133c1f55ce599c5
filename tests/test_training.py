"""Training by a recipe: the mathematics, and going on as if never stopped."""

import csv
import importlib
import itertools
import math
import os
import subprocess
import sys
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch

import mirnet_fast
from mirnet_fast import MIRNet, reference
from mirnet_fast.checkpoints import read_state_dict
from mirnet_fast.training import Trainer, TrainingError
from mirnet_fast.training.loop import BEST, charbonnier, learning_rate
from mirnet_fast.training.record import LOG

from .cases import first_of
from .trainings import NOISE, ROOT, SMALL, files, recipe, until, weights


def test_charbonnier():
    output, target = torch.tensor([0.0, 3.0]), torch.tensor([0.0, 7.0])
    expected = (1e-3 + math.sqrt(16 + 1e-6)) / 2
    assert abs(float(charbonnier(output, target, 1e-3)) - expected) < 1e-7


def test_learning_rate():
    r = recipe(steps=100, warmup=10, learning_rate=2e-4, final_learning_rate=1e-6)
    rates = [learning_rate(r, step) for step in range(101)]
    assert rates[0] == pytest.approx(2e-5)
    assert max(rates) == rates[10] == pytest.approx(2e-4)
    assert rates[55] == pytest.approx((2e-4 + 1e-6) / 2)
    assert rates[100] == pytest.approx(1e-6)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


ABLATIONS = [
    {"skips": False, "dau": False, "skff": "sum"},
    {"skff": "concat"},
    {"skips": False},
    {"dau": False},
    {"skff": "sum"},
]


@pytest.mark.parametrize("ablation", first_of(ABLATIONS, 2))
def test_ablations_train_alike(tmp_path, ablation):
    r = recipe(ablation=ablation, steps=3)
    fast = Trainer(r, tmp_path / "fast", dtype=torch.float64)
    plain = Trainer(r, tmp_path / "reference", make=reference.MIRNet, dtype=torch.float64)
    plain.network.load_state_dict(fast.network.state_dict())
    x = torch.rand(1, 3, 20, 24, dtype=torch.float64)
    with torch.no_grad():
        expected = plain.network(x)
        torch.testing.assert_close(fast.network(x), expected, rtol=1e-9, atol=1e-9)
        published = reference.MIRNet(**SMALL).double()
        published.load_state_dict(fast.network.state_dict(), strict=False)
        assert not torch.allclose(published(x), expected, rtol=1e-3)
    assert np.allclose(fast.run(progress=False), plain.run(progress=False), rtol=1e-10, atol=0)


def test_fast_and_reference_train_alike(tmp_path):
    # 20 steps in float64.
    r = recipe(steps=20, batch=2, ema=0.9, clip=1.0)
    fast = Trainer(r, tmp_path / "fast", dtype=torch.float64)
    published = Trainer(r, tmp_path / "reference", make=reference.MIRNet, dtype=torch.float64)
    published.network.load_state_dict(fast.network.state_dict())
    published.average.module.load_state_dict(fast.network.state_dict())
    a, b = fast.run(progress=False), published.run(progress=False)
    assert np.allclose(a, b, rtol=1e-10, atol=0)
    for p, q in zip(weights(fast), weights(published), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-8)
    assert not torch.equal(weights(fast)[0], next(iter(fast.average.module.state_dict().values())))


class Nchw(reference.MIRNet):
    def forward(self, x):
        return super().forward(x.contiguous())


class ChannelsLast(reference.MIRNet):
    def forward(self, x):
        return super().forward(x.contiguous(memory_format=torch.channels_last))


def test_in_float32_the_curves_differ_as_two_runs_of_the_reference_do(tmp_path):
    r = recipe(steps=20, batch=2, patch=32, learning_rate=1e-3)
    curves = {}
    for make in (Nchw, ChannelsLast, MIRNet):
        trainer = Trainer(r, tmp_path / make.__name__, make=make)
        trainer.network.load_state_dict(reference_state())
        curves[make] = np.array(trainer.run(progress=False))
    assert curves[Nchw][-1] < 0.9 * curves[Nchw][0]
    noise, ours = (np.abs(curves[make] / curves[Nchw] - 1).max() for make in (ChannelsLast, MIRNet))
    assert ours <= 2 * noise + 4 * torch.finfo(torch.float32).eps


def reference_state():
    torch.manual_seed(5)
    return reference.MIRNet(**SMALL).state_dict()


@pytest.mark.parametrize("width", first_of([1, 2]))  # with one column some parameters are not used
def test_resumed_is_as_never_stopped(tmp_path, width):
    validation = {"source": {"kind": "clean", "photos": ["skimage:cat"], "degradations": [NOISE]}, "every": 3}
    r = recipe(mixup=0.5, ema=0.9, clip=0.5, validation=validation, network=SMALL | {"width": width})
    whole = Trainer(r, tmp_path / "whole")
    losses = whole.run(progress=False)

    until(Trainer(r, tmp_path / "parts"), 5)
    second = Trainer(r, tmp_path / "parts")
    assert second.step == 4
    assert second.run(progress=False) == losses[4:]
    for a, b in zip(weights(whole), weights(second), strict=True):
        assert torch.equal(a, b)
    logs, best = ([tmp_path / run / name for run in ("whole", "parts")] for name in (LOG, BEST))
    assert logs[0].read_bytes() == logs[1].read_bytes()
    torch.testing.assert_close(*map(read_state_dict, best), rtol=0, atol=0)
    rows = list(csv.DictReader((tmp_path / "parts" / "log.csv").open()))
    assert [row["psnr"] != "" for row in rows] == [False, False, True, False, False, True]


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"checkpoint_blocks": True}, {"workers": 2}])
def test_the_same_in_another_way(tmp_path, changes):
    expected = Trainer(recipe(), tmp_path / "a", dtype=torch.float64)
    actual = Trainer(recipe(**changes), tmp_path / "b", dtype=torch.float64)
    losses = expected.run(progress=False)
    assert np.allclose(actual.run(progress=False), losses, rtol=1e-10, atol=0)
    for a, b in zip(weights(actual), weights(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_blocks_are_recomputed(tmp_path):
    def calls(**changes):
        seen = []
        trainer = Trainer(recipe(steps=1, **changes), tmp_path / str(len(changes)))
        trainer.network.body[0].body[0].blocks[0][0].register_forward_hook(lambda *_: seen.append(1))
        trainer.run(progress=False)
        return len(seen)

    assert calls(checkpoint_blocks=True) == 2 * calls() > 0


def test_autocast_on_a_gpu_runs_the_kernels(tmp_path, monkeypatch):
    """A step in bfloat16 by Triton's kernels, forward and backward, in its interpreter."""
    pytest.importorskip("triton", reason="Triton is not installed")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("runs in Triton's interpreter; set TRITON_INTERPRET=1")
    ran, fused = Counter(), ("skff_select", "dau_attention", "residual_down_tail", "residual_up_tail")

    def spied(name, run, *args):
        first = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
        ran[name, first.dtype] += 1
        return run(*args)

    for op in fused:
        module = importlib.import_module(f"mirnet_fast.kernels.{op}")
        for name in (op, f"{op}_backward"):
            monkeypatch.setattr(module, name, partial(spied, name, getattr(module, name)))

    def gradient(folder, dtype=torch.float32, make=MIRNet, **changes):
        network = SMALL | {"height": 2, "width": 1}
        one_step = recipe(network=network, steps=1, batch=1, patch=8, **changes)
        trainer = Trainer(one_step, tmp_path / folder, dtype=dtype, make=make)
        trainer.run(progress=False)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainer.network.parameters()]
        return torch.cat([grad.flatten().double() for grad in grads])

    exact = gradient("exact", torch.float64, reference.MIRNet)
    plain = gradient("plain", make=reference.MIRNet, precision="bfloat16")
    assert not ran
    with mirnet_fast.use_backend("triton"):
        ours = gradient("ours", precision="bfloat16")
    assert {name for name, _ in ran} == {*fused, *(f"{op}_backward" for op in fused)}
    assert {dtype for _, dtype in ran} == {torch.bfloat16}
    error, usual = (((grad - exact).norm() / exact.norm()).item() for grad in (ours, plain))
    assert error <= 2 * usual < 0.1


@pytest.mark.parametrize("precision", first_of(["bfloat16", "float16"]))
def test_autocast(tmp_path, precision):
    losses = Trainer(recipe(precision=precision), tmp_path / "low").run(progress=False)
    expected = Trainer(recipe(), tmp_path / "full").run(progress=False)
    assert np.allclose(losses, expected, rtol=0.05)


def test_another_recipe_in_the_folder(tmp_path):
    Trainer(recipe(), tmp_path).run(progress=False)
    with pytest.raises(TrainingError, match=r"last\.pt is of another recipe"):
        Trainer(recipe(batch=4), tmp_path)


def test_a_loss_that_is_not_finite_names_the_photos(tmp_path):
    trainer = Trainer(recipe(save_every=1), tmp_path)
    after = trainer._after

    def poison(loss):
        after(loss)
        if trainer.step == 2:
            with torch.no_grad():
                trainer.network.conv_out.weight.fill_(float("nan"))

    trainer._after = poison
    with pytest.raises(TrainingError, match=r"step 2: the loss is nan; .*(astronaut|coffee|chelsea)"):
        trainer.run(progress=False)
    kept = Trainer(recipe(save_every=1), tmp_path)
    assert kept.step == 2
    assert all(w.isfinite().all() for w in weights(kept))


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    # A limit on the size of files stands for the disk's.
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from mirnet_fast.training import Trainer; from tests.trainings import recipe;"
        f"folder = {str(tmp_path)!r};"
        "Trainer(recipe(steps=2, save_every=2), folder).run(progress=False);"
        "trainer = Trainer(recipe(steps=2, save_every=2), folder); trainer.step = 1;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
        "trainer.save()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "last.pt cannot be written" in done.stderr and "the one before is still there" in done.stderr
    assert files(tmp_path) == ["last.pt", "log.csv"]
    assert Trainer(recipe(steps=2, save_every=2), tmp_path).step == 2
