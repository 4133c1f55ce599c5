"""What the tests of the three convolutions share: each has a class Arguments, which runs its op."""

import pytest
import torch

# n, inputs, outputs, h, w
SHAPES = {
    "one value": (1, 1, 1, 1, 1),
    "ends of the network": (1, 3, 64, 20, 24),
    "the other end": (2, 64, 3, 9, 11),
    "one row": (3, 5, 7, 1, 50),
    "one column": (1, 16, 16, 33, 1),
    "a panel and a bit": (1, 20, 67, 6, 7),
    "two panels and 16": (1, 33, 144, 13, 10),
    "whole tiles": (1, 64, 64, 16, 16),
    "whole wide tiles": (1, 64, 64, 8, 18),
    "deep": (1, 256, 32, 12, 12),
    "many blocks": (2, 8, 9, 81, 86),
}


# That the kernels' maps are stored in.
stored = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
some_shapes = pytest.mark.parametrize("shape", ["the other end", "a panel and a bit", "two panels and 16"])


def gradient_cases(test):
    """The mark of a test that takes the arguments of `check_gradients`."""
    shapes = pytest.mark.parametrize("shape", ["the other end", "a panel and a bit", "one row"])
    return shapes(pytest.mark.parametrize("layout", ["channels_last", "contiguous", "expanded"])(test))


def conv(name):
    return getattr(torch.ops.mirnet_fast_cpu, name)


def close(actual, expected, bound=3e-6):
    """Within the bound of the exact result's norm, beside that result's own rounding to bfloat16."""
    assert actual.shape == expected.shape
    rounding = (expected.bfloat16() - expected).norm() if actual.dtype == torch.bfloat16 else 0
    error = (actual.double() - expected).norm()
    allowed = bound * expected.norm() + 1.05 * rounding
    assert error <= allowed, f"error {error:.1e}, of {allowed:.1e} allowed"


def check_contract(make, shape, dtype, bound=3e-6):
    a = make(*SHAPES[shape], dtype=dtype)
    result = a.run()
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    close(result, a.expected(), bound)


def check_epilogue(make, shape, names, dtype, bound=3e-6):
    """With one slope and with one a channel; `make` is the op's Arguments, `names` are what is added."""
    for slopes in (1, SHAPES[shape][2]):
        a = make(*SHAPES[shape], slopes=slopes, dtype=dtype)
        chosen = {name: getattr(a, name) for name in names}
        close(a.run(**chosen), a.expected(**chosen), bound)


def check_gradients(make, shape, layout):
    """Of x, weight and bias, for a gradient of the output in this layout."""
    a = make(*SHAPES[shape])
    leaves = [t.requires_grad_() for t in (a.x, a.weight.detach(), a.bias)]
    a.x, a.weight, a.bias = leaves
    result, expected = a.run(a.bias), a.expected(a.bias)
    grad = torch.randn(result.shape, generator=torch.Generator().manual_seed(0))
    grad = grad.contiguous(memory_format=torch.channels_last)
    if layout != "channels_last":
        grad = grad.contiguous() if layout == "contiguous" else grad[:, :1, :1, :1].expand(result.shape)
    actual = torch.autograd.grad(result, leaves, grad)
    exact = torch.autograd.grad(expected, leaves, grad.double())
    # PyTorch computes the weight's and the bias's; oneDNN adds up the latter naively.
    for one, other, bound in zip(actual, exact, (3e-6, 1e-5, 1e-3), strict=True):
        close(one, other.double(), bound)
    # Some of them alone.
    a.x = a.x.detach()
    [alone] = torch.autograd.grad(a.run(a.bias).sum(), [a.weight])
    assert alone.shape == a.weight.shape
