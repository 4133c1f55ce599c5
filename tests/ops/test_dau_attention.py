import importlib

import pytest
import torch

from mirnet_fast import ops, reference

from ..cases import exhaustive, first_of
from .common import LAYOUTS, check_large_means, gradient_maker, lay_out, needs_kernels, on_tensors, run
from .subject import CPU, CUDA, TRITON, Op


def case(n, c, h, w, squeezed=2, taps=5, bias=False):
    def make(v):
        return (
            v.map(n, c, h, w),
            v.map(n, c, h, w),
            v.weight(1, 2, taps, taps),
            v.weight(squeezed, c, 1, 1),
            v.weight(squeezed) if bias else None,
            v.weight(c, squeezed, 1, 1),
            v.weight(c) if bias else None,
            v.weight(c, 2 * c, 1, 1),
            v.weight(c) if bias else None,
        )

    return make


DAU_ATTENTION = Op(
    "dau_attention",
    cases={
        "plain": case(2, 16, 9, 12),
        "larger": case(1, 20, 31, 97, bias=True),
        "tiny": case(2, 3, 3, 4, bias=True),
        "one pixel": case(3, 5, 1, 1),
        "one channel": case(1, 1, 6, 7),
        "one row": case(1, 65, 1, 49, squeezed=8),
        "three taps": case(1, 48, 5, 47, taps=3),
        "one tap": case(1, 8, 4, 4, taps=1),
        "wide": case(1, 130, 3, 48, squeezed=16, bias=True),
        "64 channels": case(1, 64, 2, 50, squeezed=8),
        "pixels": case(1, 8, 512, 512, bias=True),
    },
    deep=lambda channels: case(1, channels, 2, 3, squeezed=4),
    residual=1,
    into=True,
    sums="out_sums",
    widest=True,
    meets_padding=(3,),  # the gradient of spatial_weight
    products=True,
    rounded_twice=(1,),  # r's gradient: the pooled terms are added in a second pass
)


def without_residual(op, r, *weights):
    return op(r, None, *weights)


@DAU_ATTENTION.on(CPU)
def test_autocast(op):
    r, x, *weights = op.arguments("plain", torch.float32)
    low = [None if w is None else w.bfloat16() for w in weights]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept = ops.dau_attention(r.bfloat16(), x, *weights)
        published = reference.dau_attention(r.bfloat16(), x, *weights)
    assert kept.dtype == published.dtype == torch.float32
    assert torch.equal(kept, ops.dau_attention(r.bfloat16(), None, *low) + x)


@DAU_ATTENTION.on(CPU)
def test_no_residual(op):
    r, _, *weights = op.arguments("plain")
    op.check_close((r, *weights), without_residual)


@DAU_ATTENTION.on(TRITON, CUDA)
def test_no_residual_on_a_gpu(op):
    r, _, *weights = op.arguments("plain")
    op.check_close((r, *weights), without_residual, rtol=1e-4, atol=1e-5)


@DAU_ATTENTION.on(CPU)
def test_r_is_x(op):
    r, _, *weights = op.arguments("plain")
    op.check_close((r,), lambda op, r: op(r, r, *weights))


def check_tie(op, channels, dtype, layout):
    r, *rest = case(1, channels, 4, 49)(op.values(dtype, layout))
    r.copy_((r > 0).to(dtype))  # every pixel has many a maximum
    fast = run(op.fast, (r, *rest), torch.ones_like)[1].double()
    exact = on_tensors(lambda t: t.double(), (r, *rest))
    expected = run(op.reference, exact, torch.ones_like)[1]
    # Through the maximum comes most of the gradient: a wrong channel is no rounding.
    assert (fast - expected).norm() <= 8 * torch.finfo(dtype).eps * expected.norm()


@DAU_ATTENTION.on(CPU)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [3, 16, 37, 80])
def test_a_tie_of_the_maximum_goes_to_the_first_channel(op, channels, dtype):
    for layout in ("nchw", "channels_last"):
        check_tie(op, channels, dtype, layout)


@DAU_ATTENTION.on(TRITON, CUDA)
@pytest.mark.parametrize("channels", [3, 37, 80])
def test_a_tie_goes_to_the_first_channel_on_a_gpu(op, channels):
    check_tie(op, channels, torch.float32, "channels_last")


