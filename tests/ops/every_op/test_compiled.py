"""torch.library's own check, torch.compile and torch.export."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from ...cases import each, exhaustive, first_of
from ..common import LAYOUTS, on_tensors, run
from ..subject import CPU, CUDA, TRITON
from . import every_op

# Of opcheck's tests those that ask a backend's kernel something; what is registered is the same for all.
OF_A_KERNEL = "test_schema", "test_faketensor"


@every_op(CPU)
@pytest.mark.parametrize("layout", first_of(("sliced", "nchw", "channels_last")))
def test_opcheck(op, layout):
    args = op.arguments("tiny", torch.float32, layout)
    torch.library.opcheck(op.overload, op.direct(args))
    torch.library.opcheck(op.backward_overload, op.direct_backward(args))
    args = on_tensors(lambda t: t.detach().requires_grad_(), args)
    torch.library.opcheck(op.overload, op.direct(args))


@every_op(TRITON, CUDA)
def test_opcheck_on_a_gpu(op):
    args = op.arguments("tiny")
    torch.library.opcheck(op.overload, op.direct(args), test_utils=OF_A_KERNEL)
    torch.library.opcheck(op.backward_overload, op.direct_backward(args), test_utils=OF_A_KERNEL)


@exhaustive
@every_op(TRITON, CUDA)
def test_opcheck_with_gradients_on_a_gpu(op):
    args = on_tensors(lambda t: t.detach().requires_grad_(), op.arguments("tiny"))
    torch.library.opcheck(op.overload, op.direct(args))


@every_op(TRITON, CUDA)
@pytest.mark.parametrize("layout", first_of(LAYOUTS, 2))
def test_strides_of_the_output_are_those_of_the_fake(op, layout):
    args = op.direct(op.arguments("plain", layout=layout))
    with FakeTensorMode() as mode:
        fake = on_tensors(mode.from_tensor, args)
        promised = [op.overload(*fake), *op.backward_overload(*op.direct_backward(fake))]
    kept = [op.overload(*args), *op.backward_overload(*op.direct_backward(args))]
    assert [t.stride() for t in kept] == [t.stride() for t in promised]


def check_compiled(op, compiled, args):
    pairs = zip(run(compiled, args, torch.ones_like), run(op.fast, args, torch.ones_like), strict=True)
    for actual, expected in pairs:
        assert torch.equal(actual, expected)
        assert actual.stride() == expected.stride()


@every_op(CPU)
@each(dynamic=[False, True], backend=["aot_eager", "inductor"])
def test_compile(op, dynamic, backend):
    torch.compiler.reset()
    compiled = torch.compile(op.fast, fullgraph=True, dynamic=dynamic, backend=backend)
    for name in ("plain", "larger") if dynamic else ("plain",):
        check_compiled(op, compiled, op.arguments(name, torch.float32, "channels_last"))


@every_op(TRITON, CUDA)
def test_compile_on_a_gpu(op):
    torch.compiler.reset()
    check_compiled(op, torch.compile(op.fast, fullgraph=True, backend="aot_eager"), op.arguments("plain"))


@every_op(CPU)
@pytest.mark.parametrize("strict", [False, True])
def test_export(op, strict):
    function = op.fast

    class Network(torch.nn.Module):
        def forward(self, *values):
            return function(*values)

    def of_any_size(value):
        is_map = isinstance(value, torch.Tensor) and value.dim() == 4 and value.shape[3] > 5
        return dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO) if is_map else None

    args = tuple(op.arguments("plain", torch.float32))
    sizes = tree_map(of_any_size, args)
    program = torch.export.export(Network(), args, dynamic_shapes={"values": sizes}, strict=strict)
    assert f"mirnet_fast_cpu.{op.name}" in str(program.graph)
    larger = on_tensors(lambda t: t.repeat(2, 1, 3, 2) if of_any_size(t) else t, args)
    for values in (args, larger):
        assert torch.equal(program.module()(*values), op.fast(*values))
