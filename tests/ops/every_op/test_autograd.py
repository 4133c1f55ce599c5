"""What autograd asks of an op beside its gradients' values."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..common import on_tensors, tensors
from ..subject import CPU
from . import every_op


@every_op(CPU)
def test_gradcheck(op):
    args = on_tensors(lambda t: t.detach().requires_grad_(), op.arguments("tiny"))
    flat, spec = tree_flatten(args)

    def function(*values):
        values = iter(values)
        filled = [next(values) if isinstance(v, torch.Tensor) else v for v in flat]
        return op.fast(*tree_unflatten(filled, spec))

    assert gradcheck(function, tuple(tensors(args)), fast_mode=False)


@every_op(CPU)
def test_only_some_inputs_want_gradients(op):
    args = op.arguments("plain")
    flat, spec = tree_flatten(args)
    for place, value in enumerate(flat):
        if not isinstance(value, torch.Tensor):
            continue
        leaf = value.detach().requires_grad_()
        results = []
        for function in (op.fast, op.reference):
            # Not a leaf where the op gets it, and the only one that wants a gradient.
            changed = [*flat[:place], 2 * leaf, *flat[place + 1 :]]
            output = function(*tree_unflatten(changed, spec))
            results += torch.autograd.grad(output.square().sum(), leaf)
        torch.testing.assert_close(*results)
    assert not op.fast(*args).requires_grad


@every_op(CPU)
def test_backward_keeps_nothing_but_inputs(op):
    args = on_tensors(lambda t: t.detach().requires_grad_(), op.arguments("plain"))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        op.fast(*args)
    inputs = {t.data_ptr() for t in tensors(args)}
    assert kept
    assert {t.data_ptr() for t in kept} <= inputs


@every_op(CPU)
def test_double_backward_says_what_to_do(op):
    args = on_tensors(lambda t: t.detach().requires_grad_(), op.arguments("plain"))
    first = tensors(args)[0]
    (gradient,) = torch.autograd.grad(op.fast(*args).square().sum(), first, create_graph=True)
    with pytest.raises(NotImplementedError, match=rf"{op.name}: .*double backward.*reference"):
        gradient.sum().backward()