@DAU_ATTENTION.on(CUDA)
def test_a_tie_of_more_channels_than_a_warp_takes(op):
    check_tie(op, 260, torch.float32, "channels_last")


@DAU_ATTENTION.on(CPU)
def test_x_is_not_kept_for_the_backward(op):
    r, x, *rest = op.arguments("plain")
    x.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ops.dau_attention(r, x, *rest)
    assert x.data_ptr() not in {t.data_ptr() for t in kept}


@DAU_ATTENTION.on(CPU)
def test_even_window(op):
    args = list(op.arguments("plain"))
    args[2] = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"spatial_weight must be \(1, 2, k, k\) with odd k"):
        ops.dau_attention(*args)


@DAU_ATTENTION.on(CPU)
@needs_kernels
@pytest.mark.parametrize("name", ["plain", "larger"])
def test_given_statistics_are_taken(op, name):
    r, *others = op.arguments(name, torch.float32, "channels_last")
    into = torch.ops.mirnet_fast_cpu.dau_attention_into
    expected, out = ops.dau_attention(r, *others), torch.empty_like(r)
    pooled = torch.stack([r.amax(1), r.mean(1)], 1)
    sums = r.double().sum((2, 3))
    into(out, r, *others, pooled, sums)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    into(out, r, *others, pooled + 1, sums)
    assert not torch.allclose(out, expected, rtol=1e-3)
    for wrong, match in [
        ((pooled, None), "pooled and sums go together"),
        ((pooled[:, :1], sums), "pooled must have shape"),
        ((pooled, sums.float()), "sums must be contiguous float64"),
    ]:
        with pytest.raises(RuntimeError, match=f"dau_attention: {match}"):
            into(out, r, *others, *wrong)


