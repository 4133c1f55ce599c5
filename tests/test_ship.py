"""A trained network becomes one that comes with the package: weights, log, card and pictures are its own."""

import csv
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import yaml

from mirnet_fast import MIRNet
from mirnet_fast.checkpoints import read_state_dict, save_checkpoint

ROOT = Path(__file__).parents[1]
CAT = np.float32(skimage.data.chelsea()[60:156, 120:228] / 255)


@pytest.fixture
def ship(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benches")
    return __import__("ship")


@pytest.fixture
def run(tmp_path):
    """The folder of a training that has begun."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_checkpoint(MIRNet(n_feat=8, n_RRG=1, n_MSRB=1), folder / "best.safetensors")
    rows = [(step, 0.5, 1e-3, "", "") for step in range(1, 121)]
    for step, psnr in ((60, 30.126), (77, 31.5), (120, 31.25)):
        rows[step - 1] = (step, 0.25, 1e-3, psnr, 0.8765)
    with (folder / "log.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("step", "loss", "learning_rate", "psnr", "ssim"), *rows])
    return folder


def test_everything_is_there(ship, run, monkeypatch, tmp_path, capsys):
    package, shown = tmp_path / "package", tmp_path / "docs" / "pictures"
    package.mkdir()
    photos = {"cat": CAT[:33, :40], "fur": CAT[40:72, 50:85]}
    wanted = {"face": ("clean", "cat"), "worst": ("clean", ship.worst)}
    monkeypatch.setitem(ship.SHOWN, "denoise", wanted)
    report = ship.ship(run, "denoise", photos, package, shown, ["clean"])
    weights, log, card = (package / f"denoise.{suffix}" for suffix in ("safetensors", "csv", "md"))
    states = [read_state_dict(path) for path in (weights, run / "best.safetensors")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(half, states[1][name].half()) for name, half in states[0].items())
    assert [row["step"] for row in csv.DictReader(log.open())] == ["50", "60", "77", "100", "120"]
    assert {path.name for path in shown.iterdir()} == {"denoise_face.webp", "denoise_worst.webp"}
    text = card.read_text()
    assert "31.50 dB, SSIM 0.876 at step 77" in text and "120 steps" in text
    count = sum(p.numel() for p in MIRNet(n_feat=8, n_RRG=1, n_MSRB=1).parameters())
    assert f"{count:,} parameters" in text and "Of 2 photos (0.0 megapixels)" in text
    assert "$" not in text and all(line in text for line in (*report.asked, *report.text))
    manifest = yaml.safe_load((ROOT / "benches" / "photos.yaml").read_text())
    entries = [entry for package in manifest["packages"] for entry in package["photos"]]
    assert all(f"| {entry['name']} | " in text and f" | {entry['licence']} | " in text for entry in entries)
    assert f"{sum(entry.get('use') != 'held_out' for entry in entries)} photos from Debian" in text
    assert "is at step 120 of 24000" in capsys.readouterr().out


def test_the_worst_photo(ship):
    rows = [
        ["dark", photo, method, measure, value]
        for photo, ours, theirs in (("a", 30, 20), ("b", 28, 27), ("c", 25, 22))
        for method, value in (("network", ours), ("BM3D", theirs))
        for measure, value in (("psnr", str(value)), ("ssim", "0"))
    ]
    rows.append(["light", "d", "network", "psnr", "1"])
    assert ship.worst("dark", rows) == "c" and ship.worst("dark", rows, over="BM3D") == "b"


@pytest.mark.parametrize(
    ("gone", "message"),
    [("best.safetensors", "best.safetensors"), ("log.csv", "log.csv"), ("", "validation")],
)
def test_half_a_training_is_refused(ship, run, tmp_path, gone, message):
    if gone:
        (run / gone).unlink()
    else:
        (run / "log.csv").write_text("step,loss,learning_rate,psnr,ssim\n1,0.5,1,,\n")
    with pytest.raises((OSError, ValueError), match=message):
        ship.ship(run, "denoise", {"cat": CAT}, tmp_path, tmp_path, ["clean"])


def test_a_picture_of_no_photo(ship, run, monkeypatch, tmp_path):
    monkeypatch.setitem(ship.SHOWN, "denoise", {"face": ("clean", "dog")})
    with pytest.raises(ValueError, match="no picture of dog, clean, for face"):
        ship.ship(run, "denoise", {"cat": CAT[:40, :40]}, tmp_path, tmp_path / "shown", ["clean"])


def test_every_task_is_known(ship):
    from mirnet_fast import pretrained

    assert list(ship.SHOWN) == list(pretrained.TASKS)
