"""Checkpoints: both formats, all the ways they are written, and all the ways they can be bad."""

import argparse
import os
import pathlib
import pickle
import random
import stat

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.optim.swa_utils import AveragedModel

from mirnet_fast import MIRNet, reference
from mirnet_fast.checkpoints import (
    CheckpointError,
    infer_config,
    load_checkpoint,
    network_arguments,
    read_state_dict,
    save_checkpoint,
)

CONFIG = {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1}
SLOPE = "body.0.body.0.blocks.0.0.body.1.weight"
SLOPE_AGAIN = "body.0.body.0.blocks.2.1.body.1.weight"
SHARED_WEIGHT = "body.0.body.0.blocks.1.1.body.0.weight"


def network(seed, **overrides):
    torch.manual_seed(seed)
    net = reference.MIRNet(**{**CONFIG, **overrides})
    with torch.no_grad():
        net.body[0].body[0].blocks[0][0].body[1].weight.fill_(seed + 0.5)  # all start with one slope
    return net


@pytest.fixture
def source():
    return network(1)


@pytest.fixture
def model():
    torch.manual_seed(2)
    return MIRNet(**CONFIG)


def assert_same(model, source):
    expected = source.state_dict()
    actual = model.state_dict()
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def assert_refused(model, path, match, **arguments):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=match) as caught:
        load_checkpoint(model, path, **arguments)
    assert str(path) in str(caught.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_round_trip(model, source, tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    save_checkpoint(source, path)
    assert os.listdir(tmp_path) == [path.name]
    load_checkpoint(model, path)
    assert_same(model, source)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"epoch": 3, "state_dict": state}])
def test_published_layouts(model, source, tmp_path, prefix, wrap):
    state = {prefix + name: value for name, value in source.state_dict().items()}
    torch.save(wrap(state), tmp_path / "net.pth")
    load_checkpoint(model, tmp_path / "net.pth")
    assert_same(model, source)


def with_a_wrapped_part(net, wrap):
    net.body = wrap(net.body)
    return net


WRAPPINGS = {
    "not": lambda net: net,
    "parallel": torch.nn.DataParallel,
    "parallel twice": lambda net: torch.nn.DataParallel(torch.nn.DataParallel(net)),
    "compiled": torch.compile,
    "compiled, parallel": lambda net: torch.nn.DataParallel(torch.compile(net)),
    "in part": lambda net: with_a_wrapped_part(net, torch.nn.DataParallel),
    "compiled in part": lambda net: with_a_wrapped_part(net, torch.compile),
    "averaged": AveragedModel,
}


@pytest.fixture(scope="module")
def wrapped():
    """{how: a network wrapped so}."""
    return {how: wrap(network(2)) for how, wrap in WRAPPINGS.items()}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("saved", WRAPPINGS)
def test_round_trips_of_wrapped_models(source, wrapped, tmp_path, suffix, saved):
    path = tmp_path / f"net{suffix}"
    plain = list(source.state_dict().values())
    save_checkpoint(WRAPPINGS[saved](source), path)
    for how, model in wrapped.items():
        if how == "averaged" and saved != "averaged":
            continue  # a file without a number of averages
        with torch.no_grad():
            torch._foreach_zero_(list(model.parameters()))
        load_checkpoint(model, path)
        state = model.state_dict()
        assert int(state.pop("n_averaged", 0)) == 0
        for value, expected in zip(state.values(), plain, strict=True):
            assert torch.equal(value, expected)
    assert network_arguments(path) == {**DEFAULTS, **CONFIG}


@pytest.mark.parametrize("suffix", [".PTH", ".SAFETENSORS"])
def test_suffixes_in_capitals(model, source, tmp_path, suffix):
    save_checkpoint(source, tmp_path / f"net{suffix}")
    load_checkpoint(model, tmp_path / f"net{suffix}")
    assert_same(model, source)


def test_a_file_without_a_number_of_averages(source, tmp_path):
    save_checkpoint(source, tmp_path / "net.pth")
    assert_refused(AveragedModel(network(2)), tmp_path / "net.pth", "1 missing: n_averaged")


def prefixed(state, prefix, every=1):
    return {prefix + name if i % every == 0 else name: value for i, (name, value) in enumerate(state.items())}


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


