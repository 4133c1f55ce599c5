"""The numerics contract: twice the reference's own error in the same dtype, plus a few ulp.

Both are measured, not guessed. An error is a random number, and for a gradient that is one value,
as a PReLU slope's, a single draw says little: the reference's own is the largest over some inputs
that differ in their last bits. "A few ulp" is what the oracle (the reference in float64) moves when
its inputs move by half an ulp of the dtype: no arithmetic in it can be asked to hold that. So a sum
with heavy cancellation gets a floor that fits it, and a well-conditioned one none to hide in.
"""

import torch


def moved(value, generator, ulps=0.5):
    """The value in float64, each element moved by up to so many ulp of its dtype."""
    noise = torch.rand(value.shape, generator=generator, dtype=torch.float64, device="cpu") * 2 - 1
    return value.double() * (1 + ulps * noise.to(value.device) * torch.finfo(value.dtype).eps)


def distance(a, b):
    """Norm of the difference over the tensor."""
    return (a.double() - b.double()).norm().item()


def assert_contract(name, fast, oracle, reference_errors, moved_oracles):
    """`reference_errors` in the dtype of `fast`; `moved_oracles` are the oracle on moved inputs."""
    eps = torch.finfo(fast.dtype).eps
    scale = oracle.double().norm().item()
    conditioning = max(distance(m, oracle) for m in moved_oracles)
    allowed = 2 * max(reference_errors) + 4 * conditioning + 2 * eps * scale
    error = distance(fast, oracle)
    assert error <= allowed, f"{name}: error {error:.3e} of {scale:.3e}, allowed {allowed:.3e}"
