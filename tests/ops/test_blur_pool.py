import itertools

import numpy as np
import pytest
import torch

from mirnet_fast import ops, reference

from ..cases import pairwise
from ..test_reference import GOLDEN, relative, tensor
from .subject import CPU, CUDA, TRITON, Op


def case(n, c, h, w, *settings):
    return lambda v: (v.map(n, c, h, w), *settings)


SETTINGS = range(1, 8), ("reflect", "replicate", "zero"), (1, 2, 3, 5), (0, 1)
BLUR_POOL = Op(
    "blur_pool",
    cases={
        "plain": case(2, 16, 9, 12, 3, "reflect", 2, 0),
        "larger": case(1, 20, 31, 97, 3, "reflect", 2, 0),
        "tiny": case(2, 3, 4, 5, 3, "reflect", 2, 0),
        "one pixel": case(1, 5, 1, 1, 1, "replicate", 2, 0),
        "one row": case(3, 1, 1, 49, 5, "replicate", 1, 1),
        "even": case(1, 17, 7, 48, 6, "zero", 3, 1),
        "stride past the end": case(1, 8, 5, 6, 2, "reflect", 9, 0),
        "widest": case(1, 64, 5, 47, 7, "reflect", 2, 0),
        "all of it reflected": case(1, 3, 6, 49, 7, "reflect", 2, 2),
        "less padding": case(1, 4, 9, 9, 5, "zero", 2, -2),
        "pixels": case(1, 2, 64, 64, 3, "reflect", 2, 0),
    },
    cuda_cases={
        # A pixel of more accesses than a block has threads.
        "many channels": case(1, 2056, 3, 4, 3, "reflect", 2, 0),
        "many channels of another filter": case(1, 515, 3, 4, 2, "reflect", 2, 0),
    },
)


@BLUR_POOL.on(CPU)
@pytest.mark.parametrize("pad_type", ["reflect", "replicate", "zero"])
@pytest.mark.parametrize("filt_size", range(1, 8))
def test_golden(op, pad_type, filt_size):
    golden = np.load(GOLDEN / "modules.npz")
    x = tensor(golden[f"blur/{pad_type}_{filt_size}/input"])
    expected = tensor(golden[f"blur/{pad_type}_{filt_size}/output"])
    assert relative(ops.blur_pool(x, filt_size, pad_type), expected) < 1e-6


@BLUR_POOL.on(CPU)
def test_every_setting(op):
    for settings in itertools.product(*SETTINGS):
        args = op.values().map(1, 2, 6, 11), *settings
        torch.testing.assert_close(ops.blur_pool(*args), reference.blur_pool(*args))


@BLUR_POOL.on(CPU)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0,), "filt_size must be from 1 to 7; got 0"),
        ((8,), "filt_size must be from 1 to 7; got 8"),
        ((3, "mirror"), "pad_type must be one of reflect, replicate, zero; got 'mirror'"),
        ((3, "reflect", 0), "stride must be at least 1; got 0"),
        ((3, "reflect", 2, -2), "pad_off must be at least -1; got -2"),
        ((7, "reflect"), "reflect padding of 3 needs H > 3; got H = 3"),
        ((3.0,), "filt_size must be an integer; got float"),
        ((7, "zero", 1, -3), "H = 3 is smaller than the filter of 7 taps"),
    ],
)
def test_bad_settings(op, settings, message):
    with pytest.raises((TypeError, ValueError), match=f"^blur_pool: {message}"):
        ops.blur_pool(torch.zeros(1, 2, 3, 9), *settings)


@BLUR_POOL.on(TRITON)
@pairwise(filt_size=range(1, 8), pad_type=["reflect", "replicate", "zero"], stride=[1, 3], pad_off=[0, 1])
def test_many_settings(op, filt_size, pad_type, stride, pad_off):
    args = op.values().map(1, 2, 6, 11), filt_size, pad_type, stride, pad_off
    torch.testing.assert_close(ops.blur_pool(*args), reference.blur_pool(*args))


@BLUR_POOL.on(CUDA)
def test_every_setting_and_its_gradient(op):
    for settings in itertools.product(*SETTINGS):
        op.check_close((op.values().map(1, 2, 6, 11), *settings))
