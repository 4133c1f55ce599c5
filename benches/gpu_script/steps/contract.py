"""The numerics contract of tests/tolerance.py, on a GPU and without pytest."""

import functools

import torch
from torch.utils._pytree import tree_leaves, tree_map

from mirnet_fast import backends, use_backend
from tests import emulation
from tests.tolerance import assert_contract, distance, moved

from . import ON_GPU
from .cases import Skipped


def _candidates():
    """{backend: context manager that runs it here} of what is to be judged."""
    found = {
        b: functools.partial(use_backend, b) for b in ("triton", "cuda") if b not in backends._UNAVAILABLE
    }
    if not ON_GPU and emulation.missing() is None:
        found["cuda"] = emulation.emulated_gpu
    return found


def with_backend(name):
    """The context manager of a backend.

    Raises:
        Skipped: it cannot run here.
    """
    found = _candidates()
    if name not in found:
        raise Skipped(backends._UNAVAILABLE.get(name, "it cannot run here"))
    return found[name]


def hold_contract(chosen, function, published, args):
    """Raise AssertionError where a backend doesn't: as tests/ops, on these arguments."""
    generator, dtype = torch.Generator().manual_seed(1), _first_tensor(args).dtype

    def double(values):
        return _on_tensors(torch.Tensor.double, values)

    with torch.no_grad():
        grad = torch.randn_like(published(*double(args))).to(dtype)
    expected = run(published, double(args), grad)
    near = [_on_tensors(lambda t: moved(t, generator, 2).to(t.dtype), args) for _ in range(2)]
    pairs = [(run(published, args, grad), expected)]
    pairs += [(run(published, v, grad), run(published, double(v), grad)) for v in near]
    shifted = [run(published, _on_tensors(lambda t: moved(t, generator), args), grad) for _ in range(2)]
    with chosen():
        fast = run(function, args, grad)
    for i, value in enumerate(fast):
        errors = [distance(low[i], exact[i]) for low, exact in pairs]
        assert_contract(
            f"gradient {i - 1}" if i else "output", value, expected[i], errors, [v[i] for v in shifted]
        )


def run(function, args, grad):
    """[output, gradient of every tensor]."""
    args = _on_tensors(lambda t: t.detach().requires_grad_(), args)
    leaves = [v for v in tree_leaves(args) if isinstance(v, torch.Tensor)]
    output = function(*args)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(output.dtype))]


def _on_tensors(function, values):
    return tree_map(lambda v: function(v) if isinstance(v, torch.Tensor) else v, values)


def _first_tensor(args):
    return args[0][0] if isinstance(args[0], tuple) else args[0]
