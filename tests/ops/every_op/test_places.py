"""Where the values of a map lie in memory: far apart, at one place, nowhere."""

import importlib
import sys

import pytest
import torch

from ...cases import first_of
from ..common import (
    FLOATS,
    LAYOUTS,
    check_same,
    far_apart,
    gradient_maker,
    is_map,
    on_tensors,
    run,
    tensors,
)
from ..subject import CPU, CUDA, TRITON
from . import every_op


def check_images_far_apart(op, args):
    """What comes of an image does not depend on where it lies: no offset of it is of 32 bits."""

    def three(value):
        images = torch.cat([value, value])[:3]
        return images.contiguous(memory_format=torch.channels_last)

    args = on_tensors(lambda t: three(t) if is_map(t) else t, args)
    maps = [t for t in tensors(args) if is_map(t)]
    moved = dict(zip(map(id, maps), far_apart(maps), strict=True))
    grad = gradient_maker("dense", maps[0].dtype)(op.fast(*args))
    [moved_grad] = far_apart([grad])
    expected = run(op.fast, args, lambda _: grad)
    actual = run(op.fast, on_tensors(lambda t: moved.get(id(t), t), args), lambda _: moved_grad)
    check_same([expected, actual])


@every_op(CPU)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_images_far_apart(op, dtype):
    check_images_far_apart(op, op.arguments("plain", dtype, "channels_last"))


@every_op(TRITON, CUDA)
@pytest.mark.parametrize("dtype", first_of((torch.float16, torch.float32, torch.bfloat16)))
def test_images_far_apart_on_a_gpu(op, dtype):
    check_images_far_apart(op, op.arguments("plain", dtype))


@every_op(TRITON)
def test_wide_offsets(op, monkeypatch):
    # As for an image of 2**31 values and more.
    args = op.arguments("plain")
    expected = run(op.fast, args, torch.ones_like)
    common = importlib.import_module("mirnet_fast.kernels._common")
    asked = []
    wide = common.tl.int64
    for name, module in list(sys.modules.items()):
        if name.startswith("mirnet_fast.kernels.") and hasattr(module, "offset_type"):
            monkeypatch.setattr(module, "offset_type", lambda *maps: asked.append(maps) or wide)
    actual = run(op.fast, args, torch.ones_like)
    assert len(asked) >= 2
    check_same([expected, actual])


@every_op(CPU)
def test_pixels_that_lie_at_one_place(op):
    # A row's distance from pixel to pixel is 0, which no loop may take for "packed".
    args = op.arguments("plain", torch.float32, "channels_last")
    args = on_tensors(lambda t: t[..., :1].expand(t.shape) if is_map(t) else t, args)
    op.check_contract(args, gradient_maker("dense", torch.float32), draws=1)


@every_op(CPU, TRITON, CUDA)
def test_empty_batch(op):
    args = on_tensors(lambda t: t[:0] if is_map(t) else t, op.arguments("plain"))
    values = run(op.fast, args, torch.ones_like)
    assert values[0].shape[0] == 0
    assert all(torch.all(v == 0) for v in values if v.numel())


@every_op(CPU)
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_strides_of_the_output_follow_the_input(op, layout):
    output = op.fast(*op.arguments("plain", torch.float32, layout))
    wanted = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert output.is_contiguous(memory_format=wanted)
