"""The Triton kernels move no more than they must, counted from their own addresses."""

import importlib.util
import os

import pytest

from mirnet_fast.ops import OPS

from .audit import traffic as audit
from .cases import each, first_of

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("counts in Triton's interpreter; set TRITON_INTERPRET=1", allow_module_level=True)


# The fewest and the most channels of the network.
@pytest.mark.untraced
@each(op=OPS, call=[(0, "forward"), (0, "backward"), (1, "forward"), (1, "backward")])
def test_nothing_is_wrong(op, call):
    if why := audit.written(op):
        pytest.skip(why)
    row = audit.audit(op, *call)
    found = audit.problems(row)
    assert not found, "\n".join(audit.table([row]) + found)


CONVOLUTIONS = [
    ("conv3x3", "statistics"),
    ("conv_transpose3x3", "tail"),
    ("conv1x1", "slope"),
    ("conv3x3", "slope"),
    ("conv3x3", "residual"),
    ("conv_transpose3x3", "slope"),
]


@pytest.mark.untraced
@pytest.mark.parametrize("place", first_of([0, 1]))
@pytest.mark.parametrize("call", first_of(CONVOLUTIONS, 3))
def test_nothing_is_wrong_with_convolutions(call, place):
    row = audit.audit(call[0], place, call[1])
    found = audit.problems(row)
    assert not found, "\n".join(audit.table([row]) + found)


ROW = {
    "op": "blur_pool",
    "direction": "forward",
    "channels": 64,
    "floor": 1.25,
    "recorded": {"launch": 1.25, "program": 1.33},
    "launch": 1.25,
    "program": 1.33,
    "between": 0.0,
    "torch": 0.0,
}


def test_a_good_row_has_no_problems():
    assert audit.problems(ROW) == []
    assert audit.problems(ROW | {"op": "residual_up_tail", "program": 1.5, "between": 0.2})[1:] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"program": 1.38}, "each program moves 1.380 maps; the floor is 1.25"),
        ({"program": 1.34}, "each program moves 1.340 maps; recorded are 1.33"),
        ({"launch": 1.5}, "each launch moves 1.500 maps; recorded are 1.25"),
        ({"launch": 1.0}, "each launch moves 1.000 maps, less than the floor"),
        ({"torch": 0.5}, "operators of PyTorch move 0.500 maps"),
    ],
)
def test_a_bad_row_is_found(change, message):
    assert any(message in text for text in audit.problems(ROW | change))


def test_bytes_are_counted_as_they_are():
    """A kernel whose traffic is known: overlapping windows of a map, a masked store, a copy by torch."""
    torch, triton = pytest.importorskip("torch"), pytest.importorskip("triton")
    tl = triton.language

    @triton.jit
    def windows(x, out, C: tl.constexpr):
        p = tl.program_id(0) * 16 + tl.arange(0, 32)  # every window has half of the next
        c = tl.arange(0, C)
        place = p[:, None] * C + c[None, :]
        value = tl.load(x + place, mask=(p < 128)[:, None], other=0)
        value += tl.load(x + place, mask=(p < 128)[:, None], other=0)
        tl.store(out + place, value, mask=(p % 32 < 16)[:, None] & (p < 128)[:, None])

    windows.fn.__globals__["tl"] = tl
    x = torch.zeros(1, 32, 8, 16, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    out = torch.zeros_like(x)
    with audit.recording() as recorder:
        windows[(8,)](x, out, C=32)
        x.clone(memory_format=torch.preserve_format)
    amounts = audit.amounts(recorder, {audit.start_of(x)}, unit=x.numel() * 2)
    assert amounts["launches"] == [["windows", {"x read": 1.875, "out written": 0.875}]]
    assert amounts["program"] == 1.875 + 0.875 and amounts["between"] == 0.875
    assert amounts["launch"] == 1.5
    assert amounts["asked"] == 2 * 1.875 + 0.875
    assert amounts["torch"] == 2
