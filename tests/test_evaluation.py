"""PSNR, SSIM and LPIPS against their definitions; the command that reports them."""

import csv
import json
import os
import re
import resource
import sys
import types

import cv2
import numpy as np
import pytest
import scipy.ndimage
import skimage.data
import torch
from click.testing import CliRunner

from mirnet_fast import evaluation, inference, reference
from mirnet_fast.checkpoints import save_checkpoint
from mirnet_fast.cli import main
from mirnet_fast.images import read_photo
from mirnet_fast.training import Recipe, Trainer

CAT = skimage.data.chelsea()[:90, :120].astype(np.float64) / 255


def noisy(image, sigma=0.1, seed=0):
    return np.clip(image + sigma * np.random.default_rng(seed).standard_normal(image.shape), 0, 1)


def test_psnr_by_definition():
    other = noisy(CAT)
    assert evaluation.psnr(other, CAT) == pytest.approx(10 * np.log10(1 / np.mean((other - CAT) ** 2)))
    assert evaluation.psnr(CAT, CAT) == float("inf")
    assert evaluation.psnr(CAT * 0, CAT * 0 + 0.1) == pytest.approx(20)


def test_ssim_by_definition():
    # Equation 13 of Wang et al. (2004), with their window of 11 x 11 and its valid places only.
    x, y = evaluation.luma(CAT), evaluation.luma(noisy(CAT))

    def blurred(image):
        return scipy.ndimage.gaussian_filter(image, 1.5, truncate=3.5)

    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    index /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    assert evaluation.ssim(y, x) == pytest.approx(index[5:-5, 5:-5].mean(), abs=1e-6)
    by_channel = [evaluation.ssim(noisy(CAT)[..., i], CAT[..., i]) for i in range(3)]
    assert evaluation.ssim(noisy(CAT), CAT) == pytest.approx(np.mean(by_channel))
    assert evaluation.ssim(x, x) == pytest.approx(1)
    with pytest.raises(ValueError, match="needs 11 x 11 pixels; got 10 x 90"):
        evaluation.ssim(x[:, :10], x[:, :10])


def test_luma_is_that_of_the_standard():
    white, black, red = np.ones((1, 1, 3)), np.zeros((1, 1, 3)), np.array([[[1.0, 0, 0]]])
    expected = (235 / 255, 16 / 255, (16 + 65.481) / 255)
    for image, value in zip((white, black, red), expected, strict=True):
        assert evaluation.luma(image)[0, 0] == pytest.approx(value, abs=1e-5)


def test_images_are_judged_as_files_hold_them():
    almost = CAT + 0.3 / 255
    assert evaluation.score("x", almost, CAT).psnr == float("inf")
    assert evaluation.score("x", CAT + 2, CAT * 0 + 1).psnr == float("inf")


def test_border_and_channels():
    other = CAT.copy()
    other[:4] = 0
    assert evaluation.score("x", other, CAT).psnr < 40
    assert evaluation.score("x", other, CAT, border=4).psnr == float("inf")
    tinted = np.clip(evaluation.as_file(CAT) + np.array([40, 0, 0]) / 255, 0, 1)
    assert evaluation.score("x", tinted, CAT, "y").psnr > evaluation.score("x", tinted, CAT).psnr
    with pytest.raises(ValueError, match="nothing is left inside a border of 50 pixels"):
        evaluation.score("x", CAT, CAT, border=50)
    with pytest.raises(ValueError, match="restored is 119 x 90 pixels, target 120 x 90"):
        evaluation.score("x", CAT[:, :-1], CAT)


def test_lpips_gets_images_from_minus_one_to_one(monkeypatch):
    class Stub(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            assert net == "alex"

        def forward(self, a, b):
            assert a.shape == b.shape == (1, 3, 90, 120)
            assert a.min() >= -1 and a.max() <= 1 and b.min() < -0.5
            return (a - b).abs().mean()

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=Stub))
    evaluation._lpips.cache_clear()
    try:
        assert evaluation.score("x", CAT, CAT, with_lpips=True).lpips == 0
        assert evaluation.score("x", noisy(CAT), CAT, with_lpips=True).lpips > 0
    finally:
        evaluation._lpips.cache_clear()


