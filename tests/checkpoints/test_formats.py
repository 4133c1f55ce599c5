"""Both formats, of plain and wrapped networks: what is saved is loaded, whole or not at all."""

import os
import stat

import pytest
import safetensors.torch
import torch
from torch.optim.swa_utils import AveragedModel

from mirnet_fast import MIRNet
from mirnet_fast.checkpoints import (
    CheckpointError,
    load_checkpoint,
    network_arguments,
    read_state_dict,
    save_checkpoint,
)

from .common import (
    CONFIG,
    DEFAULTS,
    SHARED_WEIGHT,
    SLOPE,
    SLOPE_AGAIN,
    WRAPPINGS,
    assert_refused,
    assert_same,
    network,
)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_round_trip(model, source, tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    save_checkpoint(source, path)
    assert os.listdir(tmp_path) == [path.name]
    load_checkpoint(model, path)
    assert_same(model, source)


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
