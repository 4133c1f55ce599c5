"""One op, one name, in every room."""

from pathlib import Path

import pytest

from mirnet_fast import ops, reference

ROOT = Path(__file__).parent.parent
ROOMS = (
    "mirnet_fast/ops/{}.py",
    "csrc/cpu/{}.cpp",
    "csrc/cpu/simd/{}.cpp",
    "csrc/cuda/{}.cu",
    "kernels/{}.py",
    "tests/ops/test_{}.py",
    "benches/bench_{}.py",
)


@pytest.mark.parametrize("op", ops.OPS)
def test_every_op_is_in_every_room(op):
    assert callable(getattr(ops, op))
    assert callable(getattr(reference, op))
    assert [room.format(op) for room in ROOMS if not (ROOT / room.format(op)).exists()] == []


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_has_an_op_that_is_not_listed(room):
    pattern = Path(room.format("[a-z]*"))
    before, after = pattern.name.split("[a-z]*")
    helpers = {"common", "taps", "isa", "gemm", "network", "training", "tune"}
    found = {
        path.name.removeprefix(before).removesuffix(after)
        for path in (ROOT / pattern.parent).glob(pattern.name)
    }
    assert found - helpers == set(ops.OPS)
