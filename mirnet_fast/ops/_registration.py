"""How every fused op is made known to PyTorch, and how a call reaches a backend.

An op NAME of a kernel backend B is `torch.ops.mirnet_fast_B.NAME`, and its gradient
`NAME_backward(grad, <the same arguments>) -> Tensor[]`: one gradient for each tensor among the
arguments, in their order. The backward recomputes what it needs from the arguments; nothing
else is saved. The schema stands here once; C++ only adds kernels to it.
"""

import importlib
from typing import Any

import torch

from .. import backends, reference
from ._checks import like

KERNEL_BACKENDS = ("cpu", "triton", "cuda")

_libraries = {b: torch.library.Library(f"mirnet_fast_{b}", "FRAGMENT") for b in KERNEL_BACKENDS}
_overloads = {}


def register(name, arguments, output_shape, check, residual=None):
    """Define `name(arguments) -> Tensor` and its backward in every kernel backend.

    Args:
        arguments: the schema's arguments; the first tensor gives dtype, device and memory format
            of the output.
        output_shape: function of the op's arguments that returns the output's shape.
        check: function of the op's arguments that raises what does not fit. The C++ kernels check too,
            as they may be called without it.
        residual: index of an argument that is only added to the output. Its gradient is the
            output's, so the backward neither takes it nor computes anything for it.
    """
    signature = ", ".join(arguments)
    kept = ", ".join(a for i, a in enumerate(arguments) if i != residual)

    def check_backward(grad, *args):
        every = list(args) if residual is None else [*args[:residual], None, *args[residual:]]
        check(*every)
        first = _tensors(args)[0]
        like(name, "grad", grad, tuple(output_shape(*every)), "the first argument", first)

    def fake(*args):
        check(*args)
        return empty_like(_tensors(args)[0], output_shape(*args))

    def fake_backward(grad, *args):
        check_backward(grad, *args)
        return [empty_like(t, t.shape) for t in _tensors(args)]

    for backend, library in _libraries.items():
        namespace = f"mirnet_fast_{backend}"
        forward, backward = f"{namespace}::{name}", f"{namespace}::{name}_backward"
        library.define(f"{name}({signature}) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
        library.define(f"{name}_backward(Tensor grad, {kept}) -> Tensor[]", tags=torch.Tag.pt2_compliant_tag)
        torch.library.register_fake(forward, fake, lib=library)
        torch.library.register_fake(backward, fake_backward, lib=library)
        gradient = getattr(getattr(torch.ops, namespace), f"{name}_backward").default
        _register_autograd(forward, gradient, residual, library)
        torch.library.register_autograd(backward, _no_double_backward(name), lib=library)
        _overloads[name, backend] = getattr(getattr(torch.ops, namespace), name).default
    for key in ("CUDA", "CPU"):  # the CPU for the interpreter
        _libraries["triton"].impl(name, _triton_kernel(name, name, check), key)
        kernel = _triton_kernel(name, f"{name}_backward", check_backward)
        _libraries["triton"].impl(f"{name}_backward", kernel, key)


def register_in_place(name, arguments, check):
    """Define the inference-only `name(arguments) -> ()`, which writes into its first argument.

    `mirnet_fast.engine.in_place` describes each and calls it.
    """
    define_for_cpu(f"{name}({', '.join(arguments)}) -> ()", check)


def define_for_cpu(schema, check, output=lambda *args: None):
    """Define an op that the C++ kernels alone have.

    Args:
        check: function of the op's arguments, with their defaults, that raises what does not fit; None
            where there are none.
        output: function of the op's arguments that returns an output like the real one.
    """
    library = _libraries["cpu"]
    library.define(schema, tags=torch.Tag.pt2_compliant_tag)
    name = schema.partition("(")[0]
    overload = getattr(torch.ops.mirnet_fast_cpu, name).default
    defaults = {a.name: a.default_value for a in overload._schema.arguments if a.has_default_value()}

    def fake(*args, **kwargs):
        if check is not None:
            left = [a.name for a in overload._schema.arguments[len(args) :]]
            check(*args, *((defaults | kwargs)[a] for a in left))
        return output(*args)

    torch.library.register_fake(f"mirnet_fast_cpu::{name}", fake, lib=library)


def register_cpu_gradient(name, backward, setup_context):
    """Give such an op a gradient; the functions are as torch.library.register_autograd takes them."""
    torch.library.register_autograd(
        f"mirnet_fast_cpu::{name}", backward, setup_context=setup_context, lib=_libraries["cpu"]
    )


def _triton_kernel(name, function, check):
    """kernels/NAME.py's function, imported when it is first called: importing needs no Triton."""

    def run(*args):
        check(*args)
        return getattr(importlib.import_module(f"mirnet_fast.kernels.{name}"), function)(*args)

    return run


def call(name, *args):
    """Run the op on the backend that the picker names for its first tensor."""
    first = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
    backend = backends.pick(name, first.device.type, first.dtype)
    if backend == "reference":
        return getattr(reference, name)(*args)
    return _overloads[name, backend](*args)


def autocast(*values: Any) -> tuple[Any, ...]:
    """The values, their tensors cast as autocast would cast a convolution's inputs."""
    kind = values[0].device.type
    return cast(torch.get_autocast_dtype(kind), *values) if autocasts(kind) else values


def autocasts(device_type: str) -> bool:
    """Whether autocast is on there; of the meta device PyTorch must not be asked."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def cast(dtype: torch.dtype, *values: Any) -> tuple[Any, ...]:
    """The values, their tensors and lists of tensors in this dtype; float64 is left as it is."""
    others = [t for t in _tensors(values) if t.is_floating_point() and t.dtype not in (dtype, torch.float64)]
    if not others:
        return values
    if len(others) > 1 and _are_only_values(others):
        # On a GPU one kernel instead of one a tensor.
        made = [torch.empty_like(t, dtype=dtype) for t in others]
        torch._foreach_copy_(made, others)
    else:
        made = [t.to(dtype) for t in others]
    done = {id(t): m for t, m in zip(others, made, strict=True)}

    def one(value):
        return [one(v) for v in value] if isinstance(value, (list, tuple)) else done.get(id(value), value)

    return tuple(one(value) for value in values)


def _are_only_values(tensors):
    """Whether nothing records, traces or transforms what is done with them."""
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not backends.is_transformed()
        and all(type(t) in (torch.Tensor, torch.nn.Parameter) for t in tensors)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
    )


def empty_like(x, shape):
    """An uninitialised tensor of this shape, channels_last where `x` is."""
    # The C++ kernels apply the same rule to strides: sliced maps keep their layout.
    channels_last = x.dim() == 4 and x.stride(1) == 1 and x.stride(3) != 1
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _tensors(args):
    flat = []
    for arg in args:
        if isinstance(arg, (list, tuple)):
            flat.extend(arg)
        elif isinstance(arg, torch.Tensor):
            flat.append(arg)
    return flat


def _register_autograd(forward, gradient, residual, library):
    def setup_context(ctx, inputs, output):
        kept = [arg for i, arg in enumerate(inputs) if i != residual]
        ctx.has_residual = residual is not None and inputs[residual] is not None
        ctx.save_for_backward(*_tensors(kept))
        # What stands where: None for a tensor, a number for a list of tensors, (value,) for others.
        ctx.layout = [
            len(arg) if isinstance(arg, (list, tuple)) else None if isinstance(arg, torch.Tensor) else (arg,)
            for arg in kept
        ]

    def backward(ctx, grad):
        args = _arrange(ctx.layout, ctx.saved_tensors, lambda value: value)
        result = _arrange(ctx.layout, gradient(grad, *args), lambda value: None)
        if residual is not None:
            result.insert(residual, grad if ctx.has_residual else None)
        return tuple(result)

    torch.library.register_autograd(forward, backward, setup_context=setup_context, lib=library)


def _arrange(layout, tensors, other):
    remaining = iter(tensors)
    return [
        next(remaining)
        if entry is None
        else other(entry[0])
        if isinstance(entry, tuple)
        else [next(remaining) for _ in range(entry)]
        for entry in layout
    ]


def _no_double_backward(name):
    def backward(ctx, *grads):
        raise NotImplementedError(
            f"{name}: the kernels have no double backward; "
            'run forward and backward under mirnet_fast.use_backend("reference")'
        )

    return backward
