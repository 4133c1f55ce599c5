"""Networks to save, and to load into."""

import pytest
import torch

from mirnet_fast import MIRNet

from .common import CONFIG, WRAPPINGS, network


@pytest.fixture
def source():
    return network(1)


@pytest.fixture
def model():
    torch.manual_seed(2)
    return MIRNet(**CONFIG)


@pytest.fixture(scope="module")
def wrapped():
    """{how: a network wrapped so}."""
    return {how: wrap(network(2)) for how, wrap in WRAPPINGS.items()}
