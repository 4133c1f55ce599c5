"""mirnet-fast submit: what benchmarks that are judged elsewhere take."""

import re

import numpy as np
import pytest
import scipy.io

from mirnet_fast.training import matlab

from ..test_layouts import write_dnd
from .common import run


def test_sidd(tmp_path, identity):
    blocks = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), np.uint8)
    scipy.io.savemat(tmp_path / "in.mat", {matlab.BENCHMARK_NOISY: blocks})
    out = tmp_path / "new" / "SubmitSrgb.mat"
    result = run("submit", "sidd", tmp_path / "in.mat", out, "--weights", identity, "--method", "ours")
    assert result.exit_code == 0, result.output
    content = scipy.io.loadmat(out)
    assert np.array_equal(content["DenoisedBlocksSrgb"][1, 2], blocks[1, 2])
    assert content["OptionalData"]["MethodName"].item().item() == "ours"
    told = re.search(r"6 blocks in .*, ([\d.]+) s a megapixel on cpu", result.output)
    assert float(told[1]) == pytest.approx(content["TimeMPSrgb"].item(), abs=0.006)
    assert content["TimeMPSrgb"].item() > 0


def test_dnd(tmp_path, identity):
    image = np.random.default_rng(0).random((40, 30, 3), np.float32)
    write_dnd(tmp_path, [image, image], np.array([[9, 5, 40, 28]], float))
    result = run("submit", "dnd", tmp_path, tmp_path / "out", "--weights", identity)
    assert result.exit_code == 0, result.output
    assert f"2 images in {tmp_path / 'out'}" in result.output
    cells = scipy.io.loadmat(tmp_path / "out" / "0002.mat")["Idenoised"].ravel()
    assert np.allclose(cells[0], image[8:40, 4:28], atol=1e-6)


def test_bad_input(tmp_path, identity):
    (tmp_path / "in.mat").write_bytes(b"nothing")
    out = tmp_path / "out.mat"
    for benchmark, data, told in [
        ("sidd", "in.mat", "in.mat cannot be read as Matlab's"),
        ("sidd", ".", "cannot be read as Matlab's"),
        ("dnd", ".", "info.mat cannot be read as DND's"),
        ("dnd", "none", "none' does not exist"),
        ("lol", ".", "'lol' is not one of 'sidd', 'dnd'"),
    ]:
        result = run("submit", benchmark, tmp_path / data, out, "--weights", identity)
        assert result.exit_code != 0 and told in result.output, result.output
    assert not out.is_file()
