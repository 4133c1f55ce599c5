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
        self.x, self.residual = values.map(n, inputs, h, w), values.map(n, outputs, h, w)
        self.weight = values.weight(outputs, inputs, 3, 3)
        self.bias, self.slope = values.weight(outputs), values.weight(slopes)
        self.outputs = outputs

    def run(self, bias=None, slope=None, residual=None):
        return conv("conv3x3")(self.x, self.weight, bias, slope, residual)

    def expected(self, bias=None, slope=None, residual=None):
        bias = None if bias is None else bias.double()
        result = F.conv2d(self.x.double(), self.weight.double(), bias, padding=1)
        if slope is not None:
            result = F.prelu(result, slope.double())
        return result if residual is None else result + residual.double()

    def run_with_statistics(self):
        """[output, maximum and mean over the channels, sums over the pixels]."""
        n, _, h, w = self.x.shape
        out = self.x.new_empty(n, self.outputs, h, w).contiguous(memory_format=torch.channels_last)
        pooled, sums = torch.empty(n, 2, h, w), torch.empty(n, self.outputs, dtype=torch.float64)
        conv("conv3x3_into")(out, self.x, self.weight, self.bias, self.slope, self.residual, pooled, sums)
        return [out, pooled, sums]


def statistics(value):
    return torch.stack([value.amax(1), value.mean(1)], 1), value.sum((2, 3))


@convolution.stored
@pytest.mark.parametrize("shape", SHAPES)
def test_contract(shape, dtype):
    convolution.check_contract(Arguments, shape, dtype)


@pytest.mark.parametrize("channels", [64, 128, 256])
def test_contract_of_the_network(channels):
    a = Arguments(1, channels, channels, 32, 24)
    close(a.run(), a.expected())


@convolution.some_shapes
@pytest.mark.parametrize("names", [("bias",), ("slope",), ("residual",), ("bias", "slope", "residual")])
@convolution.stored
def test_contract_with_epilogue(shape, names, dtype):
    convolution.check_epilogue(Arguments, shape, names, dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_contract_of_statistics_in_bfloat16(shape):
    """They are of the output before it is rounded."""
    a = Arguments(*SHAPES[shape], dtype=torch.bfloat16)
    out, pooled, sums = a.run_with_statistics()
    assert torch.equal(out, a.run(a.bias, a.slope, a.residual))
    expected_pooled, expected_sums = statistics(a.expected(a.bias, a.slope, a.residual))
    torch.testing.assert_close(pooled.double(), expected_pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-5, atol=1e-4 * out.shape[2])


@pytest.mark.parametrize("shape", SHAPES)
def test_contract_of_statistics(shape):
    a = Arguments(*SHAPES[shape])
    out, pooled, sums = a.run_with_statistics()
    assert torch.equal(out, a.run(a.bias, a.slope, a.residual))
    # Of the output as it was rounded: the maximum is exact.
    expected_pooled, expected_sums = statistics(out.double())
    assert torch.equal(pooled[:, 0].double(), expected_pooled[:, 0])
    torch.testing.assert_close(pooled.double(), expected_pooled, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-6, atol=1e-5)


@convolution.stored
def test_sliced_maps(dtype):
    a = Arguments(2, 18, 35, 11, 14, layout="sliced", dtype=dtype)
    close(a.run(residual=a.residual), a.expected(residual=a.residual))
    big = torch.full((2, 40, 13, 16), 7.0, dtype=dtype).contiguous(memory_format=torch.channels_last)
    out = big[:, 2:37, 1:12, 1:15]
    conv("conv3x3_into")(out, a.x, a.weight, None, None, None, None, None)
    close(out, a.expected())
    out.fill_(7.0)
    assert (big == 7.0).all()


def in_bands(a, rows, like):
    """[output, pooled channels, sums] as of `like`, the convolution made so many rows at a time."""
    out, pooled, sums = (torch.full_like(t, float("nan")) for t in like)
    total, height = torch.zeros_like(sums), out.shape[2]
    for first in range(0, height, rows):
        band = slice(first, min(first + rows, height))
        parts = out[:, :, band], a.residual[:, :, band], pooled[:, :, band]
        epilogue = a.bias, a.slope, parts[1], parts[2], sums
        conv("conv3x3_into")(parts[0], a.x, a.weight, *epilogue, first_row=first)
        total += sums
    return out, pooled, total


@pytest.mark.parametrize("rows", [1, 4, 5])
def test_in_bands_of_rows(rows):
    a = Arguments(2, 20, 35, 13, 10)
    expected = a.run_with_statistics()
    out, pooled, total = in_bands(a, rows, expected)
    close(out, a.expected(a.bias, a.slope, a.residual))
    if rows == 4:  # the same tiles
        assert torch.equal(out, expected[0])
    assert torch.equal(pooled[:, 0], out.amax(1))
    torch.testing.assert_close([pooled, total], expected[1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", [-1, 2])
def test_a_band_outside(first):
    a = Arguments(1, 8, 8, 6, 6)
    out = torch.empty(1, 8, 5, 6).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match=f"conv3x3: .*inside x's 6; got first_row = {first} and 5 rows"):
        conv("conv3x3_into")(out, a.x, a.weight, None, None, None, None, None, first)


def test_residual_may_be_the_output():
    a = Arguments(1, 20, 67, 9, 10)
    expected = a.expected(residual=a.residual)
    conv("conv3x3_into")(a.residual, a.x, a.weight, None, None, a.residual, None, None)
    close(a.residual, expected)


def test_empty_batch():
    a = Arguments(0, 3, 5, 8, 8)
    assert a.run(a.bias, a.slope, a.residual).shape == (0, 5, 8, 8)
    assert [value.shape[0] for value in a.run_with_statistics()] == [0, 0, 0]


def test_the_same_bits_with_any_number_of_threads():
    check_same(with_threads(lambda: Arguments(3, 20, 67, 70, 66).run_with_statistics()))


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (5, 6), (7, 8), (10, 12)])
@convolution.stored
def test_special_values_go_where_pytorch_has_them(special, place, dtype):
    a = Arguments(2, 5, 18, 11, 13, dtype=dtype)
    a.x[0, 2, place[0], place[1]] = special
    out, pooled, sums = a.run_with_statistics()
    expected = a.expected(a.bias, a.slope, a.residual)
    torch.testing.assert_close(out[~out.isfinite()].double(), expected[~out.isfinite()], equal_nan=True)
    close(out[out.isfinite()], expected[out.isfinite()])
    touched = ~expected.isfinite()
    assert touched.any()
    assert torch.equal(sums.isfinite(), expected.sum((2, 3)).isfinite())
    if special != special:
        assert torch.equal(pooled[:, 0].isnan(), touched.any(1))
        assert torch.equal(pooled[:, 1].isnan(), touched.any(1))