class Both(torch.nn.Module):
    """Has parts with the names of wrappers, and names that differ in nothing else."""

    def __init__(self):
        super().__init__()
        self.module, self.weight = torch.nn.PReLU(), torch.nn.Parameter(torch.rand(1))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "make",
    [
        Both,
        lambda: torch.nn.Sequential(
            torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), torch.nn.Linear(2, 2)
        ),
        lambda: torch.nn.ModuleDict({"module": torch.nn.Linear(2, 2), "net": torch.nn.Linear(2, 2)}),
    ],
)
def test_other_networks(tmp_path, suffix, make):
    source, model = make(), make()
    save_checkpoint(source, tmp_path / f"net{suffix}")
    load_checkpoint(model, tmp_path / f"net{suffix}")
    assert_same(model, source)


def test_a_pickle_that_holds_itself(model, source, tmp_path):
    content = {"state_dict": source.state_dict()}
    content["again"] = content["state_dict"]["again"] = content
    torch.save(content, tmp_path / "net.pth")
    load_checkpoint(model, tmp_path / "net.pth")
    assert_same(model, source)


def test_parameters_that_are_views_of_one_memory(model, source, tmp_path):
    flat = torch.cat([p.detach().flatten() for p in source.parameters()])
    parts = flat.split([p.numel() for p in source.parameters()])
    for parameter, part in zip(source.parameters(), parts, strict=True):
        parameter.data = part.view_as(parameter)
    save_checkpoint(source, tmp_path / "net.safetensors")
    assert (tmp_path / "net.safetensors").stat().st_size < 1.2 * flat.nbytes + 30_000
    load_checkpoint(model, tmp_path / "net.safetensors")
    assert_same(model, source)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_new_file_has_the_mode_of_any_other(source, tmp_path, suffix):
    (tmp_path / "other").touch()
    save_checkpoint(source, tmp_path / f"net{suffix}")
    modes = [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()]
    assert modes[0] == modes[1]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full disk here")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_full_disk(source, tmp_path, suffix):
    (tmp_path / f"net{suffix}").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(source, tmp_path / f"net{suffix}")


def test_legacy_torch_file(model, source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "net.pth", _use_new_zipfile_serialization=False)
    load_checkpoint(model, tmp_path / "net.pth")
    assert_same(model, source)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors_with_all_names(model, source, tmp_path, prefix):
    state = {prefix + name: value.clone() for name, value in source.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "net.safetensors")
    load_checkpoint(model, tmp_path / "net.safetensors")
    assert_same(model, source)


def test_safetensors_without_shared_names_and_metadata(model, source, tmp_path):
    saved = tmp_path / "saved.safetensors"
    safetensors.torch.save_model(source, str(saved))
    state = safetensors.torch.load_file(saved)
    assert SHARED_WEIGHT not in state
    safetensors.torch.save_file(state, tmp_path / "net.safetensors")
    load_checkpoint(model, tmp_path / "net.safetensors")
    assert_same(model, source)


def test_safetensors_metadata_names_what_was_dropped(source, tmp_path):
    safetensors.torch.save_model(source, str(tmp_path / "net.safetensors"))
    state = read_state_dict(tmp_path / "net.safetensors")
    assert state.keys() == source.state_dict().keys()
    assert state[SLOPE_AGAIN].item() == state[SLOPE].item() == 1.5


def test_dtype_and_sharing_of_the_model_stay(source, tmp_path):
    save_checkpoint(source, tmp_path / "net.pth")
    model = MIRNet(**CONFIG).bfloat16()
    parameters = list(model.parameters())
    load_checkpoint(model, tmp_path / "net.pth")
    assert all(mine is before for mine, before in zip(model.parameters(), parameters, strict=True))
    assert {p.dtype for p in parameters} == {torch.bfloat16}
    assert torch.equal(model.conv_in.weight, source.conv_in.weight.bfloat16())


def test_missing_unexpected_and_misshaped_are_all_named(model, source, tmp_path):
    state = dict(source.state_dict())
    del state["conv_out.weight"]
    state["extra.weight"] = torch.zeros(2)
    state["conv_in.weight"] = torch.zeros(9, 3, 3, 3)
    torch.save(state, tmp_path / "net.pth")
    message = assert_refused(model, tmp_path / "net.pth", "does not fit")
    assert "1 missing: conv_out.weight" in message
    assert "1 unexpected: extra.weight" in message
    assert "1 of another shape: conv_in.weight (9, 3, 3, 3), the model has (8, 3, 3, 3)" in message


