"""One training step, forward to update: time and peak memory of each way.

On a CPU of a shallower network, in float32; on a GPU of the published one, under autocast to bfloat16.
"""

import copy

import harness
import pytest
import rows
import settings
import torch
from bench_network import peaks_of

from mirnet_fast import MIRNet, reference

AMP = settings.DEVICE == "cuda"
DTYPE = torch.bfloat16 if AMP else torch.float32
SHALLOW = {"n_feat": 16 if settings.TINY else 64, "n_RRG": 1, "n_MSRB": 1}
CONFIG = SHALLOW if settings.TINY or not AMP else {}
SIZE = (1, 3, 16, 16) if settings.TINY else (8, 3, 128, 128) if AMP else (2, 3, 128, 128)
if settings.QUICK and not settings.TINY:
    SIZE = (1, 3, 64, 64)


def stepper(network, image):
    """The call that trains the network once on image and gives its output."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-6)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(settings.DEVICE, DTYPE, enabled=AMP):
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


def compiled(network, image):
    torch.compiler.reset()
    network = copy.deepcopy(network).to(memory_format=torch.channels_last)
    # Tried on tiny maps it need not compile, which takes minutes.
    network = torch.compile(network, dynamic=False, backend="eager" if settings.TINY else "inductor")
    return stepper(network, image.contiguous(memory_format=torch.channels_last))


def fast(network, image):
    fused = MIRNet(**CONFIG)
    fused.load_state_dict(network.state_dict())
    return stepper(fused.to(image.device, image.dtype), image)


VARIANTS = {"eager NCHW": eager, "eager channels_last": eager_channels_last, rows.FAST: fast}


def prepare(variant, size, threads):
    """The call of one variant; equal arguments give equal weights and image."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = reference.MIRNet(**CONFIG).to(settings.DEVICE)
    return VARIANTS[variant](network, torch.rand(size).to(settings.DEVICE))


@pytest.mark.parametrize("size", [SIZE], ids=rows.shape)
def test_training(benchmark, record, size):
    arguments = (size, torch.get_num_threads())
    variants = {name: prepare(name, *arguments) for name in VARIANTS}
    harness.check_agreement(variants, DTYPE)
    times = harness.timed(benchmark, variants, {}, budget=1 if settings.TINY else 30)
    if times is None:
        return
    row = rows.make_row("training", size, DTYPE, "step", times)
    record(row | peaks_of(variants, prepare, *arguments), times)
