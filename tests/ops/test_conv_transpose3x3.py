import pytest
import torch
import torch.nn.functional as F

from . import convolution
from .common import Values, check_same, needs_kernels, with_threads
from .convolution import SHAPES, close, conv

pytestmark = needs_kernels


class Arguments:
    """Of the op, and what it has to give, in float64."""

    def __init__(self, n, inputs, outputs, h, w, layout="channels_last", slopes=1):
        values = Values(torch.float32, layout)
        self.x = values.map(n, inputs, h, w)
        # Of four taps at most: so many meet in an output.
        self.weight = values.weight(outputs, inputs, 3, 3).transpose(0, 1) * 1.5
        self.bias, self.slope = values.weight(outputs), values.weight(slopes)
        self.outputs = outputs

    def run(self, bias=None, slope=None):
        return conv("conv_transpose3x3")(self.x, self.weight, bias, slope)

    def expected(self, bias=None, slope=None):
        bias = None if bias is None else bias.double()
        settings = {"stride": 2, "padding": 1, "output_padding": 1}
        result = F.conv_transpose2d(self.x.double(), self.weight.double(), bias, **settings)
        return result if slope is None else F.prelu(result, slope.double())


@pytest.mark.parametrize("shape", SHAPES)
def test_contract(shape):
    convolution.check_contract(Arguments, shape)


@pytest.mark.parametrize("channels", [128, 256])
def test_contract_of_the_network(channels):
    a = Arguments(1, channels, channels, 32, 24)
    close(a.run(), a.expected())


@convolution.some_shapes
@pytest.mark.parametrize("names", [("bias",), ("slope",), ("bias", "slope")])
def test_contract_with_epilogue(shape, names):
    convolution.check_epilogue(Arguments, shape, names)


def test_sliced_maps():
    a = Arguments(2, 18, 35, 11, 14, layout="sliced")
    big = torch.full((2, 40, 24, 32), 7.0).contiguous(memory_format=torch.channels_last)
    out = big[:, 2:37, 1:23, 2:30]
    conv("conv_transpose3x3_into")(out, a.x, a.weight, None, None)
    close(out, a.expected())
    out.fill_(7.0)
    assert (big == 7.0).all()


def test_empty_batch():
    a = Arguments(0, 3, 5, 8, 8)
    assert a.run(a.bias, a.slope).shape == (0, 5, 16, 16)


def test_the_same_bits_with_any_number_of_threads():
    a = Arguments(3, 20, 67, 40, 36)
    check_same(with_threads(lambda: [a.run(a.bias, a.slope)]))


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (5, 6), (7, 8), (10, 12)])
def test_special_values_go_where_pytorch_has_them(special, place):
    a = Arguments(2, 5, 18, 11, 13)
    a.x[0, 2, place[0], place[1]] = special
    out, expected = a.run(), a.expected()
    assert not expected.isfinite().all()
    torch.testing.assert_close(out[~out.isfinite()].double(), expected[~out.isfinite()], equal_nan=True)
    finite = out.isfinite()
    error = (out[finite].double() - expected[finite]).norm()
    assert error <= 3e-6 * expected[finite].norm()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", lambda v: v[0], "x must be .N, C, H, W."),
        ("x", lambda v: v.double(), "x must be float32"),
        ("x", lambda v: v.contiguous(), "x must be channels_last"),
        ("weight", lambda v: v[1:], "weight must be .C, C', 3, 3. with C = 6 .*; got .5, 7, 3, 3."),
        ("weight", lambda v: v[:, :0], "weight must be .* C' >= 1; got .6, 0, 3, 3."),
        ("weight", lambda v: v.double(), "weight must be float32"),
        ("bias", lambda v: v[:1], "bias must have shape .7."),
        ("slope", lambda v: torch.ones(2), "slope must have shape .7."),
    ],
)
def test_wrong_arguments_are_named(name, value, message):
    a = Arguments(2, 6, 7, 8, 9)
    setattr(a, name, value(getattr(a, name)))
    with pytest.raises(RuntimeError, match=f"conv_transpose3x3: {message}"):
        a.run(a.bias, a.slope)


@pytest.mark.parametrize(
    ("value", "message"),
    [(lambda v: v[:, :, 1:], "out must have shape"), (lambda v: v.contiguous(), "out must be channels_last")],
)
def test_a_wrong_output_is_named(value, message):
    a = Arguments(2, 6, 7, 8, 9)
    with pytest.raises(RuntimeError, match=f"conv_transpose3x3: {message}"):
        conv("conv_transpose3x3_into")(value(a.run()), a.x, a.weight, None, None)


@convolution.gradient_cases
def test_gradients(shape, layout):
    convolution.check_gradients(Arguments, shape, layout)


def test_no_gradient_with_epilogue():
    convolution.check_no_gradient(Arguments, "conv_transpose3x3")


@pytest.mark.parametrize("rows", [1, 4, 5])
def test_in_bands_of_rows(rows):
    a = Arguments(2, 20, 35, 13, 10, slopes=35)
    expected = a.expected(a.bias, a.slope)
    out = torch.full_like(a.run(), float("nan"))
    for first in range(0, 13, rows):
        band = out[:, :, 2 * first : 2 * (first + rows)]
        conv("conv_transpose3x3_into")(band, a.x, a.weight, a.bias, a.slope, first_row=first)
    close(out, expected)


@pytest.mark.parametrize(("first", "rows"), [(-1, 2), (6, 2), (0, 3)])
def test_a_band_outside(first, rows):
    a = Arguments(1, 8, 8, 6, 6)
    out = torch.empty(1, 8, rows, 12).contiguous(memory_format=torch.channels_last)
    message = r"out must have shape \(1, 8, 2, 12\)" if rows == 3 else "inside x's 6; got first_row"
    with pytest.raises(RuntimeError, match=f"conv_transpose3x3: .*{message}"):
        conv("conv_transpose3x3_into")(out, a.x, a.weight, None, None, first)


def test_opcheck():
    a = Arguments(2, 6, 20, 8, 9)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    arguments = (a.x, a.weight, a.bias, a.slope)
    torch.library.opcheck(conv("conv_transpose3x3").default, arguments, test_utils=tests)
    arguments = (a.run(), a.x, a.weight, a.bias, a.slope)
    torch.library.opcheck(conv("conv_transpose3x3_into").default, arguments, test_utils=tests)
