"""Arguments that an op or a backend does not take are told by name, and reach no loop."""

import pytest
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

import mirnet_fast
from mirnet_fast import backends

from ..common import on_tensors
from ..subject import CPU, CUDA, TRITON
from . import every_op


@every_op(CPU)
def test_float16_has_no_kernels(op):
    args = op.arguments("plain", torch.float16)
    with pytest.raises(backends.BackendError, match=rf"{op.name}: .*'cpu'.*float16"):
        op.fast(*args)
    with mirnet_fast.use_backend(None):
        assert op.fast(*args).dtype == torch.float16


@every_op(TRITON, CUDA)
def test_float64_has_no_kernels(op):
    with pytest.raises(backends.BackendError, match=rf"{op.name}: .*'{op.backend.name}'.*float64"):
        op.fast(*op.arguments("plain", torch.float64))


@every_op(CPU)
def test_mixed_dtypes_and_devices(op):
    args = op.arguments("plain", torch.float32)
    flat, spec = tree_flatten(args)
    places = [i for i, value in enumerate(flat) if isinstance(value, torch.Tensor)][1:]
    for place in places:
        for change, error in ((torch.Tensor.double, TypeError), (lambda t: t.to("meta"), ValueError)):
            changed = list(flat)
            changed[place] = change(flat[place])
            with pytest.raises(error, match=rf"^{op.name}: .* must be .* got "):
                op.fast(*tree_unflatten(changed, spec))


@every_op(CPU)
def test_wrong_tensors_reach_no_loop(op):
    args = op.direct(op.arguments("tiny", torch.float32))
    changes = (lambda t: t[None], lambda t: torch.cat([t, t, t]), lambda t: t[:0], torch.Tensor.double)
    calls = ((op.overload, args), (op.backward_overload, op.direct_backward(args)))
    for call, values in calls:
        flat, spec = tree_flatten(values)
        places = [i for i, value in enumerate(flat) if isinstance(value, torch.Tensor)]
        for place in places:
            # A first map that is alone may have any batch and dtype.
            alone = len(places) == 1
            for change in changes[:1] if alone else changes:
                changed = [*flat[:place], change(flat[place]), *flat[place + 1 :]]
                with pytest.raises(RuntimeError, match=f"{op.name}: "):
                    call(*tree_unflatten(changed, spec))


@every_op(CPU)
def test_wrong_shapes_are_named(op):
    args = op.arguments("plain", torch.float32)
    flat, spec = tree_flatten(args)
    for place, value in enumerate(flat):
        if isinstance(value, torch.Tensor):
            changed = [*flat[:place], value.unsqueeze(0), *flat[place + 1 :]]
            with pytest.raises(ValueError, match=rf"^{op.name}: \w.* must .*; got "):
                op.fast(*tree_unflatten(changed, spec))


@every_op(CPU)
def test_integers_are_refused(op):
    args = on_tensors(lambda t: t.long(), op.arguments("plain"))
    with pytest.raises(TypeError, match=rf"^{op.name}: .* floating point; got torch.int64"):
        op.fast(*args)