def test_ensemble_of_orientations():
    torch.manual_seed(0)
    model = reference.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1).double()
    image = torch.rand(1, 3, 12, 17, dtype=torch.float64)
    once = inference.restore_by_ensemble(model, image)
    assert once.shape == image.shape
    # Of a turned image it is the turned result.
    for turn in (lambda t: t.rot90(1, (2, 3)), lambda t: t.flip(2)):
        torch.testing.assert_close(inference.restore_by_ensemble(model, turn(image)), turn(once))
    assert not torch.allclose(once, inference.restore(model, image))


@pytest.fixture
def folders(tmp_path):
    for name, make in (("clean", lambda i: CAT), ("noisy", lambda i: noisy(CAT, seed=i))):
        (tmp_path / name).mkdir()
        for i in range(2):
            pixels = np.round(255 * make(i)).astype(np.uint8)[:, :, ::-1]
            cv2.imwrite(str(tmp_path / name / f"{i}.png"), pixels)
    return tmp_path


def test_training_validates_as_evaluate_does(folders):
    pairs = {"kind": "pairs", "input": folders / "noisy", "target": folders / "clean"}
    network = {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1}
    recipe = Recipe(train=pairs, validation={"source": pairs}, network=network, patch=64)
    trainer = Trainer(recipe, folders / "run")
    torch.nn.init.zeros_(trainer.judge.conv_out.weight)  # gives back its input
    printed = re.search(r"PSNR (\S+) dB, SSIM (\S+)", run(folders / "noisy", folders / "clean").output)
    assert trainer.validate() == pytest.approx((float(printed[1]), float(printed[2])), abs=0.006, rel=0)
    scores = [
        evaluation.score("", read_photo(folders / f"noisy/{i}.png").rgb[0].permute(1, 2, 0).numpy(), CAT)
        for i in range(2)
    ]
    mean = evaluation.mean(scores)
    assert trainer.validate() == pytest.approx((mean.psnr, mean.ssim), rel=1e-12)
    trainer.validation._kept = {key: image[:9] for key, image in trainer.validation._kept.items()}
    with pytest.raises(ValueError, match=r"0\.png: ssim: needs 11 x 11 pixels; got 120 x 9"):
        trainer.validate()


@pytest.mark.parametrize("kind", ["disk", "link"])
def test_old_scores_stay_if_the_new_ones_cannot_be_written(tmp_path, kind):
    table = tmp_path / "scores.csv"
    scores = [evaluation.Score("a" * 100, 30.0, 0.9)] * 100
    evaluation.write_csv(table, scores[:1])
    before = table.read_text()
    if kind == "link":
        (tmp_path / "link.csv").symlink_to(table)
        evaluation.write_csv(tmp_path / "link.csv", scores)
        assert len((tmp_path / "link.csv").read_text().splitlines()) == 102
    else:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limit[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                evaluation.write_csv(table, scores)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert os.listdir(tmp_path) == ["scores.csv"]
    assert table.read_text() == before


def run(*arguments):
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments), "--device", "cpu"])


def test_command(folders):
    model = reference.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1)
    torch.nn.init.zeros_(model.conv_out.weight)  # gives back its input
    save_checkpoint(model, folders / "same.pth")
    table = folders / "scores.csv"
    result = run(folders / "noisy", folders / "clean", "--csv", table)
    assert result.exit_code == 0, result.output
    scores = [evaluation.score(str(i), noisy(CAT, seed=i), CAT) for i in range(2)]
    expected = f"PSNR {evaluation.mean(scores).psnr:.2f} dB, SSIM {evaluation.mean(scores).ssim:.4f}"
    assert expected in result.output and "2 photos, rgb, border 0" in result.output
    rows = list(csv.DictReader(table.open()))
    assert [row["name"].split("/")[-1] for row in rows] == ["0.png", "1.png", "mean"]
    assert float(rows[0]["psnr"]) == pytest.approx(scores[0].psnr)
    result = run(folders / "noisy", folders / "clean", "--weights", folders / "same.pth", "--ensemble")
    assert expected in result.output and "ensemble of 8" in result.output
    result = run(folders / "noisy", folders / "clean", "--benchmark", "realsr", "--border", 4)
    assert "2 photos, y, border 4" in result.output


