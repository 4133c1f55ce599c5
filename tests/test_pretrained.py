"""The denoiser that comes with the package: what is said about it is true."""

import contextlib
import csv
import shutil

import numpy as np
import pytest
import skimage.data
import torch

from mirnet_fast import MIRNet, demonstration, evaluation, load_pretrained, pretrained, reference, restore
from mirnet_fast.pretrained import weights_of
from mirnet_fast.training import read_recipe
from mirnet_fast.training.degradations import Jpeg

from .cases import first_of
from .emulated_units import UNITS, emulated, missing


@pytest.fixture(scope="module")
def network():
    return load_pretrained()


@pytest.fixture(scope="module")
def recipe():
    return read_recipe(weights_of().with_suffix(".yaml"))


def test_is_of_its_recipe(network, recipe):
    made = reference.MIRNet(**recipe.network.model_dump())
    assert [p.shape for p in network.parameters()] == [p.shape for p in made.parameters()]
    assert not network.training
    assert weights_of().stat().st_size < 4e6


def test_never_saw_the_photo_of_the_demo(recipe):
    assert "skimage:astronaut" not in recipe.validation.source.photos
    assert recipe.train.folder.parts[-2:] == ("photos", "train") and recipe.train.photos is None


def test_log_is_of_the_whole_run(recipe):
    with weights_of().with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert int(rows[-1]["step"]) == recipe.steps
    best = max(float(row["psnr"]) for row in rows if row["psnr"])
    assert f"{best:.2f} dB" in weights_of().with_suffix(".md").read_text()


@pytest.mark.parametrize("in_file", [True, False])
def test_removes_noise_better_than_non_local_means(in_file):
    clean = skimage.data.astronaut()[100:356, 100:356].astype(np.float32) / 255
    noisy = demonstration.add_noise(clean, 25, seed=3, in_file=in_file)
    if in_file:
        assert (
            np.array_equal(noisy, np.float32(np.round(255 * noisy) / 255))
            and 0 <= noisy.min() < 1 == noisy.max()
        )
    else:
        assert np.std(noisy - clean) * 255 == pytest.approx(25, rel=0.01)
    results = demonstration.compare(clean, noisy, 25)
    psnr = {name: result.score.psnr for name, result in results.items()}
    assert psnr["mirnet_fast"] > psnr["noisy"] + 6
    assert psnr["mirnet_fast"] > psnr["non-local means"]
    assert psnr["noisy"] == pytest.approx(evaluation.psnr(evaluation.as_file(noisy), clean))


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        ("white", {10: 35, 25: 31, 50: 27}),
        ("JPEG", {10: 33.5, 25: 30}),
        ("camera", {12800: 28}),
    ],
)
def test_other_noise(network, kind, least):
    """PSNR in dB on a part of a photo that it never saw."""
    clean = skimage.data.astronaut()[64:192, 160:288].astype(np.float32) / 255
    for strength, expected in least.items():
        target = clean
        if kind == "camera":
            noisy, target = demonstration.as_a_camera(clean, strength, seed=3)
        else:
            noisy = demonstration.add_noise(clean, strength, seed=3)
        if kind == "JPEG":
            quality = Jpeg(kind="jpeg", quality=(85, 85))
            noisy = quality.apply(noisy, np.random.default_rng(0))
        restored = demonstration.methods()["mirnet_fast"](noisy, strength)
        assert evaluation.psnr(restored, target) > expected


def test_reference_gives_the_same(network, recipe):
    published = reference.MIRNet(**recipe.network.model_dump()).eval()
    published.load_state_dict(network.state_dict())
    clean = torch.from_numpy(skimage.data.astronaut()[:128, :128]).permute(2, 0, 1)[None].double() / 255
    noisy = clean + 25 / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, exact = network(noisy.float()).double(), published.double()(noisy)
    assert (ours - exact).norm() <= 3e-6 * (exact - noisy).norm()
    ratio = (ours - clean).square().mean() / (exact - clean).square().mean()
    assert abs(10 * ratio.log10()) < 0.001  # dB


@pytest.mark.parametrize("unit", first_of([None, *UNITS]))
def test_bfloat16_cannot_be_seen(network, unit):
    """Nor in whatever unit the products are made."""
    if unit is not None and missing():
        pytest.skip(missing())
    clean = skimage.data.astronaut()[64:128, 180:260].astype(np.float32) / 255  # part of a face
    noisy = demonstration.add_noise(clean, 25, seed=3)

    def results(precision):
        images = (torch.from_numpy(image).permute(2, 0, 1)[None] for image in (clean, noisy))
        restored = [restore(network, image, precision=precision) for image in images]
        return [np.asarray(image[0].permute(1, 2, 0)) for image in restored]

    of_clean, of_noisy = results("fp32")
    with emulated(unit) if unit else contextlib.nullcontext():
        low_of_clean, low_of_noisy = results("bf16")
    assert not np.array_equal(low_of_noisy, of_noisy)
    assert abs(evaluation.psnr(low_of_noisy, clean) - evaluation.psnr(of_noisy, clean)) < 0.02
    assert np.abs(low_of_clean - of_clean).max() <= 2 / 255


def test_unknown_name():
    with pytest.raises(ValueError, match=r"task must be one of denoise.*; got 'denoise_large'"):
        load_pretrained("denoise_large")


def test_tasks():
    assert set(pretrained.tasks()) <= set(pretrained.TASKS) and pretrained.DEFAULT in pretrained.tasks()
    assert weights_of() == weights_of("denoise")
    states = [load_pretrained(*task).state_dict() for task in ([], ["denoise"])]
    assert all(torch.equal(value, states[0][name]) for name, value in states[1].items())


@pytest.mark.parametrize("task", sorted(set(pretrained.TASKS) - set(pretrained.tasks())))
def test_a_task_is_there_once_its_network_is(tmp_path, monkeypatch, task):
    with pytest.raises(ValueError, match=f"task must be one of denoise.*; got '{task}'"):
        load_pretrained(task)
    for name in ("denoise", task):
        shutil.copy(weights_of("denoise"), tmp_path / f"{name}.safetensors")
    monkeypatch.setattr(pretrained, "__file__", str(tmp_path / "__init__.py"))
    assert list(pretrained.tasks()) == ["denoise", task]
    assert weights_of(task) == tmp_path / f"{task}.safetensors"
    assert isinstance(load_pretrained(task), MIRNet)
