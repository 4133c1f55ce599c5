"""All the ways a checkpoint can be bad: it is named, and nothing of it is loaded."""

import os
import pickle

import pytest
import safetensors.torch
import torch

from mirnet_fast.checkpoints import load_checkpoint, save_checkpoint

from .common import SHARED_WEIGHT, SLOPE_AGAIN, assert_refused


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