def test_a_map_of_nothing_but_nan():
    a = Arguments(*SHAPES["many blocks"])
    a.x[0] = float("nan")
    out = a.run()
    assert out[0].isnan().all()
    assert out[1:].isfinite().all()


def test_sums_that_exceed_float32_on_the_way():
    """The points' values would, the outputs do not."""
    a = Arguments(1, 4, 8, 9, 9)
    a.x *= 1e38 / a.x.abs().max() / 2
    a.weight *= 0.1 / a.weight.abs().sum((1, 2, 3), keepdim=True)
    out = a.run()
    assert out.isfinite().all()
    close(out / 1e38, a.expected() / 1e38)


def wrong(name, value):
    return lambda a: setattr(a, name, value(a))


WRONG = {
    "x must be .N, C, H, W.": wrong("x", lambda a: a.x[0]),
    "x must be float32": wrong("x", lambda a: a.x.double()),
    "x must be channels_last": wrong("x", lambda a: a.x.contiguous()),
    "bias must have shape .7.": wrong("bias", lambda a: a.bias[:1]),
    "bias must have the dtype": wrong("bias", lambda a: a.bias.double()),
    "slope must have shape .7.": wrong("slope", lambda a: torch.ones(2)),
    "residual must have shape": wrong("residual", lambda a: a.residual[:, :, :-1]),
    "residual must be channels_last": wrong("residual", lambda a: a.residual.contiguous()),
    "weight must be .C', C, 3, 3. with C = 6 .*; got .7, 5, 3, 3.": wrong(
        "weight", lambda a: a.weight[:, 1:]
    ),
    "weight must be .* C' >= 1; got .0, 6, 3, 3.": wrong("weight", lambda a: a.weight[:0]),
    "weight must be .*; got .7, 6, 1, 1.": wrong("weight", lambda a: a.weight[:, :, 1:2, 1:2]),
    "weight must be .*; got .7, 6, 3.": wrong("weight", lambda a: a.weight[..., 0]),
    "weight must have the dtype": wrong("weight", lambda a: a.weight.double()),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message):
    a = Arguments(2, 6, 7, 8, 9)
    WRONG[message](a)
    with pytest.raises(RuntimeError, match=f"conv3x3: {message}"):
        a.run(a.bias, a.slope, a.residual)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out": lambda v: v[:1]}, "out must have shape"),
        ({"out": lambda v: v.contiguous()}, "out must be channels_last"),
        ({"pooled": lambda v: v[:, :1]}, "pooled must have shape"),
        (
            {"pooled": lambda v: v.transpose(2, 3).contiguous().transpose(2, 3)},
            "pooled's rows must be contiguous",
        ),
        ({"sums": lambda v: v.float()}, "sums must be contiguous float64"),
        ({"sums": lambda v: None}, "pooled and sums go together"),
    ],
)
def test_wrong_outputs_are_named(change, message):
    a = Arguments(2, 6, 7, 8, 9)
    results = dict(zip(("out", "pooled", "sums"), a.run_with_statistics(), strict=True))
    results |= {name: f(results[name]) for name, f in change.items()}
    with pytest.raises(RuntimeError, match=f"conv3x3: {message}"):
        conv("conv3x3_into")(
            results["out"], a.x, a.weight, None, None, None, results["pooled"], results["sums"]
        )


def test_weights_in_another_order():
    a = Arguments(1, 20, 67, 9, 10)
    expected = a.run()
    a.weight = a.weight.contiguous(memory_format=torch.channels_last)
    assert not a.weight.is_contiguous()
    assert torch.equal(a.run(), expected)


@convolution.gradient_cases
def test_gradients(shape, layout):
    convolution.check_gradients(Arguments, shape, layout)


def test_no_gradient_with_epilogue():
    a = Arguments(*SHAPES["one row"])
    a.x.requires_grad_()
    with pytest.raises(NotImplementedError, match="conv3x3: there are gradients only without slope"):
        a.run(slope=a.slope)


def test_opcheck():
    a = Arguments(2, 6, 20, 8, 9)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    arguments = (a.x, a.weight, a.bias, a.slope, a.residual)
    torch.library.opcheck(conv("conv3x3").default, arguments, test_utils=tests)
    out, pooled, sums = a.run_with_statistics()
    arguments = (out, a.x, a.weight, a.bias, a.slope, a.residual, pooled, sums)
    torch.library.opcheck(conv("conv3x3_into").default, arguments, test_utils=tests)
