"""The numerics contract: twice the reference's own error in the same dtype, plus a few ulp.

"A few ulp" are measured, not guessed: the oracle (the reference in float64) is run again on inputs
moved by half an ulp of the dtype, and what that moves is what no arithmetic in this dtype can be
asked to hold. A gradient that is one sum with heavy cancellation, as a PReLU slope's, gets a floor
that fits it, and a well-conditioned one gets none to hide in.
"""

import torch


def moved(value, generator):
    """The float64 value, each element moved by up to half an ulp of the dtype it came from."""
    noise = torch.rand(value.shape, generator=generator, dtype=torch.float64) * 2 - 1
    return value.double() * (1 + noise * torch.finfo(value.dtype).eps / 2)


def distance(a, b):
    return (a.double() - b.double()).norm().item()


def assert_contract(name, fast, same_dtype, oracle, moved_oracles):
    """Errors are norms over the tensor; `moved_oracles` are the oracle on moved inputs."""
    eps = torch.finfo(fast.dtype).eps
    scale = oracle.double().norm().item()
    conditioning = max(distance(m, oracle) for m in moved_oracles)
    allowed = 2 * distance(same_dtype, oracle) + 4 * conditioning + 2 * eps * scale
    error = distance(fast, oracle)
    assert error <= allowed, f"{name}: error {error:.3e} of {scale:.3e}, allowed {allowed:.3e}"
