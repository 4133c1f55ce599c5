"""The constructor's arguments, from the shapes and beside the weights."""

import pytest
import safetensors.torch
import torch

from mirnet_fast import reference
from mirnet_fast.checkpoints import (
    CheckpointError,
    infer_config,
    network_arguments,
    read_state_dict,
    save_checkpoint,
)

from .common import CONFIG, DEFAULTS, SHARED_WEIGHT

CONFIGS = [
    {"n_feat": 8, "n_RRG": 2, "n_MSRB": 1},
    {"n_feat": 8, "n_RRG": 1, "n_MSRB": 2, "height": 2, "bias": True},
    {"n_feat": 12, "n_RRG": 1, "n_MSRB": 1, "in_channels": 1, "out_channels": 1, "width": 3},
    {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1, "height": 1, "kernel_size": 5},
    {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1, "height": 2, "width": 1},
]


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
    with pytest.raises(CheckpointError, match=r"must have a kernel of odd size; got \(8, 3, 4, 4\)"):
        infer_config(state)
