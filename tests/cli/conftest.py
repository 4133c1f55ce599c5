"""Checkpoints of small networks."""

import pytest
import torch

from mirnet_fast import MIRNet, reference
from mirnet_fast.checkpoints import save_checkpoint

from .common import CONFIG


@pytest.fixture
def identity(tmp_path):
    """A checkpoint of a network that adds nothing to its input."""
    model = reference.MIRNet(**CONFIG)
    torch.nn.init.zeros_(model.conv_out.weight)
    save_checkpoint(model, tmp_path / "identity.pth")
    return tmp_path / "identity.pth"


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(3)
    save_checkpoint(MIRNet(**CONFIG), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"
