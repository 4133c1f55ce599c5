"""Derivatives that the kernels don't have: torch.func and dual numbers get the reference's."""

import pytest
import torch

import mirnet_fast
from mirnet_fast import reference

from .cases import each
from .layer_changes import SHAPE


def of_every_block():
    x, small = torch.rand(1, 8, 8, 8), torch.rand(1, 16, 4, 4)
    return {
        "DAU": (mirnet_fast.DAU(8), reference.DAU(8), x),
        "MSRB": (mirnet_fast.MSRB(8, 2, 2, 2, False), reference.MSRB(8, 2, 2, 2, False), x),
        "RRG": (mirnet_fast.RRG(8, 1, 2, 2, 2), reference.RRG(8, 1, 2, 2, 2), x),
        "MIRNet": (mirnet_fast.MIRNet(**SHAPE), reference.MIRNet(**SHAPE), torch.rand(1, 3, 8, 8)),
        "UpSample": (mirnet_fast.UpSample(16, 2), reference.UpSample(16, 2), small),
        "DownSample": (mirnet_fast.DownSample(8, 2), reference.DownSample(8, 2), x),
        "Downsample": (mirnet_fast.Downsample(channels=8), reference.Downsample(channels=8), x),
    }


TRANSFORMS = {
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
    "vjp": lambda f, x: torch.func.vjp(f, x)[1](torch.ones_like(f(x)))[0],
    "grad": lambda f, x: torch.func.grad(lambda v: f(v).square().sum())(x),
    "jacrev": lambda f, x: torch.func.jacrev(lambda v: f(v).flatten()[:3])(x),
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack([x, 2 * x])),
    "hessian's": lambda f, x: torch.func.jvp(
        torch.func.grad(lambda v: f(v).square().sum()), (x,), (torch.ones_like(x),)
    )[1],
}


def dual(f, x):
    with torch.autograd.forward_ad.dual_level():
        result = f(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        return torch.autograd.forward_ad.unpack_dual(result).tangent


@each(name=[*of_every_block()], transform=[*TRANSFORMS, "dual numbers", "dual numbers without gradients"])
def test_other_derivatives(name, transform):
    fast, slow, x = of_every_block()[name]
    slow.load_state_dict(fast.state_dict())
    fast, slow, x = fast.double(), slow.double(), x.double()
    with torch.set_grad_enabled("without" not in transform):
        run = TRANSFORMS.get(transform, dual)
        torch.testing.assert_close(run(fast, x), run(slow, x), rtol=1e-9, atol=1e-11)


def test_explicit_backend_has_no_other_derivatives():
    x = torch.rand(1, 8, 8, 8)
    with (
        mirnet_fast.use_backend("cpu"),
        pytest.raises(mirnet_fast.BackendError, match=r"no kernels for torch\.func"),
    ):
        torch.func.jvp(mirnet_fast.ops.blur_pool, (x,), (x,))
