import itertools
import json

import pytest
import torch

import mirnet_fast
from mirnet_fast.ops import OPS

pytest.importorskip("triton", reason="the tuner measures Triton kernels")

from mirnet_fast.kernels import _configs, tune
from mirnet_fast.kernels._common import INTERPRETED

interpreted = pytest.mark.skipif(not INTERPRETED, reason="a GPU measures for itself")


@interpreted
@pytest.mark.parametrize("op", OPS)
def test_arguments_are_those_of_the_op(op):
    args = tune.arguments(op, 64, torch.float32, side=8, device="cpu")
    fast = getattr(mirnet_fast.ops, op)(*args)
    torch.testing.assert_close(fast, getattr(mirnet_fast.reference, op)(*args), rtol=1e-4, atol=1e-4)


@interpreted
def test_keeps_what_is_faster_and_no_noise():
    forward = tune.calls("skff_select", 64, torch.float32, side=8, device="cpu")["forward"]
    x = tune.input_of("skff_select", "forward", forward)
    clock = itertools.chain([1.0], itertools.repeat(0.98))
    assert tune.tune_call(forward, x, lambda call: next(clock)) == {}
    clock = itertools.chain([1.0], [1.2, 0.5], itertools.repeat(0.9))
    better = tune.tune_call(forward, x, lambda call: call() is None or next(clock))
    (entry,) = better
    name = entry.split()[0]
    assert better[entry] in tune.variants(_configs.config(name, x))[1:]
    assert not _configs.trial


def test_variants_are_few_and_differ():
    for options in _configs.DEFAULT.values():
        tried = tune.variants(options)
        assert tried[0] == options
        assert 2 <= len(tried) <= 10
        assert len({json.dumps(t, sort_keys=True) for t in tried}) == len(tried)
        assert all(t.keys() == options.keys() for t in tried)


def test_tables(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own = {"Some GPU": {_configs.entry("resample", torch.float16, 64): {"TH": 4, "num_warps": 2}}}
    _configs.cache_file().parent.mkdir()
    _configs.cache_file().write_text(json.dumps(own))
    monkeypatch.setattr(_configs, "INTERPRETED", False)
    monkeypatch.setattr(_configs, "_device_name", lambda index: "Some GPU")
    monkeypatch.setattr(_configs, "_capability", lambda index: (9, 0))
    _configs._known.cache_clear()
    try:
        x = torch.zeros(1, 64, 2, 2, dtype=torch.float16)
        assert _configs.config("resample", x) == {"TH": 4, "num_warps": 2}
        hopper = _configs.config("down", x)
        monkeypatch.setattr(_configs, "_capability", lambda index: (8, 0))
        assert hopper == _configs.DEFAULT["down"] != _configs.config("down", x)
        assert _configs.config("resample", x.bfloat16()) == _configs.DEFAULT["resample"]
        assert _configs.config("resample", x[:, :32]) == _configs.DEFAULT["resample"]
    finally:
        _configs._known.cache_clear()


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tune", "--dtype", "float16"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        tune.main()
    assert "torch finds no GPU" in capsys.readouterr().err
