"""The contract of tests/tolerance.py, in every dtype and layout."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mirnet_fast

from ...cases import each, first_of, pairwise
from ...emulated_units import has_unit
from ...tolerance import distance
from ..common import (
    FLOATS,
    GPU_FLOATS,
    GRADIENTS,
    LAYOUT_PAIRS,
    LAYOUTS,
    gradient_maker,
    is_map,
    on_tensors,
    run,
    tensors,
)
from ..subject import CPU, CUDA, DEVICE, TRITON
from . import every_op


@every_op(CPU)
@pairwise(layout=LAYOUTS, gradient=GRADIENTS)
def test_float64(op, any_case, layout, gradient):
    args = op.arguments(any_case, torch.float64, layout)
    make_grad = gradient_maker(gradient, torch.float64)
    results = zip(run(op.fast, args, make_grad), run(op.reference, args, make_grad), strict=True)
    for fast, expected in results:
        scale = expected.norm().clamp_min(1e-3)
        assert (fast - expected).norm() <= 1e-11 * scale


@every_op(CPU)
@each(layouts=LAYOUT_PAIRS, dtype=FLOATS[:2])
def test_contract(op, any_case, layouts, dtype):
    layout, gradient = layouts
    args = op.arguments(any_case, dtype, layout)
    op.check_contract(args, gradient_maker(gradient, dtype), draws=3)


@every_op(TRITON, CUDA)
@each(dtype=GPU_FLOATS)
def test_contract_on_a_gpu(op, any_case, dtype):
    op.check_contract(op.arguments(any_case, dtype), gradient_maker("dense", dtype), draws=2)


@every_op(TRITON, CUDA)
@pytest.mark.parametrize(("layout", "gradient"), LAYOUT_PAIRS)
def test_layouts(op, layout, gradient):
    args = op.arguments("plain", layout=layout)
    op.check_contract(args, gradient_maker(gradient, torch.float32), draws=1)


@every_op(CPU)
@pytest.mark.parametrize("dtype", first_of(FLOATS[:2]))
def test_contract_over_many_pixels(op, dtype):
    # Here a sum over the pixels in one float32 would round more than the reference's.
    args = op.arguments("pixels", dtype, "channels_last")
    op.check_contract(args, gradient_maker("dense", dtype), draws=1)


@every_op(CUDA)
@pytest.mark.parametrize("dtype", first_of((torch.bfloat16, torch.float32)))
def test_contract_over_many_pixels_in_blocks(op, dtype):
    def fewer(value):
        height, width = value.shape[2] // 4, value.shape[3] // 4
        return value[:, :, :height, :width]

    args = op.arguments("pixels", dtype)
    if DEVICE != "cuda":  # the emulated one takes minutes for all of them
        args = on_tensors(lambda t: fewer(t) if t.dim() == 4 and t.shape[3] >= 64 else t, args)
    op.check_contract(args, gradient_maker("dense", dtype), draws=1)


@every_op(CPU)
@each(layouts=LAYOUT_PAIRS)
def test_bfloat16_is_float32_rounded_once(op, any_case, layouts):
    layout, gradient = layouts
    args = op.arguments(any_case, torch.bfloat16, layout)
    output_grad = gradient_maker(gradient, torch.bfloat16)(op.fast(*args))
    low = run(op.fast, args, lambda _: output_grad)
    single = run(op.fast, on_tensors(torch.Tensor.float, args), lambda _: output_grad.float())
    for i, (rounded, value) in enumerate(zip(low, single, strict=True)):
        if i in op.rounded_twice or (i == 0 and op.products and has_unit()):
            continue
        nearest = (value.bfloat16() - value).abs()
        # The order of float32 sums may differ between the dtypes.
        allowed = nearest + 1e-5 * value.abs().clamp_min(1e-2 * value.abs().mean())
        assert ((rounded - value).abs() <= allowed).all()


CHUNK = 32  # channels of 16 bits that come through shared memory at a time


@every_op(CUDA, where=lambda op: op.deep)
@pytest.mark.parametrize("chunks", range(1, 10))
def test_chunks(op, chunks):
    # A missing barrier or wait shows in the chunks that share a buffer, or only in the last one.
    args = op.deep(chunks * CHUNK)(op.values(torch.float16))
    op.check_contract(args, gradient_maker("dense", torch.float16), draws=1)


@every_op(CPU, where=lambda op: not op.widest)
def test_autocast(op):
    args = op.arguments("plain", torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = op.fast(*args)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, op.fast(*on_tensors(torch.Tensor.bfloat16, args)))


class Casts(TorchDispatchMode):
    """How often PyTorch was asked to cast: tensor by tensor, and several at once."""

    def __init__(self):
        super().__init__()
        self.of_one = self.of_several = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.of_one += function is torch.ops.aten._to_copy.default
        self.of_several += function is torch.ops.aten._foreach_copy_.default
        return function(*args, **(kwargs or {}))


@every_op(CPU)
@pytest.mark.parametrize("wanted", [False, True])
def test_autocast_casts_all_at_once_where_no_gradient_is_wanted(op, wanted):
    args = on_tensors(lambda t: t.requires_grad_(wanted), op.arguments("plain", torch.float32))
    if op.widest:  # as autocast's convolutions leave the maps
        args = on_tensors(lambda t: t.detach().bfloat16() if is_map(t) else t, args)
    others = sum(t.dtype == torch.float32 for t in tensors(args))
    with mirnet_fast.use_backend("cpu"), torch.autocast("cpu", dtype=torch.bfloat16), Casts() as casts:
        output = op.fast(*args)
    assert output.requires_grad == wanted
    at_once = others > 1 and not wanted
    assert (casts.of_one, casts.of_several) == ((0, 1) if at_once else (others, 0))


@every_op(CPU)
def test_autocast_to_float16(op):
    args = op.arguments("plain", torch.float32)
    oracle = op.reference(*on_tensors(torch.Tensor.double, args))
    with mirnet_fast.use_backend(None), torch.autocast("cpu", dtype=torch.float16):
        output, published = op.fast(*args), op.reference(*args)
    assert output.dtype == published.dtype
    assert distance(output, oracle) <= 2 * distance(published, oracle)
