"""The Triton convolutions against float64: in boxes as by TMA, and by addresses."""

import os

import pytest
import torch
import torch.nn.functional as F

from .cases import each, first_of
from .ops.common import GPU_FLOATS, Values, far_apart
from .ops.convolution import SHAPES
from .ops.subject import DEVICE
from .tolerance import assert_contract, distance, moved

pytest.importorskip("triton", reason="Triton is not installed")
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without a GPU only Triton's interpreter runs them", allow_module_level=True)

from mirnet_fast.kernels import _configs, _convolution
from mirnet_fast.kernels.conv1x1 import conv1x1
from mirnet_fast.kernels.conv3x3 import conv3x3
from mirnet_fast.kernels.conv_transpose3x3 import conv_transpose3x3, residual_up_tail_of_conv
from mirnet_fast.kernels.conv_transpose3x3 import packed as packed_transposed

pytestmark = pytest.mark.untraced
# How maps are read, in a dtype in which they may be.
WAYS = {"boxes": torch.float16, "addresses": torch.float32}
TRANSPOSED = {"stride": 2, "padding": 1, "output_padding": 1}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """The dtype of a way to read maps, which is the only one where both are open."""
    if request.param == "addresses":
        monkeypatch.setattr(_configs, "has_boxes", lambda x: False)
    elif not _configs.has_boxes(torch.empty(0, device=DEVICE)):
        pytest.skip("this GPU has no boxes")
    return WAYS[request.param]


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of which a small map and few channels have many."""
    small = {"TH": 4, "TW": 4, "BK": 16, "BN": 16, "BD": 16, "num_warps": 4, "num_stages": 2}
    for kernel in ("conv3x3", "conv3x3_narrow", "conv1x1", "conv1x1_narrow", "conv_transpose3x3"):
        options = {key: small[key] for key in _configs.DEFAULT[kernel]}
        monkeypatch.setitem(_configs.trial, kernel, options)


class Conv:
    """conv3x3 or conv1x1 with everything behind it, and what it has to give."""

    def __init__(self, size, shape, dtype=torch.float32, layout="channels_last", slopes=1):
        n, inputs, outputs, h, w = shape
        v = Values(dtype, layout, device=DEVICE)
        self.size, self.x, self.residual = size, v.map(n, inputs, h, w), v.map(n, outputs, h, w)
        self.weight, self.bias = v.weight(outputs, inputs, size, size), v.weight(outputs)
        self.slope = v.weight(slopes if slopes == 1 else outputs)

    def names(self):
        return self.x, self.weight, self.bias, self.slope, self.residual

    def empty(self):
        return torch.full_like(self.residual, float("nan"), memory_format=torch.channels_last)

    def run(self, out=None, bias=True, slope=True, residual=True, **statistics):
        out = self.empty() if out is None else out
        extras = [
            t if wanted else None for t, wanted in zip(self.names()[2:], (bias, slope, residual), strict=True)
        ]
        function = conv3x3 if self.size == 3 else conv1x1
        function(out, self.x, _convolution.packed(self.weight), *extras, **statistics)
        return out

    def statistics(self):
        n, outputs, h, w = self.residual.shape
        return {
            "pooled": torch.full((n, 2, h, w), float("nan"), device=DEVICE),
            "sums": torch.zeros(n, outputs, dtype=torch.float64, device=DEVICE),
        }

    @staticmethod
    def reference(x, weight, bias=None, slope=None, residual=None):
        result = F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)
        result = result if slope is None else F.prelu(result, slope)
        return result if residual is None else result + residual


class Up:
    """conv_transpose3x3, and the residual up tail behind it."""

    def __init__(self, shape, dtype=torch.float32, layout="channels_last", slopes=1, tail=True):
        n, inputs, channels, h, w, outputs = shape
        v = Values(dtype, layout, device=DEVICE)
        self.x, self.small = v.map(n, inputs, h, w), v.map(n, outputs, h, w)
        self.weight = v.weight(channels, inputs, 3, 3).transpose(0, 1) * 1.5
        self.bias, self.slope = v.weight(channels), v.weight(slopes if slopes == 1 else channels)
        self.tail = (v.weight(outputs, channels, 1, 1), v.weight(outputs)) if tail else None
        self.shape = n, outputs if tail else channels, 2 * h, 2 * w

    def names(self):
        tail = () if self.tail is None else (*self.tail, self.small)
        return self.x, self.weight, self.bias, self.slope, *tail

    def empty(self):
        empty = torch.full(self.shape, float("nan"), dtype=self.x.dtype, device=DEVICE)
        return empty.contiguous(memory_format=torch.channels_last)

    def run(self, out=None, first_row=0, sums=None):
        out = self.empty() if out is None else out
        weight = packed_transposed(self.weight)
        if self.tail is None:
            conv_transpose3x3(out, self.x, weight, self.bias, self.slope, first_row)
        else:
            arguments = self.x, weight, self.bias, self.small, self.slope, *self.tail
            residual_up_tail_of_conv(out, *arguments, first_row=first_row, sums=sums)
        return out

    def sums(self):
        return torch.zeros(self.shape[:2], dtype=torch.float64, device=DEVICE)

    @staticmethod
    def reference(x, weight, bias, slope, tail_weight=None, tail_bias=None, small=None):
        result = F.prelu(F.conv_transpose2d(x, weight, bias, **TRANSPOSED), slope)
        if tail_weight is None:
            return result
        large = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
        return F.conv2d(result, tail_weight, tail_bias) + large


def check_contract(subject, result, names=None, draws=2):
    """Of the numerics (tolerance.py), for these arguments of its reference."""
    names = subject.names() if names is None else names
    generator = torch.Generator().manual_seed(3)

    def oracle(values):
        return subject.reference(*(None if v is None else v.double() for v in values))

    def changed(function):
        return [None if v is None else function(v) for v in names]

    nearby = [names, *(changed(lambda t: moved(t, generator, ulps=2).to(t.dtype)) for _ in range(draws))]
    errors = [distance(subject.reference(*v), oracle(v)) for v in nearby]
    moved_oracles = [oracle(changed(lambda t: moved(t, generator))) for _ in range(draws)]
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert_contract("output", result, oracle(names), errors, moved_oracles)


def close(actual, expected):
    bound = 3e-6 if actual.dtype == torch.float32 else 1e-3
    error = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert error <= bound, f"relative error {error:.1e}"


def double(values):
    return [None if v is None else v.double() for v in values]


CONV_SHAPES = SHAPES | {"boxes of 16": (1, 48, 20, 5, 9)}
UP_SHAPES = {
    "one pixel": (3, 8, 8, 1, 1, 4),
    "one row": (1, 16, 16, 1, 37, 8),
    "one column": (2, 16, 33, 35, 1, 65),
    "channels beside vectors": (2, 18, 35, 11, 14, 5),
    "wide": (1, 16, 16, 9, 40, 8),
    "the network's": (1, 128, 128, 8, 12, 64),
    "more outputs than a program has": (1, 32, 24, 5, 6, 140),
}


class TestConv:
    @each(shape=list(CONV_SHAPES), dtype=GPU_FLOATS, size=(3, 1))
    def test_contract(self, shape, dtype, size, way):
        a = Conv(size, CONV_SHAPES[shape], dtype, slopes=1 if size == 3 else "each")
        check_contract(a, a.run())

    @pytest.mark.parametrize("name", ["bias", "slope", "residual"])
    def test_each_part_of_the_epilogue(self, name, way):
        a = Conv(3, (1, 16, 20, 6, 7), way, slopes="each")
        chosen = {part: part == name for part in ("bias", "slope", "residual")}
        parts = [t if chosen[part] else None for t, part in zip(a.names()[2:], chosen, strict=True)]
        check_contract(a, a.run(**chosen), [*a.names()[:2], *parts])

    @pytest.mark.parametrize("size", [3, 1])
    @pytest.mark.parametrize("dtype", first_of([None, *GPU_FLOATS]))
    def test_many_tiles_and_blocks(self, size, dtype, way, small_tiles):
        a = Conv(size, (2, 32, 20, 3, 5), dtype or way, slopes="each")
        check_contract(a, a.run())

    @pytest.mark.parametrize("dtype", first_of([None, *GPU_FLOATS]))
    @pytest.mark.parametrize("shape", first_of([(2, 16, 20, 3, 5), (1, 3, 35, 3, 12)]))
    def test_statistics(self, shape, dtype, way, small_tiles):
        """Of a program's blocks of outputs, of the output as it was rounded: the maximum is exact."""
        a = Conv(3, shape, dtype or way)
        a.residual -= 20  # so that outputs that are not there would be the largest
        statistics = a.statistics()
        out = a.run(**statistics)
        assert torch.equal(out, a.run())
        pooled, sums = statistics["pooled"], statistics["sums"]
        assert torch.equal(pooled[:, 0], out.float().amax(1))
        torch.testing.assert_close(pooled[:, 1].double(), out.double().mean(1), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(sums, out.double().sum((2, 3)), rtol=1e-5, atol=1e-4)
        a.run(sums=sums)  # added to what is there, whatever else is asked for
        torch.testing.assert_close(sums, 2 * out.double().sum((2, 3)), rtol=1e-5, atol=2e-4)

    def test_sums_of_float16_are_exact(self, small_tiles):
        """So that the order of the programs does not show."""
        a = Conv(1, (1, 16, 16, 20, 16), torch.float16)
        sums = a.statistics()["sums"]
        out = a.run(sums=sums)
        tiles = out.float().unflatten(2, (5, 4)).unflatten(4, (4, 4)).sum((3, 5))
        assert torch.equal(sums, tiles.double().sum((2, 3)))

    @pytest.mark.parametrize("offset", [0, 2])
    def test_slices_of_larger_maps(self, offset, way):
        """Aligned for boxes or not: what lies around is NaN and not read, and not written."""
        a = Conv(3, (2, 32, 24, 6, 9), way)
        channels_last = torch.channels_last
        around = torch.full((2, 64, 9, 14), float("nan"), dtype=way, device=DEVICE).contiguous(
            memory_format=channels_last
        )
        view = around[:, 16 + offset : 48 + offset, 1:7, 2:11]
        a.x = view.copy_(a.x)
        big = torch.full((2, 40, 9, 13), 7.0, dtype=way, device=DEVICE).contiguous(
            memory_format=channels_last
        )
        out = big[:, 8 + offset : 32 + offset, 2:8, 3:12]
        by_boxes = _convolution.in_boxes(a.x, _convolution.packed(a.weight))
        assert by_boxes is (way == WAYS["boxes"] and offset == 0)
        a.run(out)
        close(out, a.reference(*double(a.names())))
        out.fill_(7.0)
        assert (big == 7).all()

    def test_residual_may_be_the_output(self, way):
        a = Conv(3, (1, 32, 67, 9, 10), way)
        expected = a.reference(*double(a.names()))
        close(a.run(a.residual), expected)

    @pytest.mark.parametrize("rows", first_of([4, 1, 5]))
    def test_in_bands_of_rows(self, rows, way):
        a = Conv(3, (2, 16, 35, 13, 10), way)
        expected, whole = a.statistics(), a.empty()
        a.run(whole, **expected)
        out, statistics, residual = a.empty(), a.statistics(), a.residual
        for first in range(0, 13, rows):
            band = slice(first, min(first + rows, 13))
            a.residual = residual[:, :, band]
            pooled = statistics["pooled"][:, :, band]
            a.run(out[:, :, band], pooled=pooled, sums=statistics["sums"], first_row=first)
        close(out, whole)
        torch.testing.assert_close(statistics, expected, rtol=1e-5, atol=1e-4)

    @pytest.mark.parametrize("special", [float("nan"), float("inf")])
    def test_special_values_go_where_pytorch_has_them(self, special, way):
        """At the first pixel, which padding may read, and at the last."""
        a = Conv(3, (2, 16, 18, 11, 13), way)
        for place in ((0, 0, 0, 0), (1, 5, 10, 12)):
            a.x[place] = special
        statistics = a.statistics()
        out, expected = a.run(**statistics), a.reference(*double(a.names()))
        torch.testing.assert_close(out.double(), expected, rtol=2e-3, atol=2e-3, equal_nan=True)
        assert (~expected.isfinite()).sum() == 2 * 4 * 18
        torch.testing.assert_close(statistics["pooled"][:, 0], out.float().amax(1), equal_nan=True)
        torch.testing.assert_close(
            statistics["sums"], out.double().sum((2, 3)), rtol=1e-4, atol=1e-3, equal_nan=True
        )

    def test_offsets_beyond_32_bits(self, way):
        a = Conv(3, (3, 16, 16, 3, 4), way)
        expected = a.reference(*double(a.names()))
        a.x, a.residual, out = far_apart([a.x, a.residual, a.empty()])
        close(a.run(out), expected)

    def test_empty_batch(self):
        a = Conv(3, (0, 3, 5, 8, 8))
        assert a.run(**a.statistics()).shape == (0, 5, 8, 8)

    WRONG = {
        "x must be a channels_last .N, C, H, W.; got .2, 6, 8, 9. with strides": {
            "x": lambda t: t.contiguous()
        },
        "x must be float16, bfloat16 or float32; got torch.float64": {"x": lambda t: t.double()},
        "weight, as `packed` gives it, must be .7, 9, 6.,.*; got .7, 6, 3, 3.": {"weight": lambda t: t},
        "bias must be .7,., contiguous, torch.float32.*; got .1,.": {"bias": lambda t: t[:1]},
        "slope must be .7,.,.*; got .2,.": {"slope": lambda t: t[:2]},
        "residual must be .2, 7, 8, 9., torch.float32.*; got .*float64": {"residual": lambda t: t.double()},
        "residual must be channels_last": {"residual": lambda t: t.contiguous()},
        "out must be .2, 7, 8, 9.,.*; got .1, 7, 8, 9.": {"out": lambda t: t[:1]},
        "pooled must be .2, 2, 8, 9., torch.float32.*; got .2, 1, 8, 9.": {"pooled": lambda t: t[:, :1]},
        "pooled's rows must be contiguous": {"pooled": lambda t: t.mT.contiguous().mT},
        "sums must be .2, 7., contiguous, torch.float64.*; got .*float32": {"sums": lambda t: t.float()},
        "first_row on must lie inside the 8 there are; got first_row = 1": {"first_row": lambda t: 1},
    }

    @pytest.mark.parametrize("message", WRONG)
    def test_wrong_arguments_are_named(self, message):
        a = Conv(3, (2, 6, 7, 8, 9), slopes="each")
        names = ("x", "weight", "bias", "slope", "residual")
        given = dict(zip(names, a.names(), strict=True)) | {
            "out": a.empty(),
            **a.statistics(),
            "first_row": 0,
        }
        given["weight"] = _convolution.packed(a.weight)
        for name, change in self.WRONG[message].items():
            given[name] = change(a.weight if name == "weight" else given[name])
        with pytest.raises((TypeError, ValueError), match=f"conv3x3: .*{message}"):
            conv3x3(**given)


class TestTransposed:
    @each(shape=list(UP_SHAPES), dtype=GPU_FLOATS, tail=(True, False))
    def test_contract(self, shape, dtype, tail, way):
        a = Up(UP_SHAPES[shape], dtype, tail=tail, slopes=1 if tail else "each")
        check_contract(a, a.run())

    @pytest.mark.parametrize("tail", first_of([True, False]))
    @pytest.mark.parametrize("dtype", first_of([None, *GPU_FLOATS]))
    def test_many_tiles_and_blocks(self, tail, dtype, way, small_tiles):
        a = Up((1, 32, 20, 3, 5, 20), dtype or way, tail=tail, slopes="each")
        check_contract(a, a.run())

    def test_without_biases(self, way):
        a = Up((1, 16, 20, 5, 6, 8), way)
        a.bias, a.tail = None, (a.tail[0], None)
        check_contract(a, a.run())

    def test_sums(self, way, small_tiles):
        a = Up((1, 16, 16, 3, 5, 20), way)
        sums = a.sums()
        out = a.run(sums=sums)
        assert torch.equal(out, a.run())
        torch.testing.assert_close(sums, out.double().sum((2, 3)), rtol=1e-5, atol=1e-4)

    @pytest.mark.parametrize("tail", first_of([True, False]))
    @pytest.mark.parametrize("rows", first_of([3, 1, 4]))
    def test_in_bands_of_rows(self, tail, rows, way):
        a = Up((2, 16, 20, 7, 6, 8), way, tail=tail)
        whole, out = a.run(), a.empty()
        for first in range(0, 7, rows):
            last = min(first + rows, 7)
            a.run(out[:, :, 2 * first : 2 * last], first_row=first)
        close(out, whole)

    def test_slices_of_larger_maps(self, way):
        a = Up((2, 18, 35, 5, 6, 7), way, layout="sliced")
        big = torch.full((2, 12, 12, 16), 7.0, dtype=way, device=DEVICE).contiguous(
            memory_format=torch.channels_last
        )
        out = big[:, 2:9, 1:11, 3:15]
        a.run(out)
        close(out, a.reference(*double(a.names())))
        out.fill_(7.0)
        assert (big == 7).all()

    @pytest.mark.parametrize("special", [float("nan"), float("inf")])
    def test_special_values_go_where_pytorch_has_them(self, special, way):
        """Beyond the last channel, which no vector ends at, there are none."""
        a = Up((2, 16, 18, 5, 6, 5), way)
        for weight in (a.weight, a.slope, a.tail[0]):
            weight.abs_()  # so that an infinity is one afterwards
        for place in ((0, 0, 0, 0), (1, 5, 4, 5)):
            a.x[place] = special
        out, expected = a.run(), a.reference(*double(a.names()))
        finite = expected.isfinite()
        assert torch.equal(out.isfinite(), finite)
        assert (~finite).flatten(2).any(1).sum() in range(9, 2 * 9)
        close(out[finite], expected[finite])
        assert torch.equal(out.isnan(), expected.isnan())

    def test_offsets_beyond_32_bits(self, way):
        a = Up((3, 16, 16, 3, 4, 16), way)
        expected = a.reference(*double(a.names()))
        a.x, a.small, out = far_apart([a.x, a.small, a.empty()])
        close(a.run(out), expected)

    @pytest.mark.parametrize("tail", [True, False])
    def test_empty_batch(self, tail):
        a = Up((0, 3, 5, 8, 8, 4), tail=tail)
        assert a.run().shape == a.shape

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"small": lambda t: t[:, :, 1:]}, "small must be .2, 5, 4, 6.,.*; got .2, 5, 3, 6."),
            ({"small": lambda t: t.contiguous()}, "small must be channels_last"),
            ({"top_weight": lambda t: t[:, 1:]}, "top_weight must be .5, 7, 1, 1.,.*; got .5, 6, 1, 1."),
            ({"top_bias": lambda t: t[1:]}, "top_bias must be .5,.,.*; got .4,."),
            ({"out": lambda t: t[:, :, :7]}, "out must be .2, 5, 6, 12.,.*; got .2, 5, 7, 12."),
            ({"sums": lambda t: t[:, 1:]}, "sums must be .2, 5., contiguous"),
        ],
    )
    def test_wrong_arguments_are_named(self, change, message):
        a = Up((2, 6, 7, 4, 6, 5))
        given = {"out": a.empty(), "x": a.x, "conv_weight": packed_transposed(a.weight), "conv_bias": a.bias}
        given |= {"small": a.small, "slope": a.slope, "top_weight": a.tail[0], "top_bias": a.tail[1]}
        given |= {"sums": a.sums()}
        given |= {name: function(given[name]) for name, function in change.items()}
        with pytest.raises(ValueError, match=f"residual_up_tail_of_conv: {message}"):
            residual_up_tail_of_conv(**given)