def test_long_lists_are_shortened(model, tmp_path):
    torch.save({"conv_in.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "net.pth")
    message = assert_refused(model, tmp_path / "net.pth", "missing")
    names = len(model.state_dict()) - 1
    assert f"{names} missing: " in message
    assert f", and {names - 10} more" in message
    assert message.count(".weight") + message.count(".filt") == 10


def test_not_strict(model, source, tmp_path):
    state = {"conv_in.weight": source.conv_in.weight.detach(), "extra": torch.zeros(1)}
    torch.save(state, tmp_path / "net.pth")
    missing, unexpected = load_checkpoint(model, tmp_path / "net.pth", strict=False)
    assert len(missing) == len(model.state_dict()) - 1 and unexpected == ["extra"]
    assert torch.equal(model.conv_in.weight, source.conv_in.weight)


def test_wrong_shape_is_refused_without_strict(model, source, tmp_path):
    state = {**source.state_dict(), "conv_in.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "net.pth")
    assert_refused(model, tmp_path / "net.pth", "of another shape", strict=False)


@pytest.mark.parametrize("name", [SLOPE_AGAIN, SHARED_WEIGHT])
def test_checkpoint_of_a_network_that_did_not_share(model, source, tmp_path, name):
    state = {**source.state_dict(), name: source.state_dict()[name] + 1}
    torch.save(state, tmp_path / "net.pth")
    message = assert_refused(model, tmp_path / "net.pth", "with different values")
    assert name in message


def test_another_filter_is_refused_and_nothing_is_loaded(model, source, tmp_path):
    state = source.state_dict()
    filters = [name for name in state if name.endswith("filt")]
    state[filters[-1]] = state[filters[-1]] * 2
    torch.save(state, tmp_path / "net.pth")
    message = assert_refused(model, tmp_path / "net.pth", "does not fit")
    assert filters[-1] in message


class Malicious:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_code(model, tmp_path, legacy):
    marker = tmp_path / "ran"
    content = {"state_dict": Malicious(f"touch {marker}")}
    path = tmp_path / "net.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    message = assert_refused(model, path, "would run code")
    assert "system" in message and "weights_only" not in message
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # the file would have done it


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_plain_pickle_that_runs_code(model, tmp_path, protocol):
    marker = tmp_path / "ran"
    (tmp_path / "net.pth").write_bytes(pickle.dumps(Malicious(f"touch {marker}"), protocol))
    assert_refused(model, tmp_path / "net.pth", "would run code|not a checkpoint")
    assert not marker.exists()


def test_a_whole_module_is_refused(model, source, tmp_path):
    torch.save(source, tmp_path / "net.pth")
    assert_refused(model, tmp_path / "net.pth", "save a state_dict")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("part", [0.001, 0.5, 0.999])
def test_truncated(model, source, tmp_path, suffix, part):
    path = tmp_path / f"net{suffix}"
    save_checkpoint(source, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    assert_refused(model, path, "damaged")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("data", [b"hello world" * 99, bytes(range(256)), b"PK\x03\x04" + bytes(99)])
def test_not_a_checkpoint(model, tmp_path, suffix, data):
    path = tmp_path / f"net{suffix}"
    path.write_bytes(data)
    assert_refused(model, path, "damaged")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_empty_missing_and_folder(model, tmp_path, suffix):
    assert_refused(model, tmp_path / f"missing{suffix}", "no such file")
    (tmp_path / f"empty{suffix}").touch()
    assert_refused(model, tmp_path / f"empty{suffix}", "is empty")
    (tmp_path / f"folder{suffix}").mkdir()
    assert_refused(model, tmp_path / f"folder{suffix}", "no such file")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_cannot_be_read(model, tmp_path, suffix, monkeypatch):
    assert_refused(model, tmp_path / f"{'x' * 300}{suffix}", "cannot be read: File name too long")

    def fail(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / f"net{suffix}"
    path.write_bytes(b"something")
    monkeypatch.setattr(torch, "load", fail)
    monkeypatch.setattr(safetensors, "safe_open", fail)
    assert_refused(model, path, "cannot be read: Permission denied")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2], "holds a list"),
        ({}, "holds no tensors"),
        ({"conv_in.weight": 3}, "not tensors: conv_in.weight"),
        ({3: torch.zeros(1)}, "not tensors: 3"),
        (torch.zeros(3), "holds a Tensor"),
    ],
)
def test_not_a_state_dict(model, tmp_path, content, match):
    torch.save(content, tmp_path / "net.pth")
    assert_refused(model, tmp_path / "net.pth", match)


def test_safetensors_without_tensors(model, tmp_path):
    safetensors.torch.save_file({}, tmp_path / "net.safetensors")
    assert_refused(model, tmp_path / "net.safetensors", "holds no tensors")


def test_save_refuses(source, tmp_path):
    with pytest.raises(CheckpointError, match="suffix"):
        save_checkpoint(source, tmp_path / "net.onnx")
    with pytest.raises(CheckpointError, match="no folder"):
        save_checkpoint(source, tmp_path / "missing" / "net.pth")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_failed_save_leaves_the_old_file(source, tmp_path, suffix, monkeypatch):
    path = tmp_path / f"net{suffix}"
    save_checkpoint(source, path)
    before = path.read_bytes()

    def fail(source, target):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(source, path)
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == before


CONFIGS = [
    {"n_feat": 8, "n_RRG": 2, "n_MSRB": 1},
    {"n_feat": 8, "n_RRG": 1, "n_MSRB": 2, "height": 2, "bias": True},
    {"n_feat": 12, "n_RRG": 1, "n_MSRB": 1, "in_channels": 1, "out_channels": 1, "width": 3},
    {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1, "height": 1, "kernel_size": 5},
    {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1, "height": 2, "width": 1},
]
DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "kernel_size": 3,
    "stride": 2,
    "height": 3,
    "width": 2,
    "bias": False,
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_config_from_the_shapes(config, tmp_path, suffix):
    save_checkpoint(reference.MIRNet(**config), tmp_path / f"net{suffix}")
    assert infer_config(read_state_dict(tmp_path / f"net{suffix}")) == {**DEFAULTS, **config}


def test_config_does_not_guess_the_width(source, tmp_path):
    safetensors.torch.save_model(source, str(tmp_path / "net.safetensors"))
    state = safetensors.torch.load_file(tmp_path / "net.safetensors")  # without metadata
    with pytest.raises(CheckpointError, match="width"):
        infer_config(state)
    assert infer_config(state, width=2) == {**DEFAULTS, **CONFIG}


def test_the_width_of_a_network_is_kept_beside_its_weights(tmp_path):
    path = tmp_path / "net.safetensors"
    save_checkpoint(reference.MIRNet(**CONFIG, width=3), path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        # Older versions of safetensors give maps of the file, which is written anew.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    assert SHARED_WEIGHT not in tensors and metadata[SHARED_WEIGHT] in tensors
    told = {"mirnet_fast.network": metadata["mirnet_fast.network"]}
    safetensors.torch.save_file(tensors, path, told)  # without the other names
    assert network_arguments(path) == {**DEFAULTS, **CONFIG, "width": 3}
    for wrong in ('{"width": 10000000}', '{"width": "3"}', "[3]", "{", "[" * 100_000):
        safetensors.torch.save_file(tensors, path, {"mirnet_fast.network": wrong})
        with pytest.raises(CheckpointError, match="damaged: its metadata"):
            network_arguments(path)


def test_arguments_that_contradict_the_file(tmp_path):
    path = tmp_path / "net.pth"
    save_checkpoint(reference.MIRNet(**CONFIG), path)
    assert network_arguments(path, width=2, n_feat=8) == {**DEFAULTS, **CONFIG}
    with pytest.raises(CheckpointError, match=r"net.pth: this checkpoint was made with width=2, not 3"):
        network_arguments(path, width=3)
    with pytest.raises(CheckpointError, match="no argument 'depth'"):
        network_arguments(path, depth=3)
    save_checkpoint(reference.MIRNet(**CONFIG, height=1), path)
    assert network_arguments(path, stride=3)["stride"] == 3  # of one resolution nobody can tell


def test_config_of_another_network():
    with pytest.raises(CheckpointError, match="not the names"):
        infer_config(torch.nn.Linear(2, 2).state_dict())
    with pytest.raises(CheckpointError, match="not the names"):
        infer_config({"conv_in.weight": torch.zeros(8, 3, 3, 3), "conv_out.weight": torch.zeros(3, 8, 3, 3)})
    state = reference.MIRNet(**CONFIG).state_dict()
    state["conv_in.weight"] = torch.zeros(8, 3, 4, 4)
    with pytest.raises(
        CheckpointError, match=r"conv_in.weight must have a kernel of odd size; got \(8, 3, 4, 4\)"
    ):
        infer_config(state)
