"""mirnet-fast demo, on small photos."""

import re
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from .common import read, run

ROOT = Path(__file__).parents[2]


def test_demo(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", None)
    photo = tmp_path / "clean.jpg"
    cv2.imwrite(str(photo), skimage.data.astronaut()[100:164, 100:180, ::-1])
    result = run("demo", photo, "--sigma", 20, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "80 x 64 pixels, Gaussian noise of sigma 20/255, saved in 8 bits" in result.output
    table = re.findall(r"^  (noisy|mirnet_fast|non-local means) +([\d.]+) dB +0\.\d{4}", result.output, re.M)
    assert [name for name, _ in table] == ["noisy", "mirnet_fast", "non-local means"]
    gain = float(table[1][1]) - float(table[0][1])
    printed = re.search(
        r"^([+-][\d.]+) dB; before \| after \| clean: .*before_after_clean\.png$", result.output, re.M
    )
    assert float(printed[1]) == pytest.approx(gain, abs=0.011) and gain > 4
    assert "BM3D was not compared" in result.output
    names = ["before_after_clean.png", "clean.png", "mirnet_fast.png", "noisy.png", "non-local_means.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    shown = [read(tmp_path / "out" / f"{name}.png") for name in ("noisy", "mirnet_fast", "clean")]
    assert np.array_equal(read(tmp_path / "out" / "before_after_clean.png"), np.concatenate(shown, 1))
    # The photo that is shown is the one that was restored.
    again = run("restore", tmp_path / "out" / "noisy.png", tmp_path / "again.png")
    assert again.exit_code == 0, again.output
    assert np.array_equal(read(tmp_path / "again.png"), read(tmp_path / "out" / "mirnet_fast.png"))


def test_demo_compares_with_bm3d_where_it_is(tmp_path, monkeypatch):
    seen = []

    def bm3d_rgb(noisy, deviation):
        seen.append(deviation)
        return np.full_like(noisy, 0.5)

    monkeypatch.setitem(sys.modules, "bm3d", types.SimpleNamespace(bm3d_rgb=bm3d_rgb))
    photo = tmp_path / "clean.png"
    cv2.imwrite(str(photo), np.full((16, 16, 3), 51, np.uint8))
    result = run("demo", photo, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert seen == [25 / 255]
    # 0.5, rounded to 8 bits, for 51 / 255.
    assert re.search(rf"^  BM3D +{-20 * np.log10(128 / 255 - 0.2):.2f} dB", result.output, re.M)
    assert "not compared" not in result.output


def test_demo_of_a_cameras_noise(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", None)
    photo = tmp_path / "clean.png"
    cv2.imwrite(str(photo), skimage.data.astronaut()[100:164, 100:180, ::-1])
    results = [run("demo", photo, "--iso", iso, "--out", tmp_path / str(iso)) for iso in (100, 12800, 12800)]
    assert [result.exit_code for result in results] == [0, 0, 0], results[0].output
    assert (
        "80 x 64 pixels, noise of a camera at ISO 12800, demosaiced, JPEG of quality 92" in results[1].output
    )
    before = [float(re.search(r"^  noisy +([\d.]+) dB", result.output, re.M)[1]) for result in results]
    assert before[0] - before[1] > 10 and before[1] == before[2]
    # Both photos went through the camera: what it does apart from noise is in both.
    assert np.array_equal(read(tmp_path / "100" / "clean.png"), read(tmp_path / "12800" / "clean.png"))
    assert not np.array_equal(read(tmp_path / "100" / "clean.png"), read(photo))
    assert run("demo", "--iso", 0).exit_code == 2


def test_demo_of_a_photo_too_small_to_judge(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", None)
    cv2.imwrite(str(tmp_path / "in.png"), np.zeros((5, 5, 3), np.uint8))
    result = run("demo", tmp_path / "in.png", "--out", tmp_path / "out")
    assert result.exit_code == 1 and "needs 11 x 11 pixels; got 5 x 5" in result.output


def test_make_demo_writes_no_picture_over_another():
    recipe = (ROOT / "Makefile").read_text().split("\ndemo: build\n")[1].split("\n\n")[0]
    folders = re.findall(r"--out (\S+)", recipe)
    assert len(folders) == 3 and len(set(folders)) == 3
    weights = re.search(r"compare --weights (\S+)", recipe)[1]
    assert (ROOT / weights).is_file()


def test_demo_errors(tmp_path):
    result = run("demo", tmp_path / "none.png")
    assert result.exit_code == 1 and "none.png: there is no such file" in result.output
    assert run("demo", "--sigma", -1).exit_code == 2
