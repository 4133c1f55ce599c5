"""One training step of a shallower network, forward to update: time and peak memory of each way."""

import copy

import harness
import pytest
import rows
import settings
import torch
from bench_network import peak_mb_of

from mirnet_fast import MIRNet, reference

CONFIG = {"n_feat": 16 if settings.TINY else 64, "n_RRG": 1, "n_MSRB": 1}


def stepper(network, image):
    """The call that trains the network once on image and gives its output."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-6)

    def step():
        optimizer.zero_grad(set_to_none=True)
        output = network(image)
        ((output - image).square() + 1e-6).sqrt().mean().backward()
        optimizer.step()
        return output.detach()

    return step


def eager(network, image):
    return stepper(network, image)


def eager_channels_last(network, image):
    network = copy.deepcopy(network).to(memory_format=torch.channels_last)
    return stepper(network, image.contiguous(memory_format=torch.channels_last))


def fast(network, image):
    fused = MIRNet(**CONFIG)
    fused.load_state_dict(network.state_dict())
    return stepper(fused.to(image.device, image.dtype), image)


VARIANTS = {"eager NCHW": eager, "eager channels_last": eager_channels_last, rows.FAST: fast}


def prepare(variant, size, dtype, threads):
    """The call of one variant; equal arguments give equal weights and image."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = reference.MIRNet(**CONFIG).to(settings.DEVICE, dtype)
    return VARIANTS[variant](network, torch.rand(size).to(settings.DEVICE, dtype))


@pytest.mark.parametrize("size", [(1, 3, 16, 16) if settings.TINY else (2, 3, 128, 128)], ids=rows.shape)
def test_training(benchmark, record, size):
    arguments = (size, torch.float32, torch.get_num_threads())
    variants = {name: prepare(name, *arguments) for name in VARIANTS}
    harness.check_agreement(variants, torch.float32)
    times = harness.timed(benchmark, variants, {}, budget=1 if settings.TINY else 30)
    if times is None:
        return
    row = rows.make_row("training", size, torch.float32, "step", times)
    record(row | {"peak_mb": {name: peak_mb_of(prepare, name, *arguments) for name in variants}}, times)