def test_command_in_json(folders):
    result = run(folders / "noisy", folders / "clean", "--json", "--border", 2)
    told = json.loads(result.stdout)
    assert (told["channels"], told["border"], told["of"]) == ("rgb", 2, 2)
    means = [sum(photo[key] for photo in told["photos"]) / 2 for key in ("psnr", "ssim")]
    assert [told["mean"]["psnr"], told["mean"]["ssim"]] == pytest.approx(means)
    (folders / "noisy" / "0.png").write_bytes(b"damaged")
    result = run(folders / "clean", folders / "clean", "--json")
    told = json.loads(result.stdout)
    assert told["mean"]["psnr"] is None and told["mean"]["ssim"] == pytest.approx(
        1
    )  # infinite, which JSON has not
    result = run(folders / "noisy", folders / "clean", "--json")
    assert result.exit_code == 1 and "0.png is not an image" in result.stderr
    assert [photo["name"][-5:] for photo in json.loads(result.stdout)["photos"]] == ["1.png"]


def test_command_says_what_does_not_fit(folders):
    result = run(folders / "noisy", folders / "clean", "--benchmark", "realsr")
    assert result.exit_code == 2 and "needs --border" in result.output
    (folders / "noisy" / "0.png").unlink()
    result = run(folders / "noisy", folders / "clean")
    assert result.exit_code == 1 and "only in one of them: 0.png" in result.output
    result = run(folders / "clean", folders / "clean", "--weights", folders / "none.pth")
    assert result.exit_code == 1 and "none.pth" in result.output


@pytest.mark.parametrize("option", [["--key", "params_ema"], ["--n-feat", 8], ["--width", 2], ["--ensemble"]])
def test_command_without_weights_refuses_what_is_of_the_network(folders, option):
    result = run(folders / "noisy", folders / "clean", *option)
    assert result.exit_code == 2 and f"{option[0]} needs --weights" in result.output
    assert "PSNR" not in result.output


def test_command_makes_the_folder_of_its_table_before_it_runs(folders, monkeypatch):
    table = folders / "new" / "folder" / "scores.csv"
    result = run(folders / "noisy", folders / "clean", "--csv", table)
    assert result.exit_code == 0 and len(table.read_text().splitlines()) == 4
    monkeypatch.setattr(evaluation, "score", lambda *args: pytest.fail("judged a photo"))
    result = run(folders / "noisy", folders / "clean", "--csv", folders / "noisy" / "0.png" / "scores.csv")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)


def test_command_prints_the_result_even_if_the_table_cannot_be_written(folders, monkeypatch):
    def full(path, scores):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluation, "write_csv", full)
    result = run(folders / "noisy", folders / "clean", "--csv", folders / "scores.csv")
    assert result.exit_code == 1 and "PSNR " in result.output
    assert "scores.csv was not written: No space left on device" in result.output


def test_command_judges_the_other_photos(folders):
    (folders / "noisy" / "0.png").write_bytes(b"damaged")
    result = run(folders / "noisy", folders / "clean", "--csv", folders / "scores.csv")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert "0.png is not an image" in result.output and "1 of 2 photos, rgb" in result.output
    assert [row["name"][-5:] for row in csv.DictReader((folders / "scores.csv").open())] == ["1.png", "mean"]


def test_command_prints_what_it_had_before_ctrl_c(folders, monkeypatch):
    score = evaluation.score

    def interrupted(name, *args):
        if name.endswith("1.png"):
            raise KeyboardInterrupt
        return score(name, *args)

    monkeypatch.setattr(evaluation, "score", interrupted)
    result = run(folders / "noisy", folders / "clean")
    assert result.exit_code == 130 and "1 of 2 photos" in result.output and "PSNR " in result.output
