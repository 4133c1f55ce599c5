"""One op, one name, in every room."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from mirnet_fast import ops, reference
from mirnet_fast.engine import in_place

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
# Of inference alone; on a GPU called by the engine without an op.
CPU_OPS = {"conv1x1", "conv3x3", "conv_transpose3x3"}
NOT_OF_CPU_OPS = {"csrc/cuda/{}.cu"}


@pytest.mark.parametrize("op", ops.OPS)
def test_every_op_is_in_every_room(op):
    assert callable(getattr(ops, op))
    assert callable(getattr(reference, op))
    assert [room.format(op) for room in ROOMS if not (ROOT / room.format(op)).exists()] == []


@pytest.mark.parametrize("op", sorted(CPU_OPS))
def test_every_cpu_op_is_in_its_rooms(op):
    rooms = [room for room in ROOMS if room not in NOT_OF_CPU_OPS]
    assert [room.format(op) for room in rooms if not (ROOT / room.format(op)).exists()] == []


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_has_an_op_that_is_not_listed(room):
    pattern = Path(room.format("[a-z]*"))
    before, after = pattern.name.split("[a-z]*")
    helpers = {
        "common",
        "convolution",
        "tap_tables",
        "isa",
        "memory",
        "gemm",
        "packed_weights",
        "matrix_unit",
        "fingerprint",
        "network",
        "training",
        "tune",
    }
    found = {
        path.name.removeprefix(before).removesuffix(after)
        for path in (ROOT / pattern.parent).glob(pattern.name)
    }
    own = set() if room in NOT_OF_CPU_OPS else CPU_OPS
    assert found - helpers == set(ops.OPS) | own


def kernels_that_write():
    """{name: schema} of the ops of the C++ library that write into their arguments."""
    sources = "".join(path.read_text() for path in sorted((ROOT / "csrc" / "cpu").glob("*.cpp")))
    names = re.findall(r"MIRNET_IMPL\((\w+)\)", sources)
    schemas = {name: getattr(torch.ops.mirnet_fast_cpu, name).default._schema for name in names}
    return {name: s for name, s in schemas.items() if any(a.alias_info for a in s.arguments)}


def test_every_kernel_that_writes_has_a_function():
    schemas = kernels_that_write()
    assert len(schemas) > 5
    for name, schema in schemas.items():
        function = getattr(in_place, name)
        assert [*inspect.signature(function).parameters] == [a.name for a in schema.arguments], name
        assert inspect.getdoc(function), name


def test_plans_call_kernels_through_these_functions_alone():
    folders = ("accelerate", "engine", "modules")
    paths = [path for folder in folders for path in (ROOT / "mirnet_fast" / folder).glob("*.py")]
    assert [p.stem for p in paths if "mirnet_fast_cpu" in p.read_text()] == ["in_place"]
