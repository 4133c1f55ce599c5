"""--precision of restore, evaluate and compare."""

import re

import cv2
import numpy as np
import pytest

from mirnet_fast import comparison, precision
from mirnet_fast.cli._common import PRECISIONS
from mirnet_fast.precision import Verdict

from .common import SMALL, random_pixels, read, run


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "in.png"
    cv2.imwrite(str(path), random_pixels(np.uint16, 12, 16, 3))
    return path


def automatic(monkeypatch, name):
    monkeypatch.setattr(precision, "automatic", lambda *args, **kwargs: Verdict(name, "it is so here"))


def test_choices():
    assert PRECISIONS == precision.CHOICES


def test_restore(tmp_path, photo, weights, monkeypatch):
    made = {}
    for told in ("", "auto", "fp32", "bf16", "lowered"):
        if told == "lowered":
            automatic(monkeypatch, "bf16")
        option = ["--precision", told] if told in PRECISIONS else []
        result = run("restore", photo, tmp_path / "out.png", "--weights", weights, "--overwrite", *option)
        assert result.exit_code == 0, result.output
        assert ("precision: bf16; it is so here" in result.output) == (told == "lowered")
        made[told] = read(tmp_path / "out.png").astype(int)
    assert np.array_equal(made[""], made["fp32"]) and np.array_equal(made["auto"], made["fp32"])
    assert np.array_equal(made["bf16"], made["lowered"])
    assert 0 < np.abs(made["bf16"] - made["fp32"]).max() < 1000


@pytest.mark.parametrize("command", ["restore", "evaluate", "compare"])
def test_refusals(tmp_path, photo, weights, command):
    places = {"restore": [photo, tmp_path / "out"], "evaluate": [tmp_path, tmp_path], "compare": [photo]}
    arguments = [command, *places[command], "--weights", weights, "--device", "cpu"]
    result = run(*arguments, "--precision", "fp16")
    assert result.exit_code == 2 and "--precision 'fp16' is for GPUs; on a CPU it may be" in result.output
    assert run(*arguments, "--precision", "half").exit_code == 2


def test_overflow_is_told_with_the_file(tmp_path, photo, weights, monkeypatch):
    arguments = ["restore", photo, tmp_path / "out.png", "--weights", weights]
    found = precision._overflowed
    monkeypatch.setattr(precision, "_overflowed", lambda x, result: found(x, result * float("inf")))
    result = run(*arguments, "--precision", "bf16")
    assert result.exit_code == 1 and not (tmp_path / "out.png").exists()
    assert f"error: {photo}: the image overflows in bf16: " in result.output
    assert "take precision 'fp32'" in result.output and "restored 0 of 1" in result.output
    automatic(monkeypatch, "bf16")
    result = run(*arguments)
    assert result.exit_code == 0 and "restored 1 of 1" in result.output
    assert f"warning: {photo}: the image overflows in bf16, so it was computed in fp32" in result.output
    lowered = read(tmp_path / "out.png")
    assert run(*arguments, "--precision", "fp32").exit_code == 0
    assert np.array_equal(read(tmp_path / "out.png"), lowered)


def test_evaluate(tmp_path, photo, weights):
    arguments = ["evaluate", tmp_path, tmp_path]
    result = run(*arguments, "--precision", "bf16")
    assert result.exit_code == 2 and "--precision needs --weights" in result.output
    tables = {}
    for told in ("fp32", "bf16"):
        table = tmp_path / f"{told}.csv"
        result = run(*arguments, "--weights", weights, "--precision", told, "--csv", table)
        assert result.exit_code == 0, result.output
        tables[told] = float(table.read_text().splitlines()[-1].split(",")[1])
    assert 0 < abs(tables["bf16"] - tables["fp32"]) < 0.05


def test_compare(tmp_path, photo, weights, monkeypatch):
    asked = []
    monkeypatch.setattr(
        comparison, "memory", lambda *args: asked.append(args) or {"reference": 2, "mirnet_fast": 1}
    )
    arguments = ["compare", photo, *SMALL, "--size", 8, "--rounds", 1, "--out", tmp_path]
    result = run(*arguments, "--precision", "bf16")
    assert result.exit_code == 0, result.output
    assert "8 x 8 pixels, bfloat16, cpu" in result.output
    assert asked[0][-1] == precision.DTYPES["bf16"]
    errors = re.search(r"^  output +(\S+) +(\S+)$", result.output, re.M).groups()
    assert all(1e-4 < float(error) < 2e-2 for error in errors)


@pytest.mark.parametrize("given", [True, False])
def test_doctor(weights, monkeypatch, given):
    arguments = ["--weights", weights] if given else SMALL
    printed = run("doctor", *arguments, "--size", 8).output
    assert printed.splitlines()[-1] == "  cpu: fp32, because this is a test"
    monkeypatch.setattr(precision, "candidates_on", lambda device: (("bf16",), ""))
    monkeypatch.setattr(precision, "SAMPLE_SIDE", 16)
    printed = run("doctor", *arguments, "--size", 8).output
    assert re.search(r"^  cpu: (bf16|fp32), because bf16 differs from fp32 by \d+\.\d{3} grey", printed, re.M)
