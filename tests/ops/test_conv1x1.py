import pytest
import torch
import torch.nn.functional as F

from . import convolution
from .common import Values, check_same, needs_kernels, with_threads
from .convolution import SHAPES, close, conv

pytestmark = needs_kernels


class Arguments:
    """Of the op, and what it has to give, in float64."""

    def __init__(self, n, inputs, outputs, h, w, layout="channels_last", slopes=1, dtype=torch.float32):
        values = Values(dtype, layout)
        self.x = values.map(n, inputs, h, w)
        self.weight = values.weight(outputs, inputs, 1, 1)
        self.bias, self.slope = values.weight(outputs), values.weight(slopes)

    def run(self, bias=None, slope=None):
        n, _, h, w = self.x.shape
        out = self.x.new_empty(n, self.weight.shape[0], h, w).contiguous(memory_format=torch.channels_last)
        conv("conv1x1_into")(out, self.x, self.weight, bias, slope)
        return out

    def expected(self, bias=None, slope=None):
        bias = None if bias is None else bias.double()
        result = F.conv2d(self.x.double(), self.weight.double(), bias)
        return result if slope is None else F.prelu(result, slope.double())


@convolution.stored
@pytest.mark.parametrize("shape", SHAPES)
def test_contract(shape, dtype):
    convolution.check_contract(Arguments, shape, dtype, 4e-7)


@pytest.mark.parametrize("channels", [64, 128, 256])
def test_contract_of_the_network(channels):
    a = Arguments(1, channels, channels, 9, 100)
    close(a.run(), a.expected(), 4e-7)


@convolution.some_shapes
@pytest.mark.parametrize("names", [("bias",), ("slope",), ("bias", "slope")])
@convolution.stored
def test_contract_with_epilogue(shape, names, dtype):
    convolution.check_epilogue(Arguments, shape, names, dtype, 4e-7)


@convolution.stored
def test_sliced_maps(dtype):
    a = Arguments(2, 18, 35, 11, 14, layout="sliced", dtype=dtype)
    big = torch.full((2, 40, 13, 16), 7.0, dtype=dtype).contiguous(memory_format=torch.channels_last)
    out = big[:, 2:37, 1:12, 1:15]
    conv("conv1x1_into")(out, a.x, a.weight, None, None)
    close(out, a.expected(), 4e-7)
    out.fill_(7.0)
    assert (big == 7.0).all()


def test_empty_batch():
    a = Arguments(0, 3, 5, 8, 8)
    assert a.run(a.bias, a.slope).shape == (0, 5, 8, 8)


@convolution.stored
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_special_values(value, dtype):
    a = Arguments(1, 20, 35, 6, 50, dtype=dtype)
    a.x[0, 3, 4, 47] = value
    out, expected = a.run(a.bias, a.slope), a.expected(a.bias, a.slope)
    rounding = 1e-4 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(out.double(), expected, rtol=rounding, atol=1e-4, equal_nan=True)


def test_the_same_bits_with_any_number_of_threads():
    a = Arguments(2, 64, 64, 31, 100)
    check_same(with_threads(lambda: [a.run(a.bias, a.slope)]))


def test_opcheck():
    a = Arguments(1, 6, 10, 4, 5)
    torch.library.opcheck(conv("conv1x1_into").default, (a.run(), a.x, a.weight, a.bias, a.slope))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(6, 4, 5)}, r"x must be \(N, C, H, W\)"),
        ({"x": torch.zeros(1, 6, 4, 5)}, "x must be channels_last"),
        ({"weight": torch.zeros(10, 6, 3, 3)}, r"weight must be \(C', C, 1, 1\) with C = 6"),
        ({"weight": torch.zeros(10, 6, 1, 1, dtype=torch.float64)}, "weight must have the dtype"),
        ({"bias": torch.zeros(9)}, r"bias must have shape \(10\); got \(9\)"),
        ({"slope": torch.zeros(9)}, r"slope must have shape \(10\); got \(9\)"),
        ({"out": torch.zeros(1, 10, 4, 4)}, r"out must have shape \(1, 10, 4, 5\); got \(1, 10, 4, 4\)"),
    ],
)
def test_wrong_arguments(change, message):
    a = Arguments(1, 6, 10, 4, 5)
    given = {"out": a.run(), "x": a.x, "weight": a.weight, "bias": None, "slope": None} | change
    with pytest.raises(RuntimeError, match=f"conv1x1: {message}"):
        conv("conv1x1_into")(*given.values())
