"""A network that changes nothing, and what comes of it."""

import pytest
import torch

from mirnet_fast import MIRNet, Restorer


@pytest.fixture
def network():
    """Adds nothing to its input."""
    model = MIRNet(n_feat=8, n_RRG=1, n_MSRB=1)
    torch.nn.init.zeros_(model.conv_out.weight)
    return model


@pytest.fixture
def restorer(network, one_thread):
    return Restorer(network, device="cpu")
