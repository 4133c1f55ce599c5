"""The launch that copies tensors of any strides to where kernels read them, and clears others."""

import os

import pytest
import torch

from .cases import first_of
from .ops.subject import DEVICE

pytest.importorskip("triton", reason="Triton is not installed")
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without a GPU only Triton's interpreter runs it", allow_module_level=True)

from mirnet_fast.kernels._gather import COLUMNS, ROWS, Gathering

pytestmark = pytest.mark.untraced


def weight(*shape, dtype=torch.float32, last=False):
    value = torch.randn(shape, device=DEVICE).to(dtype)
    return value.contiguous(memory_format=torch.channels_last) if last else value


@pytest.mark.parametrize("dtype", first_of([torch.float16, torch.bfloat16, torch.float32]))
def test_every_value_comes_to_its_place(dtype):
    """More than a program takes of rows, or of columns, or one; special values have their bits."""
    outputs, inputs = ROWS // 9 + 2, COLUMNS + 3
    sources = [
        weight(outputs, inputs, 3, 3, dtype=dtype).permute(0, 2, 3, 1),
        weight(outputs, inputs, 3, 3, dtype=dtype, last=True).permute(0, 2, 3, 1),
        weight(inputs, outputs, 3, 3, dtype=dtype).transpose(0, 1).permute(0, 2, 3, 1),
        weight(5, inputs, 1, 1, dtype=dtype).permute(0, 2, 3, 1),
        weight(1, 2, 5, 5, dtype=dtype, last=True),
        weight(1, dtype=dtype).expand(inputs),
        weight(COLUMNS, dtype=dtype),
        weight(1, dtype=dtype),
        torch.tensor([float("nan"), float("inf"), -0.0], device=DEVICE).to(dtype),
    ]
    whole = [torch.full((s.numel() + 2,), 7, dtype=dtype, device=DEVICE) for s in sources]
    targets = [t[1:-1].view(s.shape) for t, s in zip(whole, sources, strict=True)]
    gathering = Gathering(targets, sources)
    for _ in range(2):
        gathering.run()
        for all_of_it, target, source in zip(whole, targets, sources, strict=True):
            torch.testing.assert_close(target, source, rtol=0, atol=0, equal_nan=True)
            assert all_of_it[0] == all_of_it[-1] == 7  # what lies beside it
        for source in sources[:-1]:
            source[:1].mul_(2)


@pytest.mark.parametrize("count", [1, 3, 2 * COLUMNS])
def test_what_has_no_source_is_cleared(count):
    sums = torch.full((count + 2,), float("nan"), dtype=torch.float64, device=DEVICE)
    target, source = torch.empty(3, dtype=torch.float16, device=DEVICE), weight(3, dtype=torch.float16)
    Gathering([sums[1:-1].view(torch.float16), target], [None, source]).run()
    assert (sums[1:-1] == 0).all() and sums[[0, -1]].isnan().all()
    assert torch.equal(target, source)
