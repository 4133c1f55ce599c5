"""Whether the whole network is right."""

import functools

import torch

import mirnet_fast

from . import DEVICE, ON_GPU
from .cases import LONG_CASE_SECONDS, Case, run_cases
from .contract import hold_contract, with_backend
from .plans import planned

# Without a GPU a program of Triton's interpreter, and a thread block of the emulated GPU, take milliseconds.
SMALLEST = {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1, "height": 2}


def network(backend, dtype):
    """The whole network, as a function of the image and of its parameters, and without gradients."""
    name = f"{backend} network {dtype}"
    dtype = getattr(torch, dtype)
    cases = [Case(f"{name}, with gradients", functools.partial(_held_network, backend, dtype))]
    if backend == "triton":  # what is compiled for these, that needs too
        cases[:0] = [
            Case(f"{name}, plan, convolutions by {convs}", functools.partial(_planned_network, dtype, convs))
            for convs in ("triton", "cudnn")
        ]
    run_cases(cases, LONG_CASE_SECONDS)


def _held_network(backend, dtype):
    chosen = with_backend(backend)
    torch.backends.cudnn.allow_tf32 = False
    config, side = ({}, 64) if ON_GPU else (SMALLEST, 4)
    published, ours = networks(**config)
    names, values = zip(*published.named_parameters(), strict=True)
    image = torch.rand(1, 3, side, side, device=DEVICE)

    def called(module, x, *parameters):
        filters = {name: filt.to(x.dtype) for name, filt in module.named_buffers()}
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)) | filters, (x,))

    functions = [functools.partial(called, module) for module in (ours, published)]
    hold_contract(chosen, *functions, [v.detach().to(dtype) for v in (image, *values)])


def _planned_network(dtype, convolutions):
    published, ours = networks(**({} if ON_GPU else SMALLEST))
    size = (1, 3, 64, 96) if ON_GPU else (1, 3, 4, 8)
    planned(ours.to(dtype), published, size, convolutions, 2e-5 if dtype == torch.float32 else 1e-2)


def networks(**config):
    """(reference, ours) with the same weights, in eval mode."""
    torch.manual_seed(0)
    published, ours = (of(**config).to(DEVICE) for of in (mirnet_fast.reference.MIRNet, mirnet_fast.MIRNet))
    ours.load_state_dict(published.state_dict())
    return published.eval(), ours.eval()
