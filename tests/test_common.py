"""csrc/common/, on the host: resampling along an axis and softmax, against NumPy and PyTorch."""

import ctypes
import itertools
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
PADDINGS = {"reflect": "reflect", "replicate": "edge", "zero": "constant"}  # as here: as in NumPy


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    library = tmp_path_factory.mktemp("shared") / "dense.so"
    flags = "-std=c++17 -O1 -g -fPIC -shared -Wall -Wextra -Werror -fsanitize=undefined -fno-sanitize-recover"
    sources = [ROOT / "tests/common/dense.cpp", ROOT / "csrc/cpu/tap_tables.cpp"]
    subprocess.run(["g++", *flags.split(), *sources, "-o", library], check=True)
    loaded = ctypes.CDLL(library)
    loaded.tap.restype = ctypes.c_float
    return loaded


def matrices(outputs, inputs):
    """Two empty maps from inputs to outputs, and the arguments that pass them on."""
    pair = [np.zeros((outputs, inputs)) for _ in range(2)]
    return pair, [ctypes.c_void_p(m.ctypes.data) for m in pair]


def padded(size, before, after, padding):
    """(before + size + after, size): what every padded position reads."""
    return np.pad(np.eye(size), ((before, after), (0, 0)), mode=PADDINGS[padding])


def blurs():
    """(size, taps, padding, stride, pad_off, before, after, outputs) of what an op may be asked for."""
    for size, taps, stride in itertools.product((1, 2, 3, 4, 7, 12), range(1, 8), (1, 2, 3, 5)):
        for padding, pad_off in itertools.product(PADDINGS, (-3, -1, 0, 1, 4)):
            before, after = (taps - 1) // 2 + pad_off, taps // 2 + pad_off
            fits = before >= 0 and size + before + after >= taps
            if fits and (padding != "reflect" or size > after):
                outputs = (size + before + after - taps) // stride + 1
                yield size, taps, padding, stride, pad_off, before, after, outputs


@pytest.mark.parametrize("padding", PADDINGS)
def test_padded_source(shared, padding):
    for size in (1, 2, 5, 9):
        reach = size - 1 if padding == "reflect" else 6
        expected = padded(size, reach, reach, padding)
        for row, position in enumerate(range(-reach, size + reach)):
            source = shared.source(position, size, list(PADDINGS).index(padding))
            assert np.array_equal(expected[row], np.eye(size)[source] if source >= 0 else np.zeros(size))


def test_binomial_taps(shared):
    for taps in range(1, 8):
        exact = [math.comb(taps - 1, i) / 2 ** (taps - 1) for i in range(taps)]
        assert [shared.tap(taps, i) for i in range(taps)] == exact


def test_blur(shared):
    cases = list(blurs())
    assert len(cases) > 1000
    for size, taps, padding, stride, pad_off, before, after, outputs in cases:
        filter_ = np.array([math.comb(taps - 1, i) for i in range(taps)]) / 2 ** (taps - 1)
        rows = padded(size, before, after, padding)
        expected = np.stack([filter_ @ rows[o * stride : o * stride + taps] for o in range(outputs)])
        what = f"{size} pixels, {taps} taps, {padding}, stride {stride}, pad_off {pad_off}"

        (reads, read_by), given = matrices(outputs, size)
        shared.blur(size, outputs, stride, before, taps, list(PADDINGS).index(padding), *given)
        assert np.array_equal(reads, expected), what
        assert np.array_equal(read_by, expected), f"transposed: {what}"

        (reads, read_by), given = matrices(outputs, size)
        assert shared.cpu_blur(size, taps, padding.encode(), stride, pad_off, *given) == outputs, what
        assert np.array_equal(reads, expected), f"on the CPU: {what}"
        assert np.array_equal(read_by, expected), f"transposed on the CPU: {what}"


@pytest.mark.parametrize(
    ("size", "taps", "padding", "stride", "pad_off"),
    [
        (8, 0, b"zero", 1, 0),
        (8, 8, b"zero", 1, 0),
        (8, 3, b"zero", 0, 0),
        (8, 3, b"mirror", 2, 0),
        (8, 3, b"zero", 2, -2),
        (2, 4, b"reflect", 2, 0),
        (1, 3, b"reflect", 2, 0),
        (2, 5, b"zero", 2, -2),
        (2**30, 3, b"zero", 2, 0),
    ],
)
def test_a_blur_that_does_not_fit_is_refused(shared, size, taps, padding, stride, pad_off):
    assert shared.cpu_blur(size, taps, padding, stride, pad_off, None, None) == -1


def test_bilinear(shared):
    for size in (1, 2, 3, 8, 13):
        image = torch.eye(size, dtype=torch.double)[None, :, :, None]  # a channel for every input
        enlarged = torch.nn.functional.interpolate(image.repeat(1, 1, 1, 2), scale_factor=2, mode="bilinear")
        expected = enlarged[0, :, :, 0].T.numpy()
        for function in (shared.bilinear, shared.cpu_bilinear):
            (reads, read_by), given = matrices(2 * size, size)
            function(size, *given)
            assert np.array_equal(reads, expected)
            assert np.array_equal(read_by, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax(shared, dtype):
    function = shared.softmax_float if dtype == np.float32 else shared.softmax_double
    inf, nan = np.inf, np.nan
    for values in (
        [3],
        [1, 2, -4, 0.5],
        [1e4, -1e4, 9999],
        [-inf, 0, 1],
        [inf, 0],
        [nan, 1, 2],
        [2, 1, nan],
        [-inf, -inf],
    ):
        apart = np.full((len(values), 3), 7, dtype)  # every third value, the others left alone
        apart[:, 0] = values
        function(ctypes.c_void_p(apart.ctypes.data), len(values), 3)
        expected = torch.softmax(torch.tensor(values, dtype=torch.double), 0).numpy()
        np.testing.assert_allclose(apart[:, 0], expected, rtol=8 * np.finfo(dtype).eps, atol=0)
        assert np.all(apart[:, 1:] == 7)