class TestPacked:
    def test_a_channels_last_weight_stays_where_it_is(self):
        weight = torch.randn(5, 16, 3, 3).contiguous(memory_format=torch.channels_last)
        packed = _convolution.packed(weight)
        assert packed.data_ptr() == weight.data_ptr()
        assert packed.shape == (5, 9, 16) and packed.is_contiguous()
        assert torch.equal(packed[:, 5], weight[:, :, 1, 2])
        assert torch.equal(_convolution.packed(weight.contiguous()), packed)

    @pytest.mark.parametrize("shape", [(5, 1, 3, 3), (1, 5, 3, 3), (4, 6, 1, 1), (1, 1, 1, 1)])
    def test_of_any_size(self, shape):
        packed = _convolution.packed(torch.randn(shape))
        assert packed.shape == (shape[0], shape[2] ** 2, shape[1]) and packed.is_contiguous()

    def test_of_a_transposed_convolution(self):
        weight = torch.randn(16, 5, 3, 3)
        assert torch.equal(packed_transposed(weight)[:, 5], weight[:, :, 1, 2].T)


class TestOptions:
    """On a GPU with 132 multiprocessors."""

    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch):
        monkeypatch.setattr(_configs, "INTERPRETED", False)
        monkeypatch.setattr(_configs, "_known", dict)
        monkeypatch.setattr(_configs, "_device_name", lambda index: None)
        monkeypatch.setattr(_configs, "_capability", lambda index: (9, 0))
        monkeypatch.setattr(_configs, "_multiprocessors", lambda index: 132)

    def options(self, channels, size, whole=False):
        x = torch.empty(1, channels, 1, 1, dtype=torch.float16)
        return _convolution.options("conv3x3", x, channels, 9, True, size, whole)

    def test_are_a_few_for_all_sizes(self):
        sizes = [(n, h, w) for n in (1, 8) for h in (1, 64, 100, 1000) for w in (7, 64, 3000)]
        for whole in (False, True):
            found = {tuple(self.options(256, size, whole).items()) for size in sizes}
            assert 2 <= len(found) <= 3

    def test_of_few_tiles(self):
        assert self.options(256, (1, 64, 64))["BN"] == 64
        assert self.options(256, (1, 96, 96))["BN"] == 256
        assert self.options(128, (1, 128, 128))["BN"] == 128
        assert self.options(256, (1, 64, 64), whole=True)["TH"] == 4
        assert self.options(256, (1, 64, 64), whole=True)["BN"] == 256
