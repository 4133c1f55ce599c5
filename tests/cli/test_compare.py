"""mirnet-fast compare, on small networks."""

import json
import re

import cv2
import numpy as np
import pytest

from mirnet_fast import MIRNet, comparison

from .common import SMALL, random_pixels, read, run


@pytest.fixture
def no_memory(monkeypatch):
    """Without the fresh processes of the memory measurement, which take seconds."""
    monkeypatch.setattr(comparison, "memory", lambda *args: {"reference": 200, "mirnet_fast": 50})


def test_compare_random_weights_and_sample_photo(tmp_path):
    result = run("compare", *SMALL, "--size", 32, "--rounds", 1, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "astronaut, 32 x 32" in result.output
    assert "weights: random" in result.output and "nothing is restored" in result.output
    for stage in ("conv_in", "body.0", "conv_out", "output"):
        assert re.search(rf"^  {re.escape(stage)} +\d\.\d\de-\d\d +\d\.\d\de-\d\d$", result.output, re.M)
    assert re.search(r"^  mirnet_fast +\d+\.\d+ s +\d+ MiB$", result.output, re.M)
    last = result.output.splitlines()[-1]
    assert re.match(r"agree \(.*\); mirnet_fast is [\d.]+ times as fast, peak memory [\d.]+ times; ", last)
    assert str(tmp_path / "out" / "mirnet_fast.png") in last
    pictures = [read(tmp_path / "out" / f"{n}.png") for n in ("reference", "mirnet_fast", "difference")]
    assert all(picture.shape == (32, 32, 3) for picture in pictures)
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 1
    assert pictures[0].std() > 10
    assert pictures[2].max() > 127  # amplified


def test_compare_own_photo_and_weights(tmp_path, weights, no_memory):
    cv2.imwrite(str(tmp_path / "in.png"), random_pixels(np.uint16, 13, 18, 1))
    result = run(
        "compare", tmp_path / "in.png", "--weights", weights, "--size", "full", "--rounds", 1,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "18 x 13 pixels" in result.output
    assert "random" not in result.output and str(weights) in result.output
    assert "peak memory 0.25 times" in result.output.splitlines()[-1]
    assert read(tmp_path / "out" / "reference.png").shape == (13, 18, 3)


def test_compare_crops_the_centre(tmp_path, identity, no_memory):
    pixels = random_pixels(np.uint8, 20, 30, 3)
    cv2.imwrite(str(tmp_path / "in.png"), pixels)
    result = run(
        "compare", tmp_path / "in.png", "--weights", identity, "--size", 8, "--rounds", 1,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert np.array_equal(read(tmp_path / "out" / "mirnet_fast.png"), pixels[6:14, 11:19])
    assert "times 1\n" in result.output  # no difference, nothing to amplify


def test_compare_fails_where_they_disagree(tmp_path, monkeypatch, no_memory):
    class Wrong(MIRNet):
        def forward(self, x):
            return super().forward(x) + 1e-5

    monkeypatch.setattr(comparison, "MIRNet", Wrong)
    result = run("compare", *SMALL, "--size", 16, "--rounds", 1, "--out", tmp_path)
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("DO NOT AGREE")
    assert re.search(r"^  output .* DISAGREES$", result.output, re.M)
    assert not re.search(r"^  conv_out .* DISAGREES$", result.output, re.M)


def test_compare_in_json(tmp_path, weights, no_memory):
    arguments = ["--weights", weights, "--size", 16, "--rounds", 2, "--out", tmp_path, "--json"]
    result = run("compare", *arguments)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["size"], told["dtype"], told["weights"]) == ([16, 16], "float32", str(weights))
    assert [error["stage"] for error in told["errors"]] == ["conv_in", "body.0", "conv_out", "output"]
    assert told["agree"] and all(0 < error["mirnet_fast"] < 1e-6 for error in told["errors"])
    assert told["peak_bytes"] == {"reference": 200, "mirnet_fast": 50} and told["seconds"]["reference"] > 0
    assert told["pictures"][1] == str(tmp_path / "mirnet_fast.png")


def test_compare_says_that_memory_was_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "memory", lambda *args: {"reference": None, "mirnet_fast": 50})
    result = run("compare", *SMALL, "--size", 16, "--rounds", 1, "--out", tmp_path)
    assert result.exit_code == 0
    assert "peak memory not measured" in result.output.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "code", "match"),
    [
        (["missing.png"], 1, "missing.png: there is no such file"),
        (["--weights", "missing.pth"], 1, "missing.pth: there is no such file"),
        (["--size", "wide"], 2, "neither a number of pixels"),
        (["--size", "-4"], 2, "neither a number of pixels"),
        (["--rounds", "0"], 2, "0 is not in the range"),
        (["--device", "abacus"], 2, "cannot be used"),
        (["--device", "mps"], 2, "'mps' cannot be used: "),
        (["--device", "meta"], 2, "'meta' cannot be used: Cannot copy out of meta tensor"),
        (["--device", "hpu"], 2, "'hpu' cannot be used: No module"),
    ],
)
def test_compare_errors(arguments, code, match):
    result = run("compare", *SMALL, *arguments)
    assert result.exit_code == code
    assert match in result.output
    assert isinstance(result.exception, SystemExit)
    assert len(result.output.splitlines()) <= 4  # how it is used, and one sentence
