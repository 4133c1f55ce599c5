"""Tasks as calls of the C++ kernels."""

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from .. import backends
from ..ops import convolution
from ..ops.convolution import slope_of
from . import in_place, memory
from .bound import Binder, Bound, dau_arguments, put, skff_weights, tail_weights
from .graph import Step

if TYPE_CHECKING:
    from .plan import Plan

IN_BANDS = True  # what one convolution hands to the next stays in the cache
PINNED = False  # kernels ask at each call where weights lie
JOINS = False  # a tile of a map is projected where it is enlarged


def unplannable(x: torch.Tensor) -> str | None:
    """None, or why no plan is made for a plain tensor x on the CPU now."""
    backend = backends.pick("dau_attention", "cpu", x.dtype)
    if backend != "cpu":
        reason = dict(backends.explain("dau_attention", "cpu", x.dtype))["cpu"]
        return f"the backend is {backend!r}, not 'cpu': {reason}"
    return None


def settings() -> tuple[object, ...]:
    """What besides the input and the module decides which calls a plan is made of."""
    return backends.current_backend(), backends.winograd()


def make_block(plan: "Plan") -> memory.Block:
    """A new block of memory for a plan.

    Raises:
        MemoryError: the system does not give the address space.
    """
    return memory.Block(plan.peak_bytes)


def bind(plan: "Plan", block: memory.Block) -> Bound:
    """A plan's tasks as calls of the C++ kernels."""
    return Bound(plan, block, BINDERS)


def is_for_kernels(step: Step, dtype: torch.dtype) -> bool:
    """Whether the kernels run a convolution Step, and are faster than PyTorch."""
    activation = step.layers.get("activation")
    return type(activation) in (type(None), nn.PReLU, nn.LeakyReLU) and convolution.is_for_kernels(
        step.layers["conv"], step.inputs["x"].shape, dtype, again=True
    )


def _conv(bound, task):
    layer, activation = task.layers["conv"], task.layers["activation"]
    x, residual, out = task.reads["x"], bound.of(task.reads["residual"]), bound.of(task.writes["out"])
    if not task.layers["by_kernels"]:
        bound.emit(_conv_of_torch, layer, activation, out, bound.of(x), residual, task.row)
        return
    weights = layer.weight, layer.bias, slope_of(activation, layer.weight)
    if task.kind == "conv1x1":
        x = bound.of(x.rows(task.row, task.writes["out"].end - task.writes["out"].begin))
        bound.emit(in_place.conv1x1_into, out, x, *weights)
        if residual is not None:
            bound.emit(torch.Tensor.add_, out, residual)
        return
    statistics = [bound.of(task.writes.get(name)) for name in ("pooled", "sums")]
    bound.emit(in_place.conv3x3_into, out, bound.of(x), *weights, residual, *statistics, task.row)


def _conv_of_torch(layer, activation, out, x, residual, row):
    """Rows of a convolution that the kernels do not run, its activation and the residual."""
    result = convolution.called_on_rows(layer, x, row, row + out.shape[2])
    if isinstance(activation, nn.PReLU) and activation.weight.numel() == 1 and result.numel():
        result = F.leaky_relu_(result, activation.weight.item())
    elif activation is not None:
        result = activation(result)
    put(out, result, residual)


def _residual_down_tail(bound, task):
    operands = [bound.of(task.reads[name]) for name in ("top", "bottom")]
    sums = bound.of(task.writes.get("sums"))
    out = bound.of(task.writes["out"])
    bound.emit(in_place.residual_down_tail_into, out, *operands, *tail_weights(task), sums, task.row)


def _residual_up_tail(bound, task):
    out, x, bottom = bound.of(task.writes["out"]), bound.of(task.reads["x"]), bound.of(task.reads["bottom"])
    layer, tail = task.layers["conv"], tail_weights(task)
    if not task.layers["by_kernels"]:
        bound.emit(_residual_up_tail_of_torch, layer, out, x, bottom, tail, task.row)
        return
    arguments = out, x, layer.weight, layer.bias, bottom, *tail, task.row, bound.of(task.writes["sums"])
    bound.emit(in_place.residual_up_tail_of_conv, *arguments)


def _residual_up_tail_of_torch(layer, out, x, bottom, tail, row):
    """The same where PyTorch runs the transposed convolution."""
    top = convolution.called(layer, x)[:, :, : out.shape[2]]
    in_place.residual_up_tail_rows(out, top, bottom, *tail, row)


def _skff_select(bound, task):
    branches, sums = bound.of(task.reads["branches"]), bound.of(task.reads["sums"])
    out = bound.of(task.writes["out"])
    bound.emit(in_place.skff_select_into, out, branches, *skff_weights(task), sums, task.layers["pixels"])


def _skff_pool(bound, task):
    bound.emit(in_place.skff_pool_into, bound.of(task.writes["out"]), bound.of(task.reads["branches"]))


def _dau_attention(bound, task):
    arguments = dau_arguments(bound, task, task.layers["spatial"].weight)
    bound.emit(in_place.dau_attention_into, *arguments, task.row, task.layers.get("pixels", 0))


BINDERS: dict[str, Binder] = {
    "conv1x1": _conv,
    "conv3x3": _conv,
    "convolution": _conv,
    "residual_down_tail": _residual_down_tail,
    "residual_up_tail": _residual_up_tail,
    "skff_select": _skff_select,
    "skff_pool": _skff_pool,
    "dau_attention": _dau_attention,
}