@DAU_ATTENTION.on(CPU)
@needs_kernels
def test_rows_over_the_residual(op):
    r, x, *others = op.arguments("larger", torch.float32, "channels_last")
    x = r.flip(3).contiguous(memory_format=torch.channels_last)
    into, height = torch.ops.mirnet_fast_cpu.dau_attention_into, r.shape[2]
    expected, out = ops.dau_attention(r, x, *others), x.clone(memory_format=torch.preserve_format)
    pooled, sums = torch.stack([r.amax(1), r.mean(1)], 1), r.double().sum((2, 3))
    pixels = height * r.shape[3]
    for begin in range(0, height, 4):
        end, above = min(begin + 4, height), max(begin - others[0].shape[2] // 2, 0)
        around = pooled[:, :, above : end + others[0].shape[2] // 2]
        rows = out[:, :, begin:end]
        into(rows, r[:, :, begin:end], rows, *others, around, sums, None, begin - above, pixels)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for wrong, match in [
        ((around, sums, None, around.shape[2], pixels), "the rows from first_row on must lie inside"),
        ((around, sums, None, -1, pixels), "the rows from first_row on must lie inside"),
        ((around, sums, None, 0, -1), "pixels must be those of the sums"),
        ((None, None, None, 0, pixels), "pixels must be those of the sums"),
        ((None, None, None, 1, 0), "first_row is one of pooled"),
    ]:
        with pytest.raises(RuntimeError, match=f"dau_attention: {match}"):
            into(rows, r[:, :, begin:end], rows, *others, *wrong)


@pytest.fixture
def kernels():
    return importlib.import_module("mirnet_fast.kernels.dau_attention")


# Of 20 channels 32 are computed: in 2 blocks, or in one.
@DAU_ATTENTION.on(TRITON)
@pytest.mark.parametrize(
    "blocks", first_of([(3, 32, torch.float16), (1, 16, torch.float32), (100, 16, torch.float32)])
)
def test_many_tiles_and_blocks(op, monkeypatch, kernels, blocks):
    partials, bc, dtype = blocks
    small = {"TH": 4, "TW": 8, "BC": bc, "BO": 16, "BK": 16}
    small |= {"num_warps": 4, "num_stages": 2}
    full = kernels.config

    def config(name, x):
        return {key: small[key] for key in full(name, x)}

    monkeypatch.setattr(kernels, "config", config)
    monkeypatch.setattr(kernels, "PARTIALS", 4 * partials)
    monkeypatch.setattr(kernels, "SQUEEZED", 4)
    monkeypatch.setattr(kernels, "WEIGHT_VALUES", 2 * 20**2 * partials)
    args = case(2, 20, 9, 13, squeezed=6, bias=True)(op.values(dtype))
    assert kernels.stats(args[0])[1].shape == (2, min(6, 2 * partials), 20)
    op.check_contract(args, gradient_maker("dense", dtype), draws=2)


@DAU_ATTENTION.on(TRITON, CUDA)
def test_large_means(op):
    check_large_means(op, case(1, 16, 24, 32))


@DAU_ATTENTION.on(TRITON)
def test_more_channels_than_a_program_takes(op):
    args = case(1, 300, 3, 5, squeezed=40, bias=True)(op.values())
    op.check_contract(args, gradient_maker("dense", torch.float32), draws=1)


@DAU_ATTENTION.on(TRITON)
@pytest.mark.parametrize("taps", first_of([7, 9]))
def test_window_larger_than_the_image(op, taps):
    args = case(1, 6, 3, 4, taps=taps)(op.values())
    op.check_contract(args, gradient_maker("dense", torch.float32), draws=1)


@DAU_ATTENTION.on(TRITON)
def test_statistics_of_a_producer(op, kernels):
    r, x, *weights = op.arguments("plain")
    r, x = (value.contiguous(memory_format=torch.channels_last) for value in (r, x))
    pooled = torch.stack([r.amax(1), r.mean(1)], 1).contiguous()
    sums = r.double().sum((2, 3))
    expected = ops.dau_attention(r, x, *weights)
    for out in (torch.empty_like(r), r):
        out_sums = torch.ones(r.shape[:2], dtype=torch.float64)
        kernels.dau_attention_into(out, r, x, *weights, pooled, sums, out_sums)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(out_sums, 1 + expected.double().sum((2, 3)), rtol=1e-5, atol=1e-4)


@DAU_ATTENTION.on(TRITON, CUDA)
def test_residual_in_another_layout(op):
    r, x, *weights = op.arguments("plain")
    expected = ops.dau_attention(r, x, *weights)
    for layout in LAYOUTS:
        if layout != "expanded":
            assert torch.equal(ops.dau_attention(r, lay_out(x, layout), *weights), expected)
    assert torch.equal(
        ops.dau_attention(r, lay_out(x, "expanded"), *weights),
        ops.dau_attention(r, torch.cat([x[:1], x[:1]]), *weights),
    )


# The wide tile, one and two vectors a lane or any number of them, a last chunk that is not full.
KINDS = (
    (136, torch.bfloat16),
    (260, torch.float32),
    (520, torch.bfloat16),
    (64, torch.float16),
    (128, torch.float16),
    (264, torch.float16),
    (132, torch.float32),
)


@DAU_ATTENTION.on(CUDA)
@pytest.mark.parametrize("kind", first_of(KINDS, 3))
def test_channels(op, kind):
    channels, dtype = kind
    args = case(2, channels, 3, 18, squeezed=8, bias=True)(op.values(dtype))
    op.check_contract(args, gradient_maker("dense", dtype), draws=1)


# Of 128 channels in 16 bits: 7 x 7 is the last window that leaves room for the wide tile.
@DAU_ATTENTION.on(CUDA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("taps", [7, 9])
def test_large_window(op, taps, dtype):
    args = case(1, 128, 3, 18, taps=taps)(op.values(dtype))
    op.check_contract(args, gradient_maker("dense", dtype), draws=1)


@DAU_ATTENTION.on(CUDA)
@exhaustive
def test_thousands_of_channels(op):
    # More than shared memory has room for in a sum for each warp; the output only, for the
    # emulated backward of so many weights takes minutes.
    args = case(1, 4096, 1, 2, squeezed=4)(op.values())
    expected = reference.dau_attention(*on_tensors(torch.Tensor.double, args))
    torch.testing.assert_close(ops.dau_attention(*args).double(), expected, rtol=1e-4, atol=1e-4)
