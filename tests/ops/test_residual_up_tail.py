import pytest
import torch
import torch.nn.functional as F

from mirnet_fast import ops

from ..cases import first_of
from ..emulated_units import has_unit
from .common import Values, check_same, check_sums, gradient_maker, needs_kernels, with_threads
from .convolution import close
from .subject import CPU, TRITON, Op
from .test_residual_down_tail import weights


def case(n, c, h, w, inputs, outputs, slope=1, bias=False):
    def make(v):
        maps = v.map(n, c, 2 * h, 2 * w), v.map(n, inputs, h, w)
        return *maps, *weights(v, slope, c, inputs, outputs, bias)

    return make


RESIDUAL_UP_TAIL = Op(
    "residual_up_tail",
    cases={
        "plain": case(2, 16, 6, 7, 16, 8),
        "larger": case(1, 20, 31, 49, 24, 10),
        "tiny": case(2, 3, 2, 3, 2, 4, slope=3, bias=True),
        "one pixel": case(3, 5, 1, 1, 5, 2),
        "one row": case(1, 65, 1, 50, 65, 33, bias=True),
        "wide": case(1, 128, 3, 24, 128, 64),
        "pixels": case(1, 8, 256, 256, 8, 4, bias=True),
    },
    cuda_cases={
        "many channels": case(1, 4096, 1, 2, 2048, 8, slope=4096),
        "many channels out": case(1, 8, 1, 2, 8, 4096, bias=True),
    },
    deep=lambda channels: case(1, channels, 2, 3, channels, channels),
    # The small map is projected before it is enlarged: Inf - Inf may become Inf, or the other way.
    orders_infinities=False,
    meets_padding=(2,),  # the gradient of bottom
    products=True,
)


@RESIDUAL_UP_TAIL.on(CPU)
@pytest.mark.parametrize("rows", [2, 4, 10])
def test_in_bands_of_rows(op, rows):
    top, bottom, *weights = op.arguments("larger", torch.float64, "channels_last")
    whole = ops.residual_up_tail(top, bottom, *weights)
    out = torch.full_like(whole, float("nan"))
    for first in range(0, top.shape[2], rows):
        band = top[:, :, first : first + rows]
        rows_out = out[:, :, first : first + rows]
        torch.ops.mirnet_fast_cpu.residual_up_tail_rows(rows_out, band, bottom, *weights, first)
    assert torch.equal(out, whole)


@RESIDUAL_UP_TAIL.on(CPU)
def test_a_band_outside(op):
    top, bottom, *weights = op.arguments("plain")
    out = torch.empty(2, 8, 12, 14, dtype=torch.float64)
    for first in (-1, 1):
        with pytest.raises(RuntimeError, match=r"residual_up_tail: .*first_row"):
            torch.ops.mirnet_fast_cpu.residual_up_tail_rows(out, top, bottom, *weights, first)


@RESIDUAL_UP_TAIL.on(CPU)
def test_maps_that_do_not_belong_together(op):
    top, bottom, *weights = op.arguments("plain")
    with pytest.raises(ValueError, match=r"top must have shape \(2, \*, 12, 14\); got \(2, 16, 11, 14\)"):
        ops.residual_up_tail(top[:, :, 1:], bottom, *weights)


@RESIDUAL_UP_TAIL.on(TRITON)
@pytest.mark.parametrize("dtype", first_of([torch.float16, torch.float32]))
def test_many_tiles_and_blocks(op, small_tiles, dtype):
    small_tiles("up", "project", "resample", "weight_gradient")
    args = case(2, 20, 3, 5, 36, 24, slope=20, bias=True)(op.values(dtype))
    op.check_contract(args, gradient_maker("dense", dtype), draws=2)


CONV_SHAPES = {
    "one pixel": (3, 8, 8, 1, 1, 8, 4),
    "one row": (1, 16, 16, 1, 37, 20, 8),
    "one column": (2, 16, 33, 35, 1, 16, 65),
    "channels beside vectors": (2, 18, 35, 11, 14, 7, 5),
    "several blocks": (2, 32, 32, 67, 30, 24, 16),
    "wide": (1, 16, 16, 9, 300, 16, 8),
    "the network's": (1, 128, 128, 32, 24, 128, 64),
    "the network's deepest": (1, 256, 256, 16, 16, 256, 128),
}


