"""All that a network lies in: layouts that others write, several networks, names with prefixes."""

import argparse
import pathlib
import random

import numpy as np
import pytest
import torch

from mirnet_fast.checkpoints import CheckpointError, load_checkpoint, network_arguments, read_state_dict

from .common import CONFIG, DEFAULTS, assert_refused, assert_same, network, prefixed


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"epoch": 3, "state_dict": state}])
def test_published_layouts(model, source, tmp_path, prefix, wrap):
    state = {prefix + name: value for name, value in source.state_dict().items()}
    torch.save(wrap(state), tmp_path / "net.pth")
    load_checkpoint(model, tmp_path / "net.pth")
    assert_same(model, source)


def optimizer_of(state):
    moments = {name: {"step": torch.tensor(3.0), "exp_avg": value} for name, value in state.items()}
    return {"state": moments, "param_groups": [{"lr": 1e-4}]}


LAYOUTS = {
    **{
        key: lambda state, key=key: {key: state}
        for key in ("params", "params_ema", "model", "net", "net_g", "generator", "generator_ema", "ema")
    },
    "model.": lambda state: prefixed(state, "model."),
    "net.": lambda state: {"state_dict": prefixed(state, "net.")},
    "_orig_mod.": lambda state: prefixed(state, "_orig_mod."),
    "twice": lambda state: prefixed(state, "module.module."),
    "on some": lambda state: prefixed(state, "module.", every=3),
    "all": lambda state: {"model": {"state_dict": prefixed(state, "net_g.module._orig_mod.")}},
    "averaged": lambda state: {"n_averaged": torch.tensor(7), **prefixed(state, "module.")},
    "averaged, outside": lambda state: {"n_averaged": torch.tensor(7), **prefixed(state, "module.net.")},
    "averaged, inside": lambda state: {"net.n_averaged": torch.tensor(7), **prefixed(state, "net.module.")},
    "beside others": lambda state: {
        "epoch": torch.tensor(3),
        "params": state,
        "psnr": np.float64(31.5),
        "steps": np.int64(9),
        "better": np.bool_(True),
        "history": np.arange(3.0),
        "args": argparse.Namespace(lr=1e-4, folder=pathlib.Path("somewhere")),
        "optimizer": optimizer_of(state),
        "scheduler": {"last_epoch": 3, "base": torch.tensor(1.0)},
    },
    "among the names": lambda state: {**state, "epoch": 3, "best": np.float32(30)},
    "of another network": lambda state: {
        "generator": state,
        "discriminator": {"conv_in.weight": torch.zeros(8, 3, 3, 3), "head.weight": torch.zeros(3)},
    },
    "last.pt": lambda state: {
        "recipe": "{}",
        "step": 3,
        "best": -float("inf"),
        "network": state,
        "optimizer": optimizer_of(state),
        "scaler": {},
        "random": (random.getstate(), torch.get_rng_state()),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(model, source, tmp_path, layout):
    path = tmp_path / "net.pth"
    torch.save(LAYOUTS[layout](source.state_dict()), path)
    load_checkpoint(model, path)
    assert_same(model, source)
    if layout != "of another network":  # that its conv_in is no MIRNet's is seen with a model alone
        assert network_arguments(path) == {**DEFAULTS, **CONFIG}


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        (lambda a, b: {"params": a, "params_ema": b}, ("params", "params_ema")),
        (lambda a, b: {"network": a, "average": (b, torch.tensor(5))}, ("network", "average")),
        (lambda a, b: {**prefixed(a, "net."), **prefixed(b, "ema.module.")}, ("net", "ema")),
        (lambda a, b: {"x": {"y": prefixed(a, "z.")}, "w": b}, ("x.y.z", "w")),
        (lambda a, b: {**a, "ema": b}, ("", "ema")),
        (lambda a, b: {"nets": (a, b)}, ("nets.0", "nets.1")),
        (lambda a, b: {"a": {"b": b}, "a.b": a}, ("a.b", "a.b#1")),
        # An average of the parameters alone, without the filters.
        (lambda a, b: {"net": a, "ema": {n: v for n, v in b.items() if "filt" not in n}}, ("net", "ema")),
    ],
)
def test_of_several_networks_the_key_chooses(model, wrapped, tmp_path, content, keys):
    path = tmp_path / "net.pth"
    sources = dict(zip(keys, (network(3), wrapped["not"]), strict=True))
    torch.save(content(*(net.state_dict() for net in sources.values())), path)
    listed = ", ".join(repr(key) for key in sorted(keys))
    assert_refused(model, path, f"holds several networks; choose one by its key: {listed}")
    for read in (read_state_dict, network_arguments):
        with pytest.raises(CheckpointError, match=f"holds several networks.*: {listed}"):
            read(path)
    assert_refused(model, path, f"there is no 'nothing'; key may be {listed}", key="nothing")
    for key, source in sources.items():
        missing, _ = load_checkpoint(model, path, key=key, strict=False)
        assert all("filt" in name for name in missing)
        assert_same(model, source)
        assert network_arguments(path, key) == {**DEFAULTS, **CONFIG}


def test_a_part_of_another_network_is_loaded_only_by_its_key(model, source, tmp_path):
    state = {**prefixed(source.state_dict(), "sr.net."), "sr.last.weight": torch.zeros(3)}
    torch.save({"state_dict": state}, tmp_path / "net.pth")
    message = assert_refused(model, tmp_path / "net.pth", "more than the network 'state_dict.sr.net'")
    assert "1 others: sr.last.weight" in message
    assert_refused(model, tmp_path / "net.pth", "holds more than the network", key="state_dict")
    load_checkpoint(model, tmp_path / "net.pth", key="state_dict.sr.net")
    assert_same(model, source)


def test_two_values_for_one_name(model, source, tmp_path):
    state = source.state_dict()
    again = {"module.conv_in.weight": state["conv_in.weight"].clone()}
    torch.save({**state, **again}, tmp_path / "net.pth")
    load_checkpoint(model, tmp_path / "net.pth")
    again["module.conv_in.weight"][0] += 1
    torch.save({**state, **again}, tmp_path / "net.pth")
    message = assert_refused(model, tmp_path / "net.pth", "1 names with two values")
    assert "conv_in.weight and module.conv_in.weight" in message
    torch.save({"params": state, "other": {**state, **again, "conv_out.weight": 3}}, tmp_path / "net.pth")
    assert_refused(model, tmp_path / "net.pth", "1 names with two values", key="other")
    load_checkpoint(model, tmp_path / "net.pth", key="params")


def test_a_pickle_that_holds_itself(model, source, tmp_path):
    content = {"state_dict": source.state_dict()}
    content["again"] = content["state_dict"]["again"] = content
    torch.save(content, tmp_path / "net.pth")
    load_checkpoint(model, tmp_path / "net.pth")
    assert_same(model, source)
