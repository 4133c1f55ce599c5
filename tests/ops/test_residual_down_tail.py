import pytest
import torch

from mirnet_fast import ops

from ..cases import first_of
from .common import gradient_maker, needs_kernels
from .subject import CPU, TRITON, Op


def weights(v, slope, top, bottom, outputs, bias):
    """Of either tail: of the PReLU, of the convolutions of top and bottom."""
    result = [v.weight(slope)]
    for channels in (top, bottom):
        result += [v.weight(outputs, channels, 1, 1), v.weight(outputs) if bias else None]
    return result


def case(n, c, h, w, outputs, slope=1, bias=False):
    return lambda v: (v.map(n, c, h, w), v.map(n, c, h, w), *weights(v, slope, c, c, outputs, bias))


RESIDUAL_DOWN_TAIL = Op(
    "residual_down_tail",
    cases={
        "plain": case(2, 16, 9, 12, 32),
        "larger": case(1, 20, 31, 97, 40),
        "tiny": case(2, 3, 4, 5, 2, slope=3, bias=True),
        "smallest": case(3, 5, 2, 2, 10),
        "wide": case(1, 65, 3, 99, 130, bias=True),
        "fewer channels out": case(1, 24, 6, 8, 7, slope=24),
        "pixels": case(1, 8, 1024, 512, 8, bias=True),
    },
    cuda_cases={
        # A pixel of more accesses than a block has threads.
        "many channels": case(1, 2056, 3, 4, 8),
        "many channels out": case(1, 8, 3, 4, 4096, slope=8, bias=True),
    },
    deep=lambda channels: case(1, channels, 4, 6, channels),
    into=True,
    sums="sums",
    products=True,
)


@RESIDUAL_DOWN_TAIL.on(CPU)
def test_one_tensor_in_both_halves(op):
    x, _, *weights = op.arguments("plain")
    op.check_close((x,), lambda op, x: op(x, x, *weights))


@RESIDUAL_DOWN_TAIL.on(CPU)
def test_one_row_cannot_be_reflected(op):
    args = op.arguments("plain")
    with pytest.raises(ValueError, match=r"top must be .* with H, W >= 2; got \(2, 16, 1, 12\)"):
        ops.residual_down_tail(args[0][:, :, :1], args[1][:, :, :1], *args[2:])


@RESIDUAL_DOWN_TAIL.on(CPU)
def test_slope_of_neither_size(op):
    args = list(op.arguments("plain"))
    args[2] = torch.zeros(7, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"slope must have shape \(1,\) or \(16,\); got \(7,\)"):
        ops.residual_down_tail(*args)


@RESIDUAL_DOWN_TAIL.on(CPU)
@needs_kernels
def test_rows(op):
    top, bottom, *others = op.arguments("larger", torch.float32, "channels_last")
    into, height = torch.ops.mirnet_fast_cpu.residual_down_tail_into, top.shape[2]
    expected = ops.residual_down_tail(top, bottom, *others)
    out = torch.full_like(expected, torch.nan)
    for begin in range(0, out.shape[2], 3):
        end, above = min(begin + 3, out.shape[2]), max(2 * begin - 2, 0)
        maps = (each[:, :, above : min(2 * end, height)] for each in (top, bottom))
        into(out[:, :, begin:end], *maps, *others, None, 2 * begin - above)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    for first_row in (1, -2, 2):
        with pytest.raises(RuntimeError, match="residual_down_tail: the rows from first_row, an even one"):
            into(out, top, bottom, *others, None, first_row)


@RESIDUAL_DOWN_TAIL.on(TRITON)
@pytest.mark.parametrize("dtype", first_of([torch.float16, torch.float32]))
def test_many_tiles_and_blocks(op, small_tiles, dtype):
    small_tiles("down", "project", "resample", "weight_gradient")
    args = case(2, 20, 7, 11, 24, slope=20, bias=True)(op.values(dtype))
    op.check_contract(args, gradient_maker("dense", dtype), draws=2)