class ConvArguments:
    """Of the op, and what it has to give, in float64."""

    def __init__(self, shape, layout="channels_last", slopes=1, bias=True, dtype=torch.float32):
        n, inputs, channels, h, w, bottom, outputs = shape
        v = Values(dtype, layout)
        self.x = v.map(n, inputs, h, w)
        self.conv = v.weight(channels, inputs, 3, 3).transpose(0, 1) * 1.5, v.weight(channels)
        self.bottom = v.map(n, bottom, h, w)
        self.slope = v.weight(slopes if slopes == 1 else channels)
        self.tail = v.weight(outputs, channels, 1, 1), v.weight(outputs), v.weight(outputs, bottom, 1, 1)
        self.last_bias = v.weight(outputs)
        if not bias:
            self.conv, self.last_bias = (self.conv[0], None), None
            self.tail = self.tail[0], None, self.tail[2]
        self.shape = n, outputs, 2 * h, 2 * w

    def weights(self):
        return self.slope, *self.tail, self.last_bias

    def empty(self):
        return self.x.new_full(self.shape, float("nan")).contiguous(memory_format=torch.channels_last)

    def run_into(self, out, x, first=0, sums=None):
        engine = torch.ops.mirnet_fast_cpu
        engine.residual_up_tail_of_conv(out, x, *self.conv, self.bottom, *self.weights(), first, sums)
        return out

    def sums(self):
        return torch.full(self.shape[:2], float("nan"), dtype=torch.float64)

    def run(self):
        return self.run_into(self.empty(), self.x)

    def expected(self):
        x, bottom, *conv = (None if t is None else t.double() for t in (self.x, self.bottom, *self.conv))
        slope, *tail = (None if t is None else t.double() for t in self.weights())
        top = F.conv_transpose2d(x, *conv, stride=2, padding=1, output_padding=1)
        large = F.interpolate(bottom, scale_factor=2, mode="bilinear", align_corners=False)
        return F.conv2d(F.prelu(top, slope), *tail[:2]) + F.conv2d(large, *tail[2:])


