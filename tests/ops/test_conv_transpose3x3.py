import pytest
import torch
import torch.nn.functional as F

from . import convolution
from .common import Values, check_same, needs_kernels, with_threads
from .convolution import SHAPES, close, conv

pytestmark = needs_kernels


class Arguments:
    """Of the op, and what it has to give, in float64."""

    def __init__(self, n, inputs, outputs, h, w, layout="channels_last", dtype=torch.float32):
        values = Values(dtype, layout)
        self.x = values.map(n, inputs, h, w)
        # Of four taps at most: so many meet in an output.
        self.weight = values.weight(outputs, inputs, 3, 3).transpose(0, 1) * 1.5
        self.bias = values.weight(outputs)
        self.outputs = outputs

    def run(self, bias=None):
        return conv("conv_transpose3x3")(self.x, self.weight, bias)

    def expected(self, bias=None):
        bias = None if bias is None else bias.double()
        settings = {"stride": 2, "padding": 1, "output_padding": 1}
        return F.conv_transpose2d(self.x.double(), self.weight.double(), bias, **settings)


@convolution.stored
@pytest.mark.parametrize("shape", SHAPES)
def test_contract(shape, dtype):
    convolution.check_contract(Arguments, shape, dtype)


@pytest.mark.parametrize("channels", [128, 256])
def test_contract_of_the_network(channels):
    a = Arguments(1, channels, channels, 32, 24)
    close(a.run(), a.expected())


@convolution.some_shapes
@convolution.stored
def test_contract_with_bias(shape, dtype):
    a = Arguments(*SHAPES[shape], dtype=dtype)
    close(a.run(a.bias), a.expected(a.bias))


@convolution.stored
def test_sliced_maps(dtype):
    a = Arguments(2, 18, 35, 11, 14, layout="sliced", dtype=dtype)
    close(a.run(), a.expected())


def test_empty_batch():
    a = Arguments(0, 3, 5, 8, 8)
    assert a.run(a.bias).shape == (0, 5, 16, 16)


def test_the_same_bits_with_any_number_of_threads():
    a = Arguments(3, 20, 67, 40, 36)
    check_same(with_threads(lambda: [a.run(a.bias)]))


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (5, 6), (7, 8), (10, 12)])
@convolution.stored
def test_special_values_go_where_pytorch_has_them(special, place, dtype):
    a = Arguments(2, 5, 18, 11, 13, dtype=dtype)
    a.x[0, 2, place[0], place[1]] = special
    out, expected = a.run(), a.expected()
    assert not expected.isfinite().all()
    torch.testing.assert_close(out[~out.isfinite()].double(), expected[~out.isfinite()], equal_nan=True)
    close(out[out.isfinite()], expected[out.isfinite()])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", lambda v: v[0], "x must be .N, C, H, W."),
        ("x", lambda v: v.double(), "x must be float32"),
        ("x", lambda v: v.contiguous(), "x must be channels_last"),
        ("weight", lambda v: v[1:], "weight must be .C, C', 3, 3. with C = 6 .*; got .5, 7, 3, 3."),
        ("weight", lambda v: v[:, :0], "weight must be .* C' >= 1; got .6, 0, 3, 3."),
        ("weight", lambda v: v.double(), "weight must have the dtype"),
        ("bias", lambda v: v[:1], "bias must have shape .7."),
    ],
)
def test_wrong_arguments_are_named(name, value, message):
    a = Arguments(2, 6, 7, 8, 9)
    setattr(a, name, value(getattr(a, name)))
    with pytest.raises(RuntimeError, match=f"conv_transpose3x3: {message}"):
        a.run(a.bias)


@convolution.gradient_cases
def test_gradients(shape, layout):
    convolution.check_gradients(Arguments, shape, layout)


def test_opcheck():
    a = Arguments(2, 6, 20, 8, 9)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(conv("conv_transpose3x3").default, (a.x, a.weight, a.bias), test_utils=tests)
