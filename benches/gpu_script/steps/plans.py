"""Plans of a GPU, with a choice of who runs the convolutions; without one made as if there was one."""

import contextlib

import torch

import mirnet_fast
from mirnet_fast import backends, engine, reference

from . import DEVICE, ON_GPU


@contextlib.contextmanager
def convolutions_by(choose):
    """Inside, choose(op, inputs, outputs, pixels) says of new plans' convolutions "triton" or "cudnn"."""
    before = backends.convolution
    backends.convolution = lambda op, dtype, inputs, outputs, pixels: choose(op, inputs, outputs, pixels)
    try:
        yield
    finally:
        backends.convolution = before


def as_on_a_gpu():
    """Without a GPU, inside plans are made as if there was one."""
    if ON_GPU:
        return contextlib.nullcontext()
    from tests.engine.common import as_if_on_a_gpu

    return as_if_on_a_gpu()


def planned_part(part, convolutions):
    torch.manual_seed(0)
    channels = 64 if ON_GPU else 16
    module, published = (getattr(of, part)(channels).to(DEVICE).eval() for of in (mirnet_fast, reference))
    published.load_state_dict(module.state_dict())
    size = (1, channels, 64, 96) if ON_GPU else (1, channels, 4, 8)
    planned(module.half(), published, size, convolutions, 5e-3)


def planned(module, published, size, convolutions, tolerance):
    """First run, recording and replays of a plan, each for another image, against the reference."""
    dtype = next(module.parameters()).dtype
    torch.backends.cudnn.allow_tf32 = False
    with (
        torch.no_grad(),
        as_on_a_gpu(),
        convolutions_by(lambda *key: convolutions),
        mirnet_fast.use_backend("triton"),
    ):
        images = [torch.rand(size, device=DEVICE).to(dtype) for _ in range(3)]
        plan = engine.plan_of(module, images[0])
        assert not isinstance(plan, str), plan
        results = [plan.run([image]) for image in images]
        for image, result in zip(images, results, strict=True):
            near(result, published(image.float()), tolerance)


def near(result, expected, tolerance):
    error = ((result.double() - expected.double()).norm() / expected.double().norm()).item()
    assert error < tolerance, f"{error:.1e} away from the reference"