@needs_kernels
class TestOfConv:
    """With the transposed convolution that makes the large map, one block of tiles at a time."""

    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("slopes", [1, "each"])
    @pytest.mark.parametrize("shape", CONV_SHAPES)
    def test_contract(self, shape, slopes, bias):
        a = ConvArguments(CONV_SHAPES[shape], slopes=slopes, bias=bias)
        close(a.run(), a.expected())

    @pytest.mark.parametrize("shape", CONV_SHAPES)
    def test_contract_in_bfloat16(self, shape):
        a = ConvArguments(CONV_SHAPES[shape], slopes="each", dtype=torch.bfloat16)
        sums = a.sums()
        out = a.run_into(a.empty(), a.x, sums=sums)
        if has_unit():  # what the transposed convolution hands to the tail is rounded once more
            close(out, a.expected(), 4e-3)
            return check_sums(sums, out)
        close(out, a.expected())
        # Of the output before it is rounded.
        exact = a.expected().sum((2, 3))
        assert (sums - exact).norm() <= 1e-5 * a.expected().abs().sum((2, 3)).norm()

    @pytest.mark.parametrize("shape", CONV_SHAPES)
    def test_same_as_one_after_the_other(self, shape):
        a = ConvArguments(CONV_SHAPES[shape])
        top = torch.ops.mirnet_fast_cpu.conv_transpose3x3(a.x, *a.conv)
        expected = torch.ops.mirnet_fast_cpu.residual_up_tail(top, a.bottom, *a.weights())
        assert torch.equal(a.run(), expected)

    @pytest.mark.parametrize("rows", [1, 4, 6, 7])
    def test_in_bands_of_rows(self, rows):
        a = ConvArguments(CONV_SHAPES["several blocks"])
        whole, out, height = a.run(), a.empty(), a.x.shape[2]
        for first in range(0, height, rows):
            last = min(first + rows, height)
            # The last row of a band also reads the row below it.
            x = a.x[:, :, first : last + 1]
            a.run_into(out[:, :, 2 * first : 2 * last], x, 2 * first)
        # Where tiles begin decides how they are rounded.
        close(out, whole.double(), 1e-6)

    @pytest.mark.parametrize("shape", CONV_SHAPES)
    def test_sums(self, shape):
        a = ConvArguments(CONV_SHAPES[shape])
        sums = a.sums()
        check_sums(sums, a.run_into(a.empty(), a.x, sums=sums))

    def test_sums_that_do_not_fit(self):
        a = ConvArguments(CONV_SHAPES["several blocks"])
        with pytest.raises(RuntimeError, match="residual_up_tail: sums must be contiguous float64"):
            a.run_into(a.empty(), a.x, sums=a.sums()[:, 1:])

    def test_sliced_maps(self):
        a = ConvArguments((2, 18, 35, 11, 14, 7, 5), layout="sliced")
        big = torch.full((2, 10, 24, 32), 7.0).contiguous(memory_format=torch.channels_last)
        a.run_into(big[:, 2:7, 1:23, 2:30], a.x)
        close(big[:, 2:7, 1:23, 2:30], a.expected())
        big[:, 2:7, 1:23, 2:30] = 7
        assert (big == 7).all()

    def test_threads_do_not_matter(self):
        a = ConvArguments(CONV_SHAPES["several blocks"])

        def run():
            sums = a.sums()
            return a.run_into(a.empty(), a.x, sums=sums), sums

        check_same(with_threads(run))

    def test_special_values(self):
        a = ConvArguments(CONV_SHAPES["several blocks"])
        usual = a.run()
        a.x[0, 3, 20, 10] = float("nan")
        result = a.run()
        assert result[0, :, 40, 20].isnan().all()
        far = slice(64, None)
        assert torch.equal(result[0, :, far], usual[0, :, far])
        assert torch.equal(result[1], usual[1])

    @pytest.mark.parametrize("first", [-2, 2, 1])
    def test_rows_outside(self, first):
        a = ConvArguments(CONV_SHAPES["channels beside vectors"])
        with pytest.raises(RuntimeError, match=f"residual_up_tail: .*first_row = {first}"):
            a.run_into(a.empty(), a.x, first)

    def test_too_few_rows(self):
        a = ConvArguments(CONV_SHAPES["channels beside vectors"])
        with pytest.raises(RuntimeError, match="residual_up_tail: out must be rows that x's 10 rows become"):
            a.run_into(a.empty(), a.x[:, :, 1:])

    def test_wrong_arguments(self):
        a = ConvArguments(CONV_SHAPES["channels beside vectors"])
        with pytest.raises(RuntimeError, match=r"residual_up_tail: x must have shape \(2, 18, 11, 14\)"):
            a.run_into(a.empty(), a.x[:, :, :, 1:].contiguous(memory_format=torch.channels_last))
        with pytest.raises(RuntimeError, match="residual_up_tail: x must be channels_last"):
            a.run_into(a.empty(), a.x.contiguous())
        with pytest.raises(RuntimeError, match="residual_up_tail: out must be channels_last"):
            a.run_into(a.empty().contiguous(), a.x)
        with pytest.raises(RuntimeError, match=r"residual_up_tail: weight must be .*C = 17"):
            a.run_into(a.empty(), a.x[:, :17])
        with pytest.raises(RuntimeError, match=r"residual_up_tail: conv_bias must have shape \(35\)"):
            a.conv = a.conv[0], a.conv[1][:3]
            a.run()
        with pytest.raises(RuntimeError, match="residual_up_tail: x must be float32"):
            a.run_into(a.empty(), a.x.double())

    def test_opcheck(self):
        a = ConvArguments((2, 6, 20, 8, 9, 6, 5))
        tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
        arguments = a.run(), a.x, *a.conv, a.bottom, *a.weights(), 0, a.sums().zero_()
        op = torch.ops.mirnet_fast_cpu.residual_up_tail_of_conv.default
        torch.library.opcheck(op, arguments, test_utils=tests)
